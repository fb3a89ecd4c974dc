//! The names of the values and bits that system calls take (the kernel's headers below `uapi`).

/// Names with their values.
pub(super) type Names = &'static [(&'static str, u64)];

/// A part of an argument that is a value, beside bits.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    pub(super) mask: u32,
    pub(super) names: Names,
}

/// Writes a value by its name.
pub(super) fn named(names: Names, value: u64) -> String {
    let known = names.iter().find(|(_, known)| *known == value);
    known.map_or_else(|| super::memory::plain(value), |(name, _)| (*name).to_owned())
}

/// Writes bits by their names.
pub(super) fn bits(names: Names, value: u64) -> String {
    let mut rest = value;
    let mut parts = Vec::new();
    // A name of several bits stands before those of the single ones.
    for (name, bit) in names {
        if rest & bit == *bit {
            rest &= !bit;
            parts.push((*name).to_owned());
        }
    }
    if rest != 0 || parts.is_empty() {
        parts.push(super::memory::plain(rest));
    }
    parts.join("|")
}

/// Writes a signal by its name.
pub(super) fn signal(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) if (32..=64).contains(&number) => format!("SIGRT_{}", number - 32),
        Err(_) => number.to_string(),
    }
}

/// Writes the flags of open(2).
pub(super) fn open_flags(value: u64) -> String {
    let access = named(OPEN_ACCESS.names, value & 3);
    match value & !3 {
        0 => access,
        rest => format!("{access}|{}", bits(OPEN, rest)),
    }
}

/// Whether a futex's operation waits, and so takes a time.
pub(super) fn futex_waits(operation: u32) -> bool {
    // FUTEX_WAIT, LOCK_PI, WAIT_BITSET, WAIT_REQUEUE_PI, LOCK_PI2
    matches!(operation & 0x7f, 0 | 6 | 9 | 11 | 13)
}

pub(super) const AT_FDCWD: i32 = -100;

/// O_CREAT and __O_TMPFILE.
pub(super) const MAKES_FILE: u64 = 0o100 | 0o20_000_000;

pub(super) const OPEN_ACCESS: Choice =
    Choice { mask: 3, names: &[("O_RDONLY", 0), ("O_WRONLY", 1), ("O_RDWR", 2)] };

pub(super) const OPEN: Names = &[
    ("O_TMPFILE", 0o20_200_000),
    ("O_SYNC", 0o4_010_000),
    ("O_CREAT", 0o100),
    ("O_EXCL", 0o200),
    ("O_NOCTTY", 0o400),
    ("O_TRUNC", 0o1000),
    ("O_APPEND", 0o2000),
    ("O_NONBLOCK", 0o4000),
    ("O_DSYNC", 0o10_000),
    ("O_DIRECT", 0o40_000),
    ("O_LARGEFILE", 0o100_000),
    ("O_DIRECTORY", 0o200_000),
    ("O_NOFOLLOW", 0o400_000),
    ("O_NOATIME", 0o1_000_000),
    ("O_CLOEXEC", 0o2_000_000),
    ("O_PATH", 0o10_000_000),
];

pub(super) const RESOLVE: Names = &[
    ("RESOLVE_NO_XDEV", 1),
    ("RESOLVE_NO_MAGICLINKS", 2),
    ("RESOLVE_NO_SYMLINKS", 4),
    ("RESOLVE_BENEATH", 8),
    ("RESOLVE_IN_ROOT", 0x10),
    ("RESOLVE_CACHED", 0x20),
];

pub(super) const AT: Names = &[
    ("AT_SYMLINK_NOFOLLOW", 0x100),
    ("AT_REMOVEDIR", 0x200),
    ("AT_SYMLINK_FOLLOW", 0x400),
    ("AT_NO_AUTOMOUNT", 0x800),
    ("AT_EMPTY_PATH", 0x1000),
    ("AT_STATX_FORCE_SYNC", 0x2000),
    ("AT_STATX_DONT_SYNC", 0x4000),
];

