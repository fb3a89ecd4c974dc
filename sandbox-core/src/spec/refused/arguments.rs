//! Writes a system call with its arguments, as strace does, from the registers alone. Pointers
//! are not followed and not shown: they differ from run to run, and tell where a program is in
//! memory.

use crate::types::Call;

/// How an argument is written.
#[derive(Clone, Copy)]
enum Kind {
    /// By the name of its value.
    Name(&'static [(&'static str, u64)]),
    /// By the names of its bits.
    Bits(&'static [(&'static str, u64)]),
    /// A socket's type with its flags.
    SocketType,
    /// A socket option, whose level is the argument before it.
    SocketOption,
    /// The type and the permissions of a file.
    Mode,
    /// A signed number.
    Number,
    /// A device's number.
    Device,
    /// Something in memory.
    Pointer,
}

use Kind::{Bits, Device, Mode, Name, Number, Pointer, SocketOption, SocketType};

type Names = &'static [(&'static str, u64)];

/// The longest call that is written.
const LONGEST: usize = 200;

/// Writes a call.
pub(super) fn describe(name: &str, call: &Call) -> String {
    if name.is_empty() {
        return format!("call {} of architecture {:#x}", call.number, call.audit);
    }
    let other_abi = match call.audit {
        X86_64 if call.number >> 30 == 1 => " of x32",
        I386 => " of i386",
        ARM => " of arm",
        _ => "",
    };
    let kinds = CALLS.iter().find(|(names, _)| names.contains(&name)).map(|(_, kinds)| *kinds);
    let Some(kinds) = kinds else { return format!("{name}{other_abi}") };
    let mut written = Vec::new();
    for (i, kind) in kinds.iter().enumerate() {
        let (value, before) = (call.arguments[i], call.arguments[i.saturating_sub(1)]);
        written.push(write(*kind, value, before));
    }
    let mut text = format!("{name}({}){other_abi}", written.join(", "));
    text.truncate(LONGEST);
    text
}

fn write(kind: Kind, value: u64, before: u64) -> String {
    let lower = u64::from(value as u32);
    match kind {
        Name(names) => named(names, lower),
        Bits(names) => bits(names, lower),
        SocketType => {
            let flags = bits(SOCKET_FLAGS, lower & !0xf);
            let kind = named(SOCKET_TYPES, lower & 0xf);
            if flags == "0" { kind } else { format!("{kind}|{flags}") }
        }
        SocketOption => named(
            match before as u32 {
                0 => IP_OPTIONS,
                6 => TCP_OPTIONS,
                41 => IPV6_OPTIONS,
                _ => &[],
            },
            lower,
        ),
        Mode => {
            let permissions = lower & 0o7777;
            match lower & 0o170_000 {
                0 => format!("{permissions:#o}"),
                kind => format!("{}|{permissions:#o}", named(FILE_TYPES, kind)),
            }
        }
        Number => (value as u32).cast_signed().to_string(),
        // As of makedev(3), of which mknod(2) takes 32 bits.
        Device => {
            let (major, minor) = (lower >> 8 & 0xfff, lower & 0xff | lower >> 12 & 0xf_ff00);
            format!("{major}:{minor}")
        }
        Pointer => "...".to_owned(),
    }
}

fn named(names: Names, value: u64) -> String {
    let known = names.iter().find(|(_, known)| *known == value);
    known.map_or_else(|| plain(value), |(name, _)| (*name).to_owned())
}

fn bits(names: Names, value: u64) -> String {
    let set = names.iter().filter(|(_, bit)| value & bit == *bit);
    let rest = set.clone().fold(value, |rest, (_, bit)| rest & !bit);
    let mut parts: Vec<_> = set.map(|(name, _)| (*name).to_owned()).collect();
    if rest != 0 || parts.is_empty() {
        parts.push(plain(rest));
    }
    parts.join("|")
}

fn plain(value: u64) -> String {
    match value {
        0..=9 => value.to_string(),
        _ => format!("{value:#x}"),
    }
}

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ARM: u32 = 0x4000_0028;

