//! The tables of the baseline: what is refused, with which errno, and what grants it.
//!
//! The errno is the one of a kernel that lacks the part where programs then do without
//! (ENOSYS, EAFNOSUPPORT, ENOPROTOOPT), and otherwise EPERM, as engines' profiles return.

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action};

use super::Allowed;

pub(super) const EPERM: u16 = 1;
pub(super) const ENOSYS: u16 = 38;
const ENOPROTOOPT: u16 = 92;

/// Capabilities by their numbers (`linux/capability.h`).
pub(super) mod capability {
    pub(in super::super) const DAC_READ_SEARCH: u64 = 1 << 2;
    pub(in super::super) const NET_RAW: u64 = 1 << 13;
    pub(in super::super) const SYS_MODULE: u64 = 1 << 16;
    pub(in super::super) const SYS_RAWIO: u64 = 1 << 17;
    pub(in super::super) const SYS_CHROOT: u64 = 1 << 18;
    pub(in super::super) const SYS_PTRACE: u64 = 1 << 19;
    pub(in super::super) const SYS_PACCT: u64 = 1 << 20;
    pub(in super::super) const SYS_ADMIN: u64 = 1 << 21;
    pub(in super::super) const SYS_BOOT: u64 = 1 << 22;
    pub(in super::super) const SYS_NICE: u64 = 1 << 23;
    pub(in super::super) const SYS_TIME: u64 = 1 << 25;
    pub(in super::super) const SYS_TTY_CONFIG: u64 = 1 << 26;
    pub(in super::super) const SYSLOG: u64 = 1 << 34;
    pub(in super::super) const PERFMON: u64 = 1 << 38;
    pub(in super::super) const BPF: u64 = 1 << 39;
}

/// System calls that are refused with any arguments.
pub(super) struct Whole {
    pub(super) names: &'static [&'static str],
    pub(super) errno: u16,
    /// The part that allows them.
    pub(super) part: Allowed,
    /// The capabilities of which each grants them.
    pub(super) granted_by: u64,
}

pub(super) const WHOLE: [Whole; 6] = [
    Whole {
        names: &["io_uring_setup", "io_uring_enter", "io_uring_register"],
        errno: ENOSYS,
        part: Allowed::IO_URING,
        granted_by: 0,
    },
    Whole {
        names: &["bpf"],
        errno: EPERM,
        part: Allowed::BPF,
        granted_by: capability::BPF | capability::SYS_ADMIN,
    },
    Whole {
        names: &["perf_event_open"],
        errno: EPERM,
        part: Allowed::PERF,
        granted_by: capability::PERFMON | capability::SYS_ADMIN,
    },
    Whole {
        names: &["userfaultfd"],
        errno: EPERM,
        part: Allowed::USERFAULTFD,
        granted_by: capability::SYS_PTRACE,
    },
    Whole {
        names: &["add_key", "request_key", "keyctl"],
        errno: EPERM,
        part: Allowed::KEYS,
        granted_by: 0,
    },
    Whole {
        names: &[
            "_sysctl",
            "afs_syscall",
            "bdflush",
            "create_module",
            "epoll_ctl_old",
            "epoll_wait_old",
            "get_kernel_syms",
            "getpmsg",
            "lookup_dcookie",
            "nfsservctl",
            "putpmsg",
            "query_module",
            "security",
            "sysfs",
            "tuxcall",
            "uselib",
            "ustat",
            "vm86",
            "vm86old",
            "vserver",
        ],
        errno: ENOSYS,
        part: Allowed::OBSOLETE,
        granted_by: 0,
    },
];