pub(super) const ACCESS: Names = &[("R_OK", 4), ("W_OK", 2), ("X_OK", 1)];

pub(super) const SEEK: Names =
    &[("SEEK_SET", 0), ("SEEK_CUR", 1), ("SEEK_END", 2), ("SEEK_DATA", 3), ("SEEK_HOLE", 4)];

pub(super) const PROTECTION: Names = &[("PROT_READ", 1), ("PROT_WRITE", 2), ("PROT_EXEC", 4)];

pub(super) const MAPPING: Names = &[
    ("MAP_SHARED_VALIDATE", 3),
    ("MAP_SHARED", 1),
    ("MAP_PRIVATE", 2),
    ("MAP_FIXED", 0x10),
    ("MAP_ANONYMOUS", 0x20),
    ("MAP_32BIT", 0x40),
    ("MAP_GROWSDOWN", 0x100),
    ("MAP_LOCKED", 0x2000),
    ("MAP_NORESERVE", 0x4000),
    ("MAP_POPULATE", 0x8000),
    ("MAP_NONBLOCK", 0x1_0000),
    ("MAP_STACK", 0x2_0000),
    ("MAP_HUGETLB", 0x4_0000),
    ("MAP_SYNC", 0x8_0000),
    ("MAP_FIXED_NOREPLACE", 0x10_0000),
];

pub(super) const ADVICE: Names = &[
    ("MADV_NORMAL", 0),
    ("MADV_RANDOM", 1),
    ("MADV_SEQUENTIAL", 2),
    ("MADV_WILLNEED", 3),
    ("MADV_DONTNEED", 4),
    ("MADV_FREE", 8),
    ("MADV_REMOVE", 9),
    ("MADV_DONTFORK", 10),
    ("MADV_HUGEPAGE", 14),
    ("MADV_NOHUGEPAGE", 15),
    ("MADV_COLD", 20),
    ("MADV_PAGEOUT", 21),
    ("MADV_POPULATE_READ", 22),
    ("MADV_POPULATE_WRITE", 23),
];

pub(super) const FUTEX: Choice = Choice {
    mask: 0x7f,
    names: &[
        ("FUTEX_WAIT", 0),
        ("FUTEX_WAKE", 1),
        ("FUTEX_REQUEUE", 3),
        ("FUTEX_CMP_REQUEUE", 4),
        ("FUTEX_WAKE_OP", 5),
        ("FUTEX_LOCK_PI", 6),
        ("FUTEX_UNLOCK_PI", 7),
        ("FUTEX_TRYLOCK_PI", 8),
        ("FUTEX_WAIT_BITSET", 9),
        ("FUTEX_WAKE_BITSET", 10),
        ("FUTEX_WAIT_REQUEUE_PI", 11),
        ("FUTEX_CMP_REQUEUE_PI", 12),
        ("FUTEX_LOCK_PI2", 13),
    ],
};

pub(super) const FUTEX_FLAGS: Names =
    &[("FUTEX_PRIVATE_FLAG", 0x80), ("FUTEX_CLOCK_REALTIME", 0x100)];

pub(super) const CLOCKS: Names = &[
    ("CLOCK_REALTIME", 0),
    ("CLOCK_MONOTONIC", 1),
    ("CLOCK_PROCESS_CPUTIME_ID", 2),
    ("CLOCK_THREAD_CPUTIME_ID", 3),
    ("CLOCK_MONOTONIC_RAW", 4),
    ("CLOCK_REALTIME_COARSE", 5),
    ("CLOCK_MONOTONIC_COARSE", 6),
    ("CLOCK_BOOTTIME", 7),
];

pub(super) const TIMER_FLAGS: Names = &[("TIMER_ABSTIME", 1)];

pub(super) const POLL_EVENTS: Names = &[
    ("POLLIN", 1),
    ("POLLPRI", 2),
    ("POLLOUT", 4),
    ("POLLERR", 8),
    ("POLLHUP", 0x10),
    ("POLLRDHUP", 0x2000),
];

