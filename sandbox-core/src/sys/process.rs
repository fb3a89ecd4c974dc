//! What a process does to itself before execve.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use serde::{Deserialize, Serialize};

fn check(result: impl Into<libc::c_long>) -> io::Result<libc::c_long> {
    let result = result.into();
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A null-terminated array of pointers into strings that it borrows.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// execveat(2) of an open file. Returns only on failure.
pub fn execute_descriptor(
    file: BorrowedFd<'_>,
    args: &[CString],
    env: &[CString],
) -> io::Result<Infallible> {
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and point to strings that
    // outlive the call; the path is the empty string that AT_EMPTY_PATH wants.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error())
}

/// execve(2). Returns only on failure.
pub fn execute(path: &CStr, args: &[CString], env: &[CString]) -> io::Result<Infallible> {
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: as in `execute_descriptor`.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// Ends this process at once, running nothing: _exit(2).
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory of ours.
    unsafe { libc::_exit(status) }
}

/// `PR_SET_KEEPCAPS`: permitted capabilities survive the next change of user.
pub fn keep_capabilities(keep: bool) -> io::Result<()> {
    // SAFETY: an integer option with integer arguments.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) })?;
    Ok(())
}

/// `PR_SET_SECUREBITS` with `SECBIT_NO_SETUID_FIXUP`: changes of user leave the
/// capabilities alone (capabilities(7)).
pub fn separate_ids_from_capabilities() -> io::Result<()> {
    const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    // SAFETY: an integer option with integer arguments.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) })?;
    Ok(())
}

/// `PR_SET_DUMPABLE`: whether others of the same user may trace this process
/// and own its `/proc` files.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    // SAFETY: an integer option with integer arguments.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable), 0, 0, 0) })?;
    Ok(())
}

/// `PR_SET_PDEATHSIG` with SIGKILL: this process dies with its parent. A
/// change of credentials clears it, so call it last.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: an integer option with integer arguments.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0) })?;
    Ok(())
}

/// `PR_SET_NO_NEW_PRIVS`.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: an integer option with integer arguments.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    Ok(())
}

/// Loads a seccomp program: seccomp(2), `SECCOMP_SET_MODE_FILTER`.
///
/// `program` holds whole `struct sock_filter`s of eight bytes each.
///
/// # Errors
/// `EINVAL` when the program is no valid one; `EACCES` without
/// no_new_privileges and CAP_SYS_ADMIN.
pub fn load_seccomp(program: &[u8], flags: u32) -> io::Result<()> {
    let length = program.len() / size_of::<libc::sock_filter>();
    let filters: Vec<libc::sock_filter> = program
        .as_chunks::<8>()
        .0
        .iter()
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let header = libc::sock_fprog {
        len: u16::try_from(length).map_err(|_| invalid())?,
        filter: filters.as_ptr().cast_mut(),
    };
    // SAFETY: `header` tells the true length of `filters`, which outlives the
    // call; the kernel only reads it.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const header)
    })?;
    Ok(())
}

/// Joins a new anonymous session keyring: keyctl(2),
/// `KEYCTL_JOIN_SESSION_KEYRING`.
pub fn join_new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<u8>())
    })?;
    Ok(())
}

/// personality(2).
pub fn set_personality(persona: u64) -> io::Result<()> {
    // SAFETY: an integer argument.
    check(unsafe { libc::personality(persona) })?;
    Ok(())
}

/// One resource limit of setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The kernel's `RLIMIT_` number.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// setrlimit(2) by number.
pub fn set_rlimit(limit: Rlimit) -> io::Result<()> {
    let value = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: pid 0 is this process; `value` outlives the call; no old value is asked for.
    check(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, limit.resource, &raw const value, ptr::null::<u8>())
    })?;
    Ok(())
}

/// Attributes of sched_setattr(2), in the kernel's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// Number of the `SCHED_` policy.
    pub policy: u32,
    /// `SCHED_FLAG_` bits.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Static priority.
    pub priority: u32,
    /// Runtime in nanoseconds.
    pub runtime: u64,
    /// Deadline in nanoseconds.
    pub deadline: u64,
    /// Period in nanoseconds.
    pub period: u64,
}

/// sched_setattr(2).
pub fn set_scheduler(wanted: &Scheduler) -> io::Result<()> {
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: wanted.policy,
        flags: wanted.flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
    };
    // SAFETY: `attr` has the layout of the first version of struct sched_attr
    // and says its own size; it outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })?;
    Ok(())
}

/// ioprio_set(2) for this process.
pub fn set_io_priority(value: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: integer arguments.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })?;
    Ok(())
}

/// Makes the terminal this session's controlling one: `TIOCSCTTY`, ioctl_tty(2).
pub fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an integer argument.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// Opens the other end of a pseudo terminal without a path: `TIOCGPTPEER`,
/// ioctl_tty(2).
pub fn open_terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is a set of open flags.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    check(fd)?;
    // SAFETY: a new descriptor that the kernel just returned.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets which of the mounted namespaces a child of this process will be in, or
/// moves this process: setns(2) with a pidfd.
pub fn enter_namespaces_of(process: impl AsFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: setns changes kernel state of this thread only.
    check(unsafe { libc::setns(process.as_fd().as_raw_fd(), flags) })?;
    Ok(())
}

/// A real-time signal by its number, which rustix names none of.
pub fn realtime_signal(number: i32) -> Option<rustix::process::Signal> {
    if !(32..=64).contains(&number) {
        return None;
    }
    // SAFETY: the kernel takes any number up to 64; the ones that libc keeps
    // for itself (32 and 33) are sent to other programs here, which is what
    // kill(2) allows too.
    Some(unsafe { rustix::process::Signal::from_raw_unchecked(number) })
}

/// Number of the pseudo terminal whose master side this is: `TIOCGPTN`,
/// ioctl_tty(2). `ENOTTY` for anything else.
pub fn terminal_number(master: impl AsFd) -> io::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: the kernel stores one unsigned integer there.
    check(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTN, &raw mut number) })?;
    Ok(number)
}

/// Signals as a new program expects them: none blocked, and SIGPIPE with its
/// default action, which Rust's runtime ignores.
pub fn reset_signals() -> io::Result<()> {
    // SAFETY: the default action is no function that could be unsound to call.
    unsafe {
        nix::sys::signal::signal(nix::sys::signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl)
    }?;
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// The PID of a child that has ended and is still to be collected: waitid(2)
/// with `WNOWAIT`. `None` when there is none at the moment or at all.
pub fn ended_child() -> Option<i32> {
    // SAFETY: siginfo_t is plain data, for which zero is valid.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the kernel fills in a siginfo_t that outlives the call.
    while unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) } == -1 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
    // SAFETY: waitid fills in the fields of SIGCHLD, or leaves zero.
    let pid = unsafe { info.si_pid() };
    (pid > 0).then_some(pid)
}

/// Collects a child that has ended: waitpid(2). Returns how it ended as shells
/// tell it: the exit code, or 128 + the signal (which may be a real-time one).
pub fn collect_child(pid: i32) -> Option<u32> {
    let mut status: libc::c_int = 0;
    // SAFETY: the kernel stores one int there.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == -1 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
    let number = match libc::WIFSIGNALED(status) {
        true => 128 + libc::WTERMSIG(status),
        false => libc::WEXITSTATUS(status),
    };
    Some(number.unsigned_abs())
}