/// The calls whose arguments say something, with those up to the last that does.
const CALLS: &[(&[&str], &[Kind])] = &[
    (&["socket"], &[Name(FAMILIES), SocketType, Number]),
    (&["socketpair"], &[Name(FAMILIES), SocketType, Number]),
    (&["socketcall"], &[Name(SOCKETCALLS)]),
    (&["setsockopt"], &[Number, Name(LEVELS), SocketOption]),
    (&["sendto", "sendmmsg"], &[Number, Pointer, Number, Bits(MESSAGE_FLAGS)]),
    (&["sendmsg"], &[Number, Pointer, Bits(MESSAGE_FLAGS)]),
    (&["clone"], &[Bits(CLONE_FLAGS)]),
    (&["unshare"], &[Bits(CLONE_FLAGS)]),
    (&["setns"], &[Number, Bits(CLONE_FLAGS)]),
    (&["ioctl"], &[Number, Name(IOCTLS)]),
    (&["prctl"], &[Name(PRCTLS)]),
    (&["ptrace"], &[Name(PTRACES)]),
    (&["bpf"], &[Name(BPF_COMMANDS)]),
    (&["keyctl"], &[Name(KEYCTLS)]),
    (&["personality"], &[Bits(PERSONALITIES)]),
    (&["mknod"], &[Pointer, Mode, Device]),
    (&["mknodat"], &[Number, Pointer, Mode, Device]),
    (&["mount"], &[Pointer, Pointer, Pointer, Bits(MOUNT_FLAGS)]),
    (&["umount2"], &[Pointer, Bits(UMOUNT_FLAGS)]),
    (&["open_tree"], &[Number, Pointer, Bits(OPEN_TREE_FLAGS)]),
    (&["reboot"], &[Pointer, Pointer, Name(REBOOTS)]),
    (&["syslog"], &[Number]),
    (&["clock_settime", "clock_settime64"], &[Name(CLOCKS)]),
    (&["iopl"], &[Number]),
    (&["ioperm"], &[Number, Number, Number]),
    (&["quotactl"], &[Name(QUOTAS)]),
    (&["perf_event_open"], &[Pointer, Number, Number, Number]),
    (&["io_uring_setup"], &[Number]),
    (&["userfaultfd"], &[Bits(&[("UFFD_USER_MODE_ONLY", 1), ("O_CLOEXEC", 0x8_0000)])]),
];

const FAMILIES: Names = &[
    ("AF_UNSPEC", 0),
    ("AF_UNIX", 1),
    ("AF_INET", 2),
    ("AF_AX25", 3),
    ("AF_IPX", 4),
    ("AF_APPLETALK", 5),
    ("AF_NETROM", 6),
    ("AF_ATMPVC", 8),
    ("AF_X25", 9),
    ("AF_INET6", 10),
    ("AF_ROSE", 11),
    ("AF_KEY", 15),
    ("AF_NETLINK", 16),
    ("AF_PACKET", 17),
    ("AF_ATMSVC", 20),
    ("AF_RDS", 21),
    ("AF_PPPOX", 24),
    ("AF_LLC", 26),
    ("AF_IB", 27),
    ("AF_MPLS", 28),
    ("AF_CAN", 29),
    ("AF_TIPC", 30),
    ("AF_BLUETOOTH", 31),
    ("AF_IUCV", 32),
    ("AF_RXRPC", 33),
    ("AF_PHONET", 35),
    ("AF_IEEE802154", 36),
    ("AF_CAIF", 37),
    ("AF_ALG", 38),
    ("AF_NFC", 39),
    ("AF_VSOCK", 40),
    ("AF_KCM", 41),
    ("AF_QIPCRTR", 42),
    ("AF_SMC", 43),
    ("AF_XDP", 44),
    ("AF_MCTP", 45),
];

const SOCKET_TYPES: Names = &[
    ("SOCK_STREAM", 1),
    ("SOCK_DGRAM", 2),
    ("SOCK_RAW", 3),
    ("SOCK_RDM", 4),
    ("SOCK_SEQPACKET", 5),
    ("SOCK_DCCP", 6),
    ("SOCK_PACKET", 10),
];

const SOCKET_FLAGS: Names = &[("SOCK_NONBLOCK", 0x800), ("SOCK_CLOEXEC", 0x8_0000)];

