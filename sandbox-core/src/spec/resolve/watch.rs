//! Decides about which system calls of a container boot is asked.

use libseccomp::ScmpSyscall;
use oci_spec::runtime::Linux;

use super::baseline::Resolved;
use crate::spec::baseline::{self, Allowed, Confined};
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
    views: bool,
) -> Option<Watch> {
    let confined = baseline.confined.filter(|c| c.baseline.holds_user_namespaces())?;
    let raw_sockets = network_of_host && confined.capabilities & 1 << NET_RAW != 0;
    if has_agent(linux) || !(refusals || raw_sockets || views) {
        return None;
    }
    let lacked = if refusals { calls(baseline, &confined) } else { Vec::new() };
    let of_sockets = if raw_sockets { calls_of(NET_RAW) } else { Vec::new() };
    let program = if refusals { baseline::program(&confined) } else { None };
    Some(Watch {
        refusals,
        calls: lacked.into_iter().chain(of_sockets).collect(),
        raw_sockets,
        views,
        baseline: program.unwrap_or_default(),
    })
}

fn has_agent(linux: &Linux) -> bool {
    linux.seccomp().as_ref().is_some_and(seccomp::notifies)
}

/// Says that nothing is told where boot is not asked.
pub(super) fn powerless(
    linux: &Linux,
    baseline: &Resolved,
    has_process: bool,
    refusals: bool,
) -> Option<Powerless> {
    let nests = baseline.confined.is_none_or(|c| !c.baseline.holds_user_namespaces());
    let (lost, instead) = match (has_agent(linux), nests) {
        _ if !refusals || !has_process => return None,
        (true, _) => (
            "linux.seccomp has SCMP_ACT_NOTIFY, and the kernel takes one listener for each \
             process, which the profile's agent has",
            "let the agent tell what it refuses",
        ),
        (false, true) => (
            "the container may run an engine of its own, which needs the one listener that the \
             kernel takes for each process",
            "leave \"user_namespaces\" out of baseline_allow, and baseline on",
        ),
        (false, false) => return None,
    };
    Some(Powerless {
        field: "user_log".into(),
        lost: lost.into(),
        instead: instead.into(),
        // A node has it on for all, also for what is privileged.
        by_default: baseline.confined.is_none(),
    })
}

/// Lists the calls that the kernel refuses to the container: it can never have the capability,
/// or has it without effect in a user namespace, or the baseline shuts what the call makes.
fn calls(baseline: &Resolved, confined: &Confined) -> Vec<WatchedCall> {
    let lacks = |capability: u8| confined.capabilities & 1 << capability == 0;
    let powerless = |name: &str| baseline.user_namespace && OVER_HOST.contains(&name);
    let mut calls = Vec::new();
    if baseline.limits {
        calls.extend(NESTED.iter().flat_map(|(test, name)| watched(None, &[*test], name)));
    }
    if !confined.baseline.allowed.contains(Allowed::IO_URING) {
        calls.extend(IO_URING.iter().flat_map(|name| watched(None, &[], name)));
    }
    for (capability, tests, names) in TAKE_CAPABILITIES {
        let names = names.iter().filter(|name| lacks(capability) || powerless(name));
        calls.extend(names.flat_map(|name| watched(Some(capability), tests, name)));
    }
    calls
}

fn calls_of(capability: u8) -> Vec<WatchedCall> {
    let entries = TAKE_CAPABILITIES.iter().filter(|(of, ..)| *of == capability);
    let of_each = |(_, tests, names): &(u8, &[Test], &[&str])| {
        let calls = names.iter().filter_map(|name| watched(Some(capability), tests, name));
        calls.collect::<Vec<_>>()
    };
    entries.flat_map(of_each).collect()
}

