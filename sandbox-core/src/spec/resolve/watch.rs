//! Decides about which system calls of a container boot is asked.

use libseccomp::ScmpSyscall;
use oci_spec::runtime::Linux;

use super::baseline::Resolved;
use crate::spec::baseline;
use crate::spec::plan::{Powerless, Test, Watch, WatchedCall};
use crate::spec::seccomp;

/// Decides for a container. None is watched that may run an engine of its own, whose listeners
/// the kernel would refuse: of the programs that bind a process, one can have a listener. So
/// none either whose spec has an agent.
pub(super) fn resolve(
    linux: &Linux,
    baseline: &Resolved,
    refusals: bool,
    network_of_host: bool,
) -> Option<Watch> {
    let confined = baseline.confined.filter(|c| c.baseline.holds_user_namespaces())?;
    let raw_sockets = network_of_host && confined.capabilities & 1 << NET_RAW != 0;
    if has_agent(linux) || !(refusals || raw_sockets) {
        return None;
    }
    let lacked = if refusals { calls(confined.capabilities) } else { Vec::new() };
    let of_sockets = if raw_sockets { calls_of(NET_RAW) } else { Vec::new() };
    let program = if refusals { baseline::program(&confined) } else { None };
    Some(Watch {
        refusals,
        calls: lacked.into_iter().chain(of_sockets).collect(),
        raw_sockets,
        baseline: program.unwrap_or_default(),
    })
}

fn has_agent(linux: &Linux) -> bool {
    linux.seccomp().as_ref().is_some_and(seccomp::notifies)
}

/// Says that nothing is told where an agent decides.
pub(super) fn powerless(linux: &Linux, refusals: bool) -> Option<Powerless> {
    (refusals && has_agent(linux)).then(|| Powerless {
        field: "user_log".into(),
        lost: "linux.seccomp has SCMP_ACT_NOTIFY, and the kernel takes one listener for each \
               process, which the profile's agent has"
            .into(),
        instead: "let the agent tell what it refuses".into(),
        by_default: false,
    })
}

/// Lists the calls that the kernel refuses to a process which can never have these capabilities.
fn calls(capabilities: u64) -> Vec<WatchedCall> {
    (0..64).filter(|capability| capabilities & 1 << capability == 0).flat_map(calls_of).collect()
}

fn calls_of(capability: u8) -> Vec<WatchedCall> {
    let entries = TAKE_CAPABILITIES.iter().filter(|(of, ..)| *of == capability);
    entries.flat_map(|(_, tests, names)| watched(capability, tests, names)).collect()
}

fn watched(capability: u8, tests: &[Test], names: &[&str]) -> Vec<WatchedCall> {
    let number = |name: &&str| {
        // Calls that an architecture does not have are negative.
        u32::try_from(ScmpSyscall::from_name(name).ok()?.as_raw_syscall()).ok()
    };
    let numbers = names.iter().filter_map(number);
    numbers.map(|number| WatchedCall { number, capability, tests: tests.to_vec() }).collect()
}

/// An argument that the kernel takes whole.
const fn is(argument: u8, value: i32) -> Test {
    Test::Equals { argument, mask: u32::MAX, value: value as u32 }
}

/// The type of a socket, without its flags.
const RAW: Test = Test::Equals { argument: 1, mask: 0xf, value: libc::SOCK_RAW as u32 };

/// The mode of mknod(2), by its argument: that of a device.
const fn device(argument: u8, kind: u32) -> Test {
    Test::Equals { argument, mask: libc::S_IFMT, value: kind }
}

/// Namespaces in the flags of unshare(2), but that of users.
const NAMESPACES: Test = Test::AnyOf {
    argument: 0,
    bits: (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET) as u32,
};

/// `CAP_NET_RAW`
const NET_RAW: u8 = 13;

/// Calls that take a capability (`linux/capability.h`) with such arguments.
const TAKE_CAPABILITIES: [(u8, &[Test], &[&str]); 17] = [
    (2, &[], &["open_by_handle_at"]),
    (NET_RAW, &[is(0, libc::AF_PACKET)], &["socket"]),
    (NET_RAW, &[is(0, libc::AF_INET), RAW], &["socket"]),
    (NET_RAW, &[is(0, libc::AF_INET6), RAW], &["socket"]),
    (16, &[], &["init_module", "finit_module", "delete_module"]),
    (17, &[], &["iopl", "ioperm"]),
    (18, &[], &["chroot"]),
    (20, &[], &["acct"]),
    (
        21,
        &[],
        &[
            "mount",
            "umount2",
            "pivot_root",
            "swapon",
            "swapoff",
            "sethostname",
            "setdomainname",
            "setns",
            "fsopen",
            "fspick",
            "fsmount",
            "move_mount",
            "mount_setattr",
        ],
    ),
    (21, &[NAMESPACES], &["unshare"]),
    (22, &[], &["reboot", "kexec_load", "kexec_file_load"]),
    (25, &[], &["settimeofday", "clock_settime"]),
    (26, &[], &["vhangup"]),
    (27, &[device(1, libc::S_IFCHR)], &["mknod"]),
    (27, &[device(1, libc::S_IFBLK)], &["mknod"]),
    (27, &[device(2, libc::S_IFCHR)], &["mknodat"]),
    (27, &[device(2, libc::S_IFBLK)], &["mknodat"]),
];