const SOCKETCALLS: Names = &[
    ("SYS_SOCKET", 1),
    ("SYS_BIND", 2),
    ("SYS_CONNECT", 3),
    ("SYS_LISTEN", 4),
    ("SYS_ACCEPT", 5),
    ("SYS_SOCKETPAIR", 8),
    ("SYS_SEND", 9),
    ("SYS_RECV", 10),
    ("SYS_SENDTO", 11),
    ("SYS_RECVFROM", 12),
    ("SYS_SETSOCKOPT", 14),
    ("SYS_SENDMSG", 16),
    ("SYS_RECVMSG", 17),
];

const LEVELS: Names =
    &[("SOL_IP", 0), ("SOL_SOCKET", 1), ("SOL_TCP", 6), ("SOL_UDP", 17), ("SOL_IPV6", 41)];

const TCP_OPTIONS: Names = &[("TCP_ULP", 31)];

const IP_OPTIONS: Names = &[
    ("IP_ADD_MEMBERSHIP", 35),
    ("IP_ADD_SOURCE_MEMBERSHIP", 39),
    ("IP_MSFILTER", 41),
    ("MCAST_JOIN_GROUP", 42),
    ("MCAST_JOIN_SOURCE_GROUP", 46),
    ("MCAST_MSFILTER", 48),
];

const IPV6_OPTIONS: Names = &[
    ("IPV6_ADD_MEMBERSHIP", 20),
    ("IPV6_JOIN_ANYCAST", 27),
    ("MCAST_JOIN_GROUP", 42),
    ("MCAST_JOIN_SOURCE_GROUP", 46),
    ("MCAST_MSFILTER", 48),
];

const MESSAGE_FLAGS: Names = &[
    ("MSG_OOB", 1),
    ("MSG_PEEK", 2),
    ("MSG_DONTROUTE", 4),
    ("MSG_DONTWAIT", 0x40),
    ("MSG_EOR", 0x80),
    ("MSG_NOSIGNAL", 0x4000),
    ("MSG_MORE", 0x8000),
];

const CLONE_FLAGS: Names = &[
    ("CLONE_NEWTIME", 0x80),
    ("CLONE_VM", 0x100),
    ("CLONE_FS", 0x200),
    ("CLONE_FILES", 0x400),
    ("CLONE_SIGHAND", 0x800),
    ("CLONE_PIDFD", 0x1000),
    ("CLONE_PTRACE", 0x2000),
    ("CLONE_VFORK", 0x4000),
    ("CLONE_PARENT", 0x8000),
    ("CLONE_THREAD", 0x1_0000),
    ("CLONE_NEWNS", 0x2_0000),
    ("CLONE_SYSVSEM", 0x4_0000),
    ("CLONE_SETTLS", 0x8_0000),
    ("CLONE_PARENT_SETTID", 0x10_0000),
    ("CLONE_CHILD_CLEARTID", 0x20_0000),
    ("CLONE_CHILD_SETTID", 0x100_0000),
    ("CLONE_NEWCGROUP", 0x200_0000),
    ("CLONE_NEWUTS", 0x400_0000),
    ("CLONE_NEWIPC", 0x800_0000),
    ("CLONE_NEWUSER", 0x1000_0000),
    ("CLONE_NEWPID", 0x2000_0000),
    ("CLONE_NEWNET", 0x4000_0000),
    ("CLONE_IO", 0x8000_0000),
];

const IOCTLS: Names = &[("TIOCSTI", 0x5412), ("TIOCLINUX", 0x541c)];

const PRCTLS: Names = &[
    ("PR_SET_PDEATHSIG", 1),
    ("PR_SET_DUMPABLE", 4),
    ("PR_SET_NAME", 15),
    ("PR_SET_SECCOMP", 22),
    ("PR_CAPBSET_DROP", 24),
    ("PR_SET_SECUREBITS", 28),
    ("PR_SET_MM", 35),
    ("PR_SET_CHILD_SUBREAPER", 36),
    ("PR_SET_NO_NEW_PRIVS", 38),
    ("PR_CAP_AMBIENT", 47),
    ("PR_SET_SPECULATION_CTRL", 53),
    ("PR_SCHED_CORE", 62),
];

const PTRACES: Names = &[
    ("PTRACE_TRACEME", 0),
    ("PTRACE_PEEKTEXT", 1),
    ("PTRACE_PEEKDATA", 2),
    ("PTRACE_POKETEXT", 4),
    ("PTRACE_POKEDATA", 5),
    ("PTRACE_CONT", 7),
    ("PTRACE_ATTACH", 16),
    ("PTRACE_SYSCALL", 24),
    ("PTRACE_SETOPTIONS", 0x4200),
    ("PTRACE_SEIZE", 0x4206),
];