/// System calls that the strict baseline allows only to who has one of the capabilities.
/// Those with none here are allowed to all: what `ci/compat` was seen to use (`used.txt`, which
/// `ci/compat --calls` writes), and little more. A test compares the two, and argues the rest.
pub(super) const STRICT: [(u64, Allowed, &[&str]); 13] = [
    (
        0,
        Allowed::NONE,
        &[
            // Processes and threads.
            "alarm",
            "arch_prctl",
            "brk",
            "capget",
            "capset",
            "clone",
            "clone3",
            "execve",
            "execveat",
            "exit",
            "exit_group",
            "fork",
            "futex",
            "futex_requeue",
            "futex_wait",
            "futex_waitv",
            "futex_wake",
            "get_mempolicy",
            "getcpu",
            "getegid",
            "geteuid",
            "getgid",
            "getgroups",
            "getitimer",
            "getpgid",
            "getpgrp",
            "getpid",
            "getppid",
            "getpriority",
            "getrandom",
            "getresgid",
            "getresuid",
            "getrlimit",
            "getrusage",
            "getsid",
            "gettid",
            "getuid",
            "ioprio_get",
            "ioprio_set",
            "kill",
            "landlock_add_rule",
            "landlock_create_ruleset",
            "landlock_restrict_self",
            "madvise",
            "map_shadow_stack",
            "membarrier",
            "memfd_create",
            "mincore",
            "mlock",
            "mlock2",
            "mlockall",
            "mmap",
            "mprotect",
            "mremap",
            "mseal",
            "msync",
            "munlock",
            "munlockall",
            "munmap",
            "pause",
            "personality",
            "pidfd_open",
            "pidfd_send_signal",
            "pkey_alloc",
            "pkey_free",
            "pkey_mprotect",
            "prctl",
            "prlimit64",
            "restart_syscall",
            "riscv_flush_icache",
            "riscv_hwprobe",
            "rseq",
            "rt_sigaction",
            "rt_sigpending",
            "rt_sigprocmask",
            "rt_sigqueueinfo",
            "rt_sigreturn",
            "rt_sigsuspend",
            "rt_sigtimedwait",
            "rt_tgsigqueueinfo",
            "sched_get_priority_max",
            "sched_get_priority_min",
            "sched_getaffinity",
            "sched_getattr",
            "sched_getparam",
            "sched_getscheduler",
            "sched_rr_get_interval",
            "sched_setaffinity",
            "sched_setattr",
            "sched_setparam",
            "sched_setscheduler",
            "sched_yield",
            "seccomp",
            "set_mempolicy",
            "set_robust_list",
            "set_tid_address",
            "setfsgid",
            "setfsuid",
            "setgid",
            "setgroups",
            "setitimer",
            "setpgid",
            "setpriority",
            "setregid",
            "setresgid",
            "setresuid",
            "setreuid",
            "setrlimit",
            "setsid",
            "setuid",
            "sigaltstack",
            "sysinfo",
            "tgkill",
            "time",
            "times",
            "tkill",
            "umask",
            "uname",
            "vfork",
            "wait4",
            "waitid",
            // Files.
            "access",
            "chdir",
            "chmod",
            "chown",
            "close",
            "close_range",
            "copy_file_range",
            "creat",
            "dup",
            "dup2",
            "dup3",
            "faccessat",
            "faccessat2",
            "fadvise64",
            "fallocate",
            "fchdir",
            "fchmod",
            "fchmodat",
            "fchmodat2",
            "fchown",
            "fchownat",
            "fcntl",
            "fdatasync",
            "fgetxattr",
            "flistxattr",
            "flock",
            "fremovexattr",
            "fsetxattr",
            "fstat",
            "fstatfs",
            "fsync",
            "ftruncate",
            "futimesat",
            "getcwd",
            "getdents",
            "getdents64",
            "getxattr",
            "getxattrat",
            "inotify_add_watch",
            "inotify_init",
            "inotify_init1",
            "inotify_rm_watch",
            "io_cancel",
            "io_destroy",
            "io_getevents",
            "io_pgetevents",
            "io_setup",
            "io_submit",
            "ioctl",
            "lchown",
            "lgetxattr",
            "link",
            "linkat",
            "listxattr",
            "listxattrat",
            "llistxattr",
            "lremovexattr",
            "lseek",
            "lsetxattr",
            "lstat",
            "mkdir",
            "mkdirat",
            "mknod",
            "mknodat",
            "name_to_handle_at",
            "newfstatat",
            "open",
            "openat",
            "openat2",
            "pread64",
            "preadv",
            "preadv2",
            "pwrite64",
            "pwritev",
            "pwritev2",
            "read",
            "readahead",
            "readlink",
            "readlinkat",
            "readv",
            "removexattr",
            "removexattrat",
            "rename",
            "renameat",
            "renameat2",
            "rmdir",
            "sendfile",
            "setxattr",
            "setxattrat",
            "splice",
            "stat",
            "statfs",
            "statx",
            "symlink",
            "symlinkat",
            "sync",
            "sync_file_range",
            "syncfs",
            "truncate",
            "unlink",
            "unlinkat",
            "utime",
            "utimensat",
            "utimes",
            "write",
            "writev",
            // Waiting, clocks, sockets, and System V.
            "accept",
            "accept4",
            "adjtimex",
            "bind",
            "clock_adjtime",
            "clock_getres",
            "clock_gettime",
            "clock_nanosleep",
            "connect",
            "epoll_create",
            "epoll_create1",
            "epoll_ctl",
            "epoll_pwait",
            "epoll_pwait2",
            "epoll_wait",
            "eventfd",
            "eventfd2",
            "getpeername",
            "getsockname",
            "getsockopt",
            "gettimeofday",
            "listen",
            "mq_getsetattr",
            "mq_notify",
            "mq_open",
            "mq_timedreceive",
            "mq_timedsend",
            "mq_unlink",
            "msgctl",
            "msgget",
            "msgrcv",
            "msgsnd",
            "nanosleep",
            "pipe",
            "pipe2",
            "poll",
            "ppoll",
            "pselect6",
            "recvfrom",
            "recvmmsg",
            "recvmsg",
            "select",
            "semctl",
            "semget",
            "semop",
            "semtimedop",
            "sendmmsg",
            "sendmsg",
            "sendto",
            "setsockopt",
            "shmat",
            "shmctl",
            "shmdt",
            "shmget",
            "shutdown",
            "signalfd",
            "signalfd4",
            "socket",
            "socketpair",
            "timer_create",
            "timer_delete",
            "timer_getoverrun",
            "timer_gettime",
            "timer_settime",
            "timerfd_create",
            "timerfd_gettime",
            "timerfd_settime",
        ],
    ),
    (
        capability::SYS_ADMIN,
        Allowed::NONE,
        &[
            "fanotify_init",
            "fanotify_mark",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "statmount",
            "umount2",
            "unshare",
        ],
    ),
    (capability::SYS_ADMIN | capability::SYS_CHROOT, Allowed::USER_NAMESPACES, &["chroot"]),
    // A nested user namespace is of no use without what its root then does.
    (
        capability::SYS_ADMIN,
        Allowed::USER_NAMESPACES,
        &["mount", "pivot_root", "setdomainname", "sethostname", "setns", "umount2", "unshare"],
    ),
    (
        capability::SYS_PTRACE,
        Allowed::PTRACE,
        &[
            "get_robust_list",
            "kcmp",
            "pidfd_getfd",
            "process_madvise",
            "process_mrelease",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
        ],
    ),
    (capability::SYS_TIME, Allowed::NONE, &["clock_settime", "settimeofday"]),
    (
        capability::SYS_NICE,
        Allowed::NONE,
        &["mbind", "migrate_pages", "move_pages", "set_mempolicy_home_node"],
    ),
    (capability::DAC_READ_SEARCH, Allowed::NONE, &["open_by_handle_at"]),
    (capability::SYS_TTY_CONFIG, Allowed::NONE, &["vhangup"]),
    (capability::SYSLOG, Allowed::NONE, &["syslog"]),
    (capability::SYS_BOOT, Allowed::NONE, &["kexec_file_load", "kexec_load", "reboot"]),
    (capability::SYS_MODULE, Allowed::NONE, &["delete_module", "finit_module", "init_module"]),
    (capability::SYS_PACCT | capability::SYS_RAWIO, Allowed::NONE, &["acct", "ioperm", "iopl"]),
];