pub(super) const EPOLL_COMMANDS: Names =
    &[("EPOLL_CTL_ADD", 1), ("EPOLL_CTL_DEL", 2), ("EPOLL_CTL_MOD", 3)];

pub(super) const FAMILIES: Names = &[
    ("AF_UNSPEC", 0),
    ("AF_UNIX", 1),
    ("AF_INET", 2),
    ("AF_INET6", 10),
    ("AF_NETLINK", 16),
    ("AF_PACKET", 17),
    ("AF_ALG", 38),
    ("AF_VSOCK", 40),
];

pub(super) const SOCKETS: Choice = Choice {
    mask: 0xf,
    names: &[
        ("SOCK_STREAM", 1),
        ("SOCK_DGRAM", 2),
        ("SOCK_RAW", 3),
        ("SOCK_RDM", 4),
        ("SOCK_SEQPACKET", 5),
    ],
};

pub(super) const SOCKET_FLAGS: Names = &[("SOCK_NONBLOCK", 0x800), ("SOCK_CLOEXEC", 0x8_0000)];

pub(super) const SOCKET_LEVELS: Names =
    &[("SOL_IP", 0), ("SOL_SOCKET", 1), ("SOL_TCP", 6), ("SOL_UDP", 17), ("SOL_IPV6", 41)];

pub(super) const MESSAGES: Names = &[
    ("MSG_OOB", 1),
    ("MSG_PEEK", 2),
    ("MSG_DONTROUTE", 4),
    ("MSG_TRUNC", 0x20),
    ("MSG_DONTWAIT", 0x40),
    ("MSG_EOR", 0x80),
    ("MSG_WAITALL", 0x100),
    ("MSG_NOSIGNAL", 0x4000),
    ("MSG_MORE", 0x8000),
    ("MSG_CMSG_CLOEXEC", 0x4000_0000),
];

pub(super) const SHUTDOWNS: Names = &[("SHUT_RD", 0), ("SHUT_WR", 1), ("SHUT_RDWR", 2)];

pub(super) const FILE_COMMANDS: Names = &[
    ("F_DUPFD", 0),
    ("F_GETFD", 1),
    ("F_SETFD", 2),
    ("F_GETFL", 3),
    ("F_SETFL", 4),
    ("F_GETLK", 5),
    ("F_SETLK", 6),
    ("F_SETLKW", 7),
    ("F_OFD_SETLK", 37),
    ("F_OFD_SETLKW", 38),
    ("F_DUPFD_CLOEXEC", 1030),
    ("F_SETPIPE_SZ", 1031),
    ("F_GETPIPE_SZ", 1032),
    ("F_ADD_SEALS", 1033),
];

pub(super) const LOCKS: Names = &[("LOCK_SH", 1), ("LOCK_EX", 2), ("LOCK_NB", 4), ("LOCK_UN", 8)];

pub(super) const WAITS: Names = &[
    ("WNOHANG", 1),
    ("WUNTRACED", 2),
    ("WEXITED", 4),
    ("WCONTINUED", 8),
    ("WNOWAIT", 0x100_0000),
    ("__WALL", 0x4000_0000),
];

pub(super) const WAITED: Names = &[("P_ALL", 0), ("P_PID", 1), ("P_PGID", 2), ("P_PIDFD", 3)];

pub(super) const MASKS: Names = &[("SIG_BLOCK", 0), ("SIG_UNBLOCK", 1), ("SIG_SETMASK", 2)];

pub(super) const PIPES: Names =
    &[("O_NONBLOCK", 0o4000), ("O_DIRECT", 0o40_000), ("O_CLOEXEC", 0o2_000_000)];

pub(super) const EVENTFDS: Names =
    &[("EFD_SEMAPHORE", 1), ("EFD_NONBLOCK", 0o4000), ("EFD_CLOEXEC", 0o2_000_000)];

pub(super) const RANDOM: Names = &[("GRND_NONBLOCK", 1), ("GRND_RANDOM", 2), ("GRND_INSECURE", 4)];