const BPF_COMMANDS: Names = &[
    ("BPF_MAP_CREATE", 0),
    ("BPF_MAP_LOOKUP_ELEM", 1),
    ("BPF_MAP_UPDATE_ELEM", 2),
    ("BPF_MAP_DELETE_ELEM", 3),
    ("BPF_MAP_GET_NEXT_KEY", 4),
    ("BPF_PROG_LOAD", 5),
    ("BPF_OBJ_PIN", 6),
    ("BPF_OBJ_GET", 7),
    ("BPF_PROG_ATTACH", 8),
    ("BPF_PROG_DETACH", 9),
    ("BPF_PROG_TEST_RUN", 10),
    ("BPF_PROG_GET_NEXT_ID", 11),
    ("BPF_MAP_GET_NEXT_ID", 12),
    ("BPF_PROG_GET_FD_BY_ID", 13),
    ("BPF_MAP_GET_FD_BY_ID", 14),
    ("BPF_OBJ_GET_INFO_BY_FD", 15),
    ("BPF_PROG_QUERY", 16),
    ("BPF_RAW_TRACEPOINT_OPEN", 17),
    ("BPF_BTF_LOAD", 18),
    ("BPF_LINK_CREATE", 28),
    ("BPF_TOKEN_CREATE", 36),
];

const KEYCTLS: Names = &[
    ("KEYCTL_GET_KEYRING_ID", 0),
    ("KEYCTL_JOIN_SESSION_KEYRING", 1),
    ("KEYCTL_UPDATE", 2),
    ("KEYCTL_REVOKE", 3),
    ("KEYCTL_CHOWN", 4),
    ("KEYCTL_SETPERM", 5),
    ("KEYCTL_DESCRIBE", 6),
    ("KEYCTL_CLEAR", 7),
    ("KEYCTL_LINK", 8),
    ("KEYCTL_UNLINK", 9),
    ("KEYCTL_SEARCH", 10),
    ("KEYCTL_READ", 11),
    ("KEYCTL_INSTANTIATE", 12),
    ("KEYCTL_SET_TIMEOUT", 15),
    ("KEYCTL_GET_SECURITY", 17),
    ("KEYCTL_GET_PERSISTENT", 22),
    ("KEYCTL_CAPABILITIES", 31),
];

const PERSONALITIES: Names = &[
    ("UNAME26", 0x2_0000),
    ("ADDR_NO_RANDOMIZE", 0x4_0000),
    ("FDPIC_FUNCPTRS", 0x8_0000),
    ("MMAP_PAGE_ZERO", 0x10_0000),
    ("ADDR_COMPAT_LAYOUT", 0x20_0000),
    ("READ_IMPLIES_EXEC", 0x40_0000),
    ("ADDR_LIMIT_32BIT", 0x80_0000),
    ("SHORT_INODE", 0x100_0000),
    ("WHOLE_SECONDS", 0x200_0000),
    ("STICKY_TIMEOUTS", 0x400_0000),
    ("ADDR_LIMIT_3GB", 0x800_0000),
];

const FILE_TYPES: Names = &[
    ("S_IFIFO", 0o010_000),
    ("S_IFCHR", 0o020_000),
    ("S_IFDIR", 0o040_000),
    ("S_IFBLK", 0o060_000),
    ("S_IFREG", 0o100_000),
    ("S_IFSOCK", 0o140_000),
];

const MOUNT_FLAGS: Names = &[
    ("MS_RDONLY", 1),
    ("MS_NOSUID", 2),
    ("MS_NODEV", 4),
    ("MS_NOEXEC", 8),
    ("MS_REMOUNT", 0x20),
    ("MS_NOATIME", 0x400),
    ("MS_BIND", 0x1000),
    ("MS_MOVE", 0x2000),
    ("MS_REC", 0x4000),
    ("MS_SILENT", 0x8000),
    ("MS_UNBINDABLE", 0x2_0000),
    ("MS_PRIVATE", 0x4_0000),
    ("MS_SLAVE", 0x8_0000),
    ("MS_SHARED", 0x10_0000),
    ("MS_RELATIME", 0x20_0000),
];

