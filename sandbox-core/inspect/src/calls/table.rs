//! The calls whose arguments are written, and which of them wait. The user log has a table of its
//! own (`sandbox_core::spec::refused`), for those that are refused: what this one lacks is written
//! by that one.

use super::Waits;
use super::names::{self, Choice, Names};

/// How an argument is written.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// An open file.
    File,
    /// An open directory, or the current one.
    Directory,
    /// A signed number.
    Number,
    /// A size: never negative.
    Size,
    /// A position in a file.
    Offset,
    /// Where something is in memory.
    Address,
    /// A value with a name.
    Name(Names),
    /// Bits with names.
    Bits(Names),
    /// A value with a name, and bits.
    Choice(Choice, Names),
    /// The permissions of a file.
    Mode,
    /// The permissions of a file, if the call makes one: the number of the argument that says so.
    ModeOfNew(usize),
    /// A signal.
    Signal,
    /// A string: a path, mostly.
    Text,
    /// What is written: the number of the argument that is its size.
    Content(usize),
    /// A list of strings.
    Texts,
    /// A socket's address: the number of the argument that is its size.
    SocketAddress(usize),
    /// A time.
    Time,
    /// Files that are waited for: the number of the argument that is their number.
    Polled(usize),
    /// A futex.
    Futex,
    /// The time that a futex is waited for.
    FutexTime,
    /// `struct open_how`.
    How,
}

use Kind::{
    Address, Bits, Content, Directory, File, Futex, FutexTime, How, Mode, ModeOfNew, Name, Number,
    Offset, Polled, Signal, Size, SocketAddress, Text, Texts, Time,
};

/// The arguments of a call: their names and kinds.
type Parameters = &'static [(&'static str, Kind)];

const OPEN: Kind = Kind::Choice(names::OPEN_ACCESS, names::OPEN);
const SOCKET: Kind = Kind::Choice(names::SOCKETS, names::SOCKET_FLAGS);
const FUTEX: Kind = Kind::Choice(names::FUTEX, names::FUTEX_FLAGS);

/// Returns the arguments of a call that is in the table.
pub(super) fn parameters(name: &str) -> Option<Parameters> {
    CALLS.iter().find(|(names, _)| names.contains(&name)).map(|(_, parameters)| *parameters)
}

/// Returns what a call waits for, if it can wait for long.
pub(super) fn waits(name: &str) -> Option<Waits> {
    WAITS.iter().find(|(names, _)| names.contains(&name)).map(|(_, waits)| *waits)
}

const WAITS: &[(&[&str], Waits)] = &[
    (
        &[
            "accept", "accept4", "connect", "recvfrom", "recvmsg", "recvmmsg", "sendto", "sendmsg",
            "sendmmsg",
        ],
        Waits::Network,
    ),
    (
        &[
            "poll",
            "ppoll",
            "select",
            "pselect6",
            "epoll_wait",
            "epoll_pwait",
            "epoll_pwait2",
            "io_uring_enter",
            "io_getevents",
        ],
        Waits::Readiness,
    ),
    (
        &[
            "read",
            "write",
            "readv",
            "writev",
            "pread64",
            "pwrite64",
            "preadv",
            "pwritev",
            "preadv2",
            "pwritev2",
            "splice",
            "tee",
            "vmsplice",
            "sendfile",
            "open",
            "openat",
            "openat2",
            "close",
            "flock",
            "fcntl",
            "getdents64",
            "ioctl",
        ],
        Waits::File,
    ),
    (&["fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync"], Waits::Disk),
    (&["futex", "futex_wait", "futex_waitv", "semop", "semtimedop"], Waits::Lock),
    (&["nanosleep", "clock_nanosleep"], Waits::Time),
    (&["wait4", "waitid", "vfork"], Waits::Process),
    (&["pause", "rt_sigsuspend", "rt_sigtimedwait"], Waits::Signal),
];