fn watched(capability: Option<u8>, tests: &[Test], name: &str) -> Option<WatchedCall> {
    let number = ScmpSyscall::from_name(name).ok()?.as_raw_syscall();
    // Calls that an architecture does not have are negative.
    let number = u32::try_from(number).ok()?;
    Some(WatchedCall { number, capability, tests: tests.to_vec() })
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

/// An argument that is not zero.
const fn some(argument: u8) -> Test {
    Test::AnyOf { argument, bits: u32::MAX }
}

/// An argument of which all but some bits are these.
const fn either(argument: u8, but: u32, value: u32) -> Test {
    Test::Equals { argument, mask: !but, value }
}

/// Namespaces in the flags of unshare(2), but those of users and of clocks.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
/// `CLONE_NEWTIME`, which is a part of the exit signal in clone(2)'s flags.
const NEW_TIME: u32 = 0x80;

/// The argument of clone(2) with its flags.
const CLONE_FLAGS: u8 = if cfg!(target_arch = "s390x") { 1 } else { 0 };

const NEW_USER: u32 = libc::CLONE_NEWUSER as u32;

/// The calls that make user namespaces, with which the kernel's limit lets none do. (The flags of
/// clone3(2) are in memory.)
const NESTED: [(Test, &str); 2] = [
    (Test::AnyOf { argument: 0, bits: NEW_USER }, "unshare"),
    (Test::AnyOf { argument: CLONE_FLAGS, bits: NEW_USER }, "clone"),
];

/// The program answers ENOSYS to these, of which programs do not speak.
const IO_URING: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];

/// The calls for which a capability counts over the host only. (boot's user namespace owns the
/// PID namespaces, so that reboot is among them.)
const OVER_HOST: [&str; 18] = [
    "init_module",
    "finit_module",
    "delete_module",
    "iopl",
    "ioperm",
    "acct",
    "swapon",
    "swapoff",
    "quotactl",
    "reboot",
    "kexec_load",
    "kexec_file_load",
    "settimeofday",
    "clock_settime",
    "syslog",
    "vhangup",
    "mknod",
    "mknodat",
];

/// `CAP_NET_RAW`
const NET_RAW: u8 = 13;

/// Calls that take a capability (`linux/capability.h`) with such arguments.
const TAKE_CAPABILITIES: [(u8, &[Test], &[&str]); 28] = [
    (2, &[], &["open_by_handle_at"]),
    (6, &[], &["setgroups"]),
    (NET_RAW, &[is(0, libc::AF_PACKET)], &["socket"]),
    (NET_RAW, &[is(0, libc::AF_INET), RAW], &["socket"]),
    (NET_RAW, &[is(0, libc::AF_INET6), RAW], &["socket"]),
    (16, &[], &["init_module", "finit_module", "delete_module"]),
    (17, &[some(0)], &["iopl"]),
    (17, &[some(2)], &["ioperm"]),
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
    // OPEN_TREE_CLONE
    (21, &[Test::AnyOf { argument: 2, bits: 1 }], &["open_tree"]),
    (21, &[Test::AnyOf { argument: 0, bits: NAMESPACES | NEW_TIME }], &["unshare"]),
    (21, &[Test::AnyOf { argument: CLONE_FLAGS, bits: NAMESPACES }], &["clone"]),
    // Q_QUOTAON and Q_QUOTAOFF, Q_SETINFO, Q_SETQUOTA, each of users, groups or projects.
    (21, &[either(0, 0x103, 0x8000_0200)], &["quotactl"]),
    (21, &[either(0, 3, 0x8000_0600)], &["quotactl"]),
    (21, &[either(0, 3, 0x8000_0800)], &["quotactl"]),
    (22, &[], &["reboot", "kexec_load", "kexec_file_load"]),
    (25, &[], &["settimeofday"]),
    (25, &[is(0, libc::CLOCK_REALTIME)], &["clock_settime"]),
    (26, &[], &["vhangup"]),
    // A whiteout, the character device 0:0, takes none.
    (27, &[device(1, libc::S_IFCHR), some(2)], &["mknod"]),
    (27, &[device(1, libc::S_IFBLK)], &["mknod"]),
    (27, &[device(2, libc::S_IFCHR), some(3)], &["mknodat"]),
    (27, &[device(2, libc::S_IFBLK)], &["mknodat"]),
    // What takes from the kernel's messages, and sets what the console shows. Whether reading
    // them takes it, the node's dmesg_restrict decides.
    (34, &[is(0, 2)], &["syslog"]),
    (34, &[either(0, 3, 4)], &["syslog"]),
    (34, &[is(0, 8)], &["syslog"]),
];