const UMOUNT_FLAGS: Names =
    &[("MNT_FORCE", 1), ("MNT_DETACH", 2), ("MNT_EXPIRE", 4), ("UMOUNT_NOFOLLOW", 8)];

const OPEN_TREE_FLAGS: Names =
    &[("OPEN_TREE_CLONE", 1), ("AT_RECURSIVE", 0x8000), ("OPEN_TREE_CLOEXEC", 0x8_0000)];

const REBOOTS: Names = &[
    ("LINUX_REBOOT_CMD_CAD_OFF", 0),
    ("LINUX_REBOOT_CMD_RESTART", 0x0123_4567),
    ("LINUX_REBOOT_CMD_KEXEC", 0x4558_4543),
    ("LINUX_REBOOT_CMD_POWER_OFF", 0x4321_fedc),
    ("LINUX_REBOOT_CMD_CAD_ON", 0x89ab_cdef),
    ("LINUX_REBOOT_CMD_RESTART2", 0xa1b2_c3d4),
    ("LINUX_REBOOT_CMD_HALT", 0xcdef_0123),
    ("LINUX_REBOOT_CMD_SW_SUSPEND", 0xd000_fce2),
];

const CLOCKS: Names = &[("CLOCK_REALTIME", 0), ("CLOCK_MONOTONIC", 1)];

const QUOTAS: Names = &[
    ("Q_QUOTAON of users", 0x8000_0200),
    ("Q_QUOTAON of groups", 0x8000_0201),
    ("Q_QUOTAOFF of users", 0x8000_0300),
    ("Q_QUOTAOFF of groups", 0x8000_0301),
    ("Q_SETINFO of users", 0x8000_0600),
    ("Q_SETINFO of groups", 0x8000_0601),
    ("Q_SETQUOTA of users", 0x8000_0800),
    ("Q_SETQUOTA of groups", 0x8000_0801),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, arguments: &[u64]) -> String {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        describe(name, &Call { audit: X86_64, number: 1, arguments: all })
    }

    #[test]
    fn arguments_are_written_by_their_names() {
        for (name, arguments, text) in [
            (
                "socket",
                &[38, 5 | 0x8_0800][..],
                "socket(AF_ALG, SOCK_SEQPACKET|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
            ),
            ("socket", &[99, 9], "socket(0x63, 9, 0)"),
            ("socket", &[1 << 32 | 38, 1], "socket(AF_ALG, SOCK_STREAM, 0)"),
            ("clone", &[0x1000_0011, 0x7fff_1234], "clone(CLONE_NEWUSER|0x11)"),
            ("unshare", &[0x5002_0000], "unshare(CLONE_NEWNS|CLONE_NEWUSER|CLONE_NEWNET)"),
            ("setsockopt", &[3, 6, 31], "setsockopt(3, SOL_TCP, TCP_ULP)"),
            ("sendto", &[3, 0x7fff_1234, 5, 0x4001], "sendto(3, ..., 5, MSG_OOB|MSG_NOSIGNAL)"),
            ("mknod", &[1, 0o20666, 0x501], "mknod(..., S_IFCHR|0o666, 5:1)"),
            ("mount", &[1, 2, 3, 0x1001], "mount(..., ..., ..., MS_RDONLY|MS_BIND)"),
            ("bpf", &[5], "bpf(BPF_PROG_LOAD)"),
            ("ioctl", &[u64::MAX, 0x5412], "ioctl(-1, TIOCSTI)"),
            ("personality", &[0x40_0000], "personality(READ_IMPLIES_EXEC)"),
            ("uselib", &[1], "uselib"),
        ] {
            assert_eq!(written(name, arguments), text);
        }
        let unknown = Call { audit: I386, number: 9999, arguments: [0; 6] };
        assert_eq!(describe("", &unknown), "call 9999 of architecture 0x40000003");
        assert_eq!(describe("bpf", &unknown), "bpf(BPF_MAP_CREATE) of i386");
    }

    #[test]
    fn no_call_is_long() {
        for (names, _) in CALLS {
            for name in *names {
                let longest = written(name, &[u64::MAX; 6]);
                assert!(longest.len() <= LONGEST && !longest.contains('\n'), "{longest}");
            }
        }
    }
}