/// Families of sockets (`linux/socket.h`) that all have, beside that of packets.
pub(super) const FAMILIES: [u32; 4] = [1, 2, 10, 16];
/// Families that are allowed by a part.
pub(super) const FAMILIES_BY_PART: [(u32, Allowed); 3] =
    [(38, Allowed::ALG), (40, Allowed::VSOCK), (29, Allowed::CAN)];
pub(super) const AF_PACKET: u32 = 17;

/// The arguments of personality(2) that are harmless: the name of the machine and the kernel's
/// version that uname(2) shows, and the choice of addresses, which debuggers and sanitizers
/// switch for themselves.
pub(super) const PERSONALITY: u32 = 0x0008 | 0x0002_0000 | 0x0004_0000;

/// Options of sockets: their level, their numbers there, and the errno.
pub(super) type SocketOptions = (u32, &'static [u32], u16);
/// The option that puts another protocol over TCP (`linux/tcp.h`).
pub(super) const TCP_ULP: SocketOptions = (6, &[31], ENOPROTOOPT);
/// The options by which a socket joins a group, of IPv4 and of IPv6 (`linux/in.h`,
/// `linux/in6.h`).
pub(super) const MULTICAST: [SocketOptions; 2] =
    [(0, &[35, 39, 41, 42, 46, 48], EPERM), (41, &[20, 27, 42, 46, 48], EPERM)];

/// ioctl(2)s that put letters into a terminal's input: TIOCSTI and TIOCLINUX.
pub(super) const TERMINAL_INPUT: [u32; 2] = [0x5412, 0x541c];

/// An architecture of a program: the machine's own, or one that its kernel runs beside it.
pub(super) struct Abi {
    /// Its number in a filter (`linux/audit.h`).
    pub(super) audit: u32,
    arch: ScmpArch,
    /// Numbers that libseccomp replaces by its own, since the call can be made in two ways.
    direct: &'static [(&'static str, u32)],
}