const CALLS: &[(&[&str], Parameters)] = &[
    // Files
    (&["read"], &[("fd", File), ("buffer", Address), ("size", Size)]),
    (&["write"], &[("fd", File), ("buffer", Content(2)), ("size", Size)]),
    (&["pread64"], &[("fd", File), ("buffer", Address), ("size", Size), ("offset", Offset)]),
    (&["pwrite64"], &[("fd", File), ("buffer", Content(2)), ("size", Size), ("offset", Offset)]),
    (&["readv", "writev"], &[("fd", File), ("vectors", Address), ("count", Size)]),
    (&["open"], &[("path", Text), ("flags", OPEN), ("mode", ModeOfNew(1))]),
    (
        &["openat"],
        &[("directory", Directory), ("path", Text), ("flags", OPEN), ("mode", ModeOfNew(2))],
    ),
    (&["openat2"], &[("directory", Directory), ("path", Text), ("how", How), ("size", Size)]),
    (&["creat", "mkdir", "chmod"], &[("path", Text), ("mode", Mode)]),
    (&["close", "fsync", "fdatasync", "syncfs", "dup", "fchdir"], &[("fd", File)]),
    (&["dup2"], &[("fd", File), ("new", Number)]),
    (&["dup3"], &[("fd", File), ("new", Number), ("flags", Bits(names::PIPES))]),
    (&["lseek"], &[("fd", File), ("offset", Offset), ("from", Name(names::SEEK))]),
    (&["stat", "lstat", "statfs"], &[("path", Text), ("result", Address)]),
    (&["fstat", "fstatfs"], &[("fd", File), ("result", Address)]),
    (
        &["newfstatat"],
        &[
            ("directory", Directory),
            ("path", Text),
            ("result", Address),
            ("flags", Bits(names::AT)),
        ],
    ),
    (
        &["statx"],
        &[
            ("directory", Directory),
            ("path", Text),
            ("flags", Bits(names::AT)),
            ("mask", Size),
            ("result", Address),
        ],
    ),
    (&["access"], &[("path", Text), ("mode", Bits(names::ACCESS))]),
    (
        &["faccessat", "faccessat2"],
        &[
            ("directory", Directory),
            ("path", Text),
            ("mode", Bits(names::ACCESS)),
            ("flags", Bits(names::AT)),
        ],
    ),
    (&["chdir", "rmdir", "unlink", "chroot"], &[("path", Text)]),
    (&["unlinkat"], &[("directory", Directory), ("path", Text), ("flags", Bits(names::AT))]),
    (&["mkdirat", "fchmodat"], &[("directory", Directory), ("path", Text), ("mode", Mode)]),
    (&["rename", "link", "symlink"], &[("old", Text), ("new", Text)]),
    (
        &["renameat", "renameat2", "linkat"],
        &[("old directory", Directory), ("old", Text), ("new directory", Directory), ("new", Text)],
    ),
    (&["readlink"], &[("path", Text), ("buffer", Address), ("size", Size)]),
    (
        &["readlinkat"],
        &[("directory", Directory), ("path", Text), ("buffer", Address), ("size", Size)],
    ),
    (&["chown", "lchown"], &[("path", Text), ("user", Number), ("group", Number)]),
    (&["fchown"], &[("fd", File), ("user", Number), ("group", Number)]),
    (&["fchmod"], &[("fd", File), ("mode", Mode)]),
    (&["truncate"], &[("path", Text), ("size", Size)]),
    (&["ftruncate"], &[("fd", File), ("size", Size)]),
    (&["fallocate"], &[("fd", File), ("mode", Number), ("offset", Offset), ("size", Size)]),
    (&["getdents64"], &[("fd", File), ("buffer", Address), ("size", Size)]),
    (&["flock"], &[("fd", File), ("operation", Bits(names::LOCKS))]),
    (&["fcntl"], &[("fd", File), ("command", Name(names::FILE_COMMANDS)), ("argument", Address)]),
    (&["sendfile"], &[("to", File), ("from", File), ("offset", Address), ("size", Size)]),
    (
        &["splice"],
        &[
            ("from", File),
            ("from offset", Address),
            ("to", File),
            ("to offset", Address),
            ("size", Size),
        ],
    ),
    (&["pipe"], &[("fds", Address)]),
    (&["pipe2"], &[("fds", Address), ("flags", Bits(names::PIPES))]),
    (&["eventfd2"], &[("value", Size), ("flags", Bits(names::EVENTFDS))]),
    // Memory
    (
        &["mmap"],
        &[
            ("address", Address),
            ("size", Size),
            ("protection", Bits(names::PROTECTION)),
            ("flags", Bits(names::MAPPING)),
            ("fd", File),
            ("offset", Offset),
        ],
    ),
    (
        &["mprotect"],
        &[("address", Address), ("size", Size), ("protection", Bits(names::PROTECTION))],
    ),
    (&["munmap"], &[("address", Address), ("size", Size)]),
    (&["madvise"], &[("address", Address), ("size", Size), ("advice", Name(names::ADVICE))]),
    (&["mremap"], &[("address", Address), ("size", Size), ("new size", Size), ("flags", Size)]),
    (&["brk"], &[("address", Address)]),
    // Waiting
    (&["futex"], &[("futex", Futex), ("operation", FUTEX), ("value", Number), ("time", FutexTime)]),
    (&["nanosleep"], &[("time", Time), ("left", Address)]),
    (
        &["clock_nanosleep"],
        &[
            ("clock", Name(names::CLOCKS)),
            ("flags", Bits(names::TIMER_FLAGS)),
            ("time", Time),
            ("left", Address),
        ],
    ),
    (&["clock_gettime"], &[("clock", Name(names::CLOCKS)), ("result", Address)]),
    (&["poll"], &[("files", Polled(1)), ("count", Size), ("milliseconds", Number)]),
    (&["ppoll"], &[("files", Polled(1)), ("count", Size), ("time", Time)]),
    (
        &["select"],
        &[
            ("highest", Number),
            ("read", Address),
            ("write", Address),
            ("except", Address),
            ("time", Address),
        ],
    ),
    (
        &["pselect6"],
        &[
            ("highest", Number),
            ("read", Address),
            ("write", Address),
            ("except", Address),
            ("time", Time),
        ],
    ),
    (
        &["epoll_wait", "epoll_pwait"],
        &[("epoll", File), ("events", Address), ("count", Size), ("milliseconds", Number)],
    ),
    (&["epoll_pwait2"], &[("epoll", File), ("events", Address), ("count", Size), ("time", Time)]),
    (
        &["epoll_ctl"],
        &[
            ("epoll", File),
            ("command", Name(names::EPOLL_COMMANDS)),
            ("fd", File),
            ("event", Address),
        ],
    ),
    (&["io_uring_enter"], &[("ring", File), ("submit", Size), ("complete", Size), ("flags", Size)]),
    // Sockets
    (
        &["socket", "socketpair"],
        &[("family", Name(names::FAMILIES)), ("type", SOCKET), ("protocol", Number)],
    ),
    (&["connect", "bind"], &[("socket", File), ("address", SocketAddress(2))]),
    (&["listen"], &[("socket", File), ("backlog", Number)]),
    (&["accept"], &[("socket", File), ("address", Address)]),
    (
        &["accept4"],
        &[
            ("socket", File),
            ("address", Address),
            ("size", Address),
            ("flags", Bits(names::SOCKET_FLAGS)),
        ],
    ),
    (
        &["sendto"],
        &[
            ("socket", File),
            ("buffer", Content(2)),
            ("size", Size),
            ("flags", Bits(names::MESSAGES)),
            ("address", SocketAddress(5)),
        ],
    ),
    (
        &["recvfrom"],
        &[
            ("socket", File),
            ("buffer", Address),
            ("size", Size),
            ("flags", Bits(names::MESSAGES)),
            ("address", Address),
        ],
    ),
    (
        &["sendmsg", "recvmsg"],
        &[("socket", File), ("message", Address), ("flags", Bits(names::MESSAGES))],
    ),
    (
        &["sendmmsg", "recvmmsg"],
        &[
            ("socket", File),
            ("messages", Address),
            ("count", Size),
            ("flags", Bits(names::MESSAGES)),
        ],
    ),
    (&["shutdown"], &[("socket", File), ("how", Name(names::SHUTDOWNS))]),
    (&["getsockname", "getpeername"], &[("socket", File), ("address", Address)]),
    (
        &["getsockopt"],
        &[("socket", File), ("level", Name(names::SOCKET_LEVELS)), ("option", Number)],
    ),
    // Processes and signals
    (&["execve"], &[("path", Text), ("arguments", Texts)]),
    (&["execveat"], &[("directory", Directory), ("path", Text), ("arguments", Texts)]),
    (&["clone3"], &[("arguments", Address), ("size", Size)]),
    (&["exit", "exit_group"], &[("status", Number)]),
    (&["wait4"], &[("pid", Number), ("status", Address), ("options", Bits(names::WAITS))]),
    (
        &["waitid"],
        &[
            ("which", Name(names::WAITED)),
            ("id", Number),
            ("result", Address),
            ("options", Bits(names::WAITS)),
        ],
    ),
    (&["kill", "tkill"], &[("pid", Number), ("signal", Signal)]),
    (&["tgkill"], &[("process", Number), ("thread", Number), ("signal", Signal)]),
    (&["pidfd_send_signal"], &[("pidfd", File), ("signal", Signal)]),
    (&["rt_sigaction"], &[("signal", Signal), ("action", Address), ("old", Address)]),
    (&["rt_sigprocmask"], &[("how", Name(names::MASKS)), ("set", Address), ("old", Address)]),
    (&["rt_sigsuspend", "rt_sigtimedwait"], &[("set", Address)]),
    (&["getrandom"], &[("buffer", Address), ("size", Size), ("flags", Bits(names::RANDOM))]),
    (
        &[
            "getpid",
            "getppid",
            "gettid",
            "getuid",
            "geteuid",
            "getgid",
            "getegid",
            "sched_yield",
            "pause",
            "vfork",
            "fork",
            "sync",
            "rt_sigreturn",
            "restart_syscall",
            "setsid",
        ],
        &[],
    ),
];
