//! The one table of the contents of a profile: actions, comparisons, architectures and
//! flags. The check of a profile, its compiler and the shim's `-info` use it.

use libseccomp::{ScmpAction, ScmpArch, ScmpCompareOp};
use oci_spec::runtime::{
    Arch, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator,
};
use serde::Serialize;

use crate::sys::process::SECCOMP_SPEC_ALLOW;

/// The largest errno that a system call can return (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

/// The meaning of an action.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meaning {
    /// An action that takes no number.
    Plain(ScmpAction),
    /// An action with `errnoRet`.
    Errno {
        /// The largest `errnoRet`.
        most: u32,
        make: fn(u32) -> ScmpAction,
    },
}

const ACTIONS: [Action; 9] = [
    Action::ScmpActAllow,
    Action::ScmpActErrno,
    Action::ScmpActKill,
    Action::ScmpActKillProcess,
    Action::ScmpActKillThread,
    Action::ScmpActLog,
    Action::ScmpActNotify,
    Action::ScmpActTrace,
    Action::ScmpActTrap,
];

pub(super) fn action(action: Action) -> Meaning {
    match action {
        Action::ScmpActAllow => Meaning::Plain(ScmpAction::Allow),
        Action::ScmpActErrno => {
            Meaning::Errno { most: MAX_ERRNO, make: |errno| ScmpAction::Errno(errno.cast_signed()) }
        }
        Action::ScmpActKill | Action::ScmpActKillThread => Meaning::Plain(ScmpAction::KillThread),
        Action::ScmpActKillProcess => Meaning::Plain(ScmpAction::KillProcess),
        Action::ScmpActLog => Meaning::Plain(ScmpAction::Log),
        Action::ScmpActNotify => Meaning::Plain(ScmpAction::Notify),
        Action::ScmpActTrace => Meaning::Errno {
            most: u16::MAX.into(),
            make: |message| ScmpAction::Trace(message as u16),
        },
        Action::ScmpActTrap => Meaning::Plain(ScmpAction::Trap),
    }
}

const OPERATORS: [Operator; 7] = [
    Operator::ScmpCmpEq,
    Operator::ScmpCmpGe,
    Operator::ScmpCmpGt,
    Operator::ScmpCmpLe,
    Operator::ScmpCmpLt,
    Operator::ScmpCmpMaskedEq,
    Operator::ScmpCmpNe,
];

/// Returns the comparison and its operand, of `value` and `valueTwo`.
/// With MASKED_EQ the first is the mask.
pub(super) fn comparison(operator: Operator, value: u64, second: u64) -> (ScmpCompareOp, u64) {
    match operator {
        Operator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        Operator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        Operator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        Operator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        Operator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        Operator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), second),
        Operator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
    }
}

const ARCHITECTURES: [Arch; 24] = [
    Arch::ScmpArchNative,
    Arch::ScmpArchX86,
    Arch::ScmpArchX86_64,
    Arch::ScmpArchX32,
    Arch::ScmpArchArm,
    Arch::ScmpArchAarch64,
    Arch::ScmpArchMips,
    Arch::ScmpArchMips64,
    Arch::ScmpArchMips64n32,
    Arch::ScmpArchMipsel,
    Arch::ScmpArchMipsel64,
    Arch::ScmpArchMipsel64n32,
    Arch::ScmpArchPpc,
    Arch::ScmpArchPpc64,
    Arch::ScmpArchPpc64le,
    Arch::ScmpArchS390,
    Arch::ScmpArchS390x,
    Arch::ScmpArchParisc,
    Arch::ScmpArchParisc64,
    Arch::ScmpArchRiscv64,
    Arch::ScmpArchLoongarch64,
    Arch::ScmpArchM68k,
    Arch::ScmpArchSh,
    Arch::ScmpArchSheb,
];

/// Returns libseccomp's name of an architecture; `None` if it cannot be in one program
/// with x86-64, since libseccomp allows only one byte order.
pub(super) fn architecture(arch: Arch) -> Option<ScmpArch> {
    match arch {
        Arch::ScmpArchNative => Some(ScmpArch::Native),
        Arch::ScmpArchX86 => Some(ScmpArch::X86),
        Arch::ScmpArchX86_64 => Some(ScmpArch::X8664),
        Arch::ScmpArchX32 => Some(ScmpArch::X32),
        Arch::ScmpArchArm => Some(ScmpArch::Arm),
        Arch::ScmpArchAarch64 => Some(ScmpArch::Aarch64),
        Arch::ScmpArchMipsel => Some(ScmpArch::Mipsel),
        Arch::ScmpArchMipsel64 => Some(ScmpArch::Mipsel64),
        Arch::ScmpArchMipsel64n32 => Some(ScmpArch::Mipsel64N32),
        Arch::ScmpArchPpc64le => Some(ScmpArch::Ppc64Le),
        Arch::ScmpArchRiscv64 => Some(ScmpArch::Riscv64),
        Arch::ScmpArchMips
        | Arch::ScmpArchMips64
        | Arch::ScmpArchMips64n32
        | Arch::ScmpArchPpc
        | Arch::ScmpArchPpc64
        | Arch::ScmpArchS390
        | Arch::ScmpArchS390x
        | Arch::ScmpArchParisc
        | Arch::ScmpArchParisc64
        | Arch::ScmpArchM68k
        | Arch::ScmpArchSheb => None,
        // Only libseccomp 2.6 has these.
        Arch::ScmpArchLoongarch64 | Arch::ScmpArchSh => None,
    }
}

const FLAGS: [Flag; 4] = [
    Flag::SeccompFilterFlagLog,
    Flag::SeccompFilterFlagSpecAllow,
    Flag::SeccompFilterFlagTsync,
    Flag::SeccompFilterFlagWaitKillableRecv,
];

/// Returns the bit of seccomp(2). The kernel takes some only with a listener, and some only
/// without.
pub(super) fn flag(flag: Flag, listener: bool) -> Option<u32> {
    match (flag, listener) {
        // Without effect on the single thread that loads the program.
        (Flag::SeccompFilterFlagTsync, false) => Some(1 << 0),
        (Flag::SeccompFilterFlagLog, _) => Some(1 << 1),
        (Flag::SeccompFilterFlagSpecAllow, _) => Some(SECCOMP_SPEC_ALLOW),
        (Flag::SeccompFilterFlagWaitKillableRecv, true) => Some(1 << 5),
        (Flag::SeccompFilterFlagTsync, true) | (Flag::SeccompFilterFlagWaitKillableRecv, false) => {
            None
        }
    }
}

/// The names of the runtime specification that a profile may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supported {
    /// Actions of rules and the default action.
    pub actions: Vec<String>,
    /// Comparisons of arguments.
    pub operators: Vec<String>,
    /// Architectures.
    pub architectures: Vec<String>,
    /// Flags that a profile may have.
    pub known_flags: Vec<String>,
    /// The flags that are passed to seccomp(2).
    pub flags: Vec<String>,
}

/// Returns the names that a profile may use.
pub fn supported() -> Supported {
    // The names of the specification are serde's.
    fn names<T: Serialize>(all: impl IntoIterator<Item = T>) -> Vec<String> {
        let name = |one| serde_json::to_value(one).ok()?.as_str().map(str::to_owned);
        all.into_iter().filter_map(name).collect()
    }
    Supported {
        actions: names(ACTIONS),
        operators: names(OPERATORS),
        architectures: names(
            ARCHITECTURES.into_iter().filter(|arch| architecture(*arch).is_some()),
        ),
        known_flags: names(FLAGS),
        flags: names(FLAGS),
    }
}