impl Abi {
    /// Returns the number of a system call; `None` if it has none here.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        let direct = self.direct.iter().find(|(known, _)| *known == name);
        direct.map(|(_, number)| *number).or_else(|| {
            let call = ScmpSyscall::from_name_by_arch(name, self.arch).ok()?;
            // Calls that an architecture does not have are negative.
            u32::try_from(call.as_raw_syscall()).ok()
        })
    }

    /// Returns the name of the system call of a number; `None` if there is none here.
    pub(super) fn name(&self, number: u32) -> Option<String> {
        let direct = self.direct.iter().find(|(_, known)| *known == number);
        let x32 = cfg!(target_arch = "x86_64") && self.arch == ScmpArch::X8664 && number >> 30 == 1;
        let arch = if x32 { ScmpArch::X32 } else { self.arch };
        direct.map(|(name, _)| (*name).to_owned()).or_else(|| {
            let number = i32::try_from(number).ok()?;
            ScmpSyscall::from(number).get_name_by_arch(arch).ok()
        })
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) const ABIS: [Abi; 2] = [
    Abi { audit: 0xc000_003e, arch: ScmpArch::X8664, direct: &[] },
    Abi {
        audit: 0x4000_0003,
        arch: ScmpArch::X86,
        direct: &[
            ("socket", 359),
            ("socketpair", 360),
            ("setsockopt", 366),
            ("sendto", 369),
            ("sendmsg", 370),
            ("sendmmsg", 345),
        ],
    },
];
#[cfg(target_arch = "aarch64")]
pub(super) const ABIS: [Abi; 2] = [
    Abi { audit: 0xc000_00b7, arch: ScmpArch::Aarch64, direct: &[] },
    Abi { audit: 0x4000_0028, arch: ScmpArch::Arm, direct: &[] },
];
#[cfg(target_arch = "riscv64")]
pub(super) const ABIS: [Abi; 1] =
    [Abi { audit: 0xc000_00f3, arch: ScmpArch::Riscv64, direct: &[] }];
#[cfg(target_arch = "s390x")]
pub(super) const ABIS: [Abi; 1] = [Abi { audit: 0x8000_0016, arch: ScmpArch::S390X, direct: &[] }];
#[cfg(all(target_arch = "powerpc64", target_endian = "little"))]
pub(super) const ABIS: [Abi; 1] =
    [Abi { audit: 0xc000_0015, arch: ScmpArch::Ppc64Le, direct: &[] }];

/// The argument of clone(2) with its flags.
pub(super) const CLONE_FLAGS: u32 = if cfg!(target_arch = "s390x") { 1 } else { 0 };

/// Lists the system calls that a profile allows by name while it forbids what it does not
/// name, and that are refused nevertheless: each with its part, and whether containerd's and
/// Docker's own profiles once named it.
pub(crate) fn held_back(
    profile: &LinuxSeccomp,
    allowed: Allowed,
    capabilities: u64,
) -> Vec<(&'static str, Allowed, bool)> {
    use Action::{ScmpActAllow, ScmpActLog, ScmpActNotify};
    let allows = |action| matches!(action, ScmpActAllow | ScmpActLog | ScmpActNotify);
    if allows(profile.default_action()) {
        return Vec::new();
    }
    let named = |call: &str| {
        let mut rules = profile.syscalls().iter().flatten();
        rules.any(|rule| allows(rule.action()) && rule.names().iter().any(|name| name == call))
    };
    let refused = WHOLE.iter().filter(|rule| {
        !allowed.contains(rule.part)
            && rule.granted_by & capabilities == 0
            && rule.part != Allowed::OBSOLETE
    });
    let calls = refused.flat_map(|rule| rule.names.iter().map(|name| (*name, rule.part)));
    calls
        .filter(|(name, _)| named(name))
        .map(|(name, part)| (name, part, part == Allowed::IO_URING))
        .collect()
}
