//! System calls that a process makes on itself before execve.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::fcntl::AtFlags;
use nix::unistd::{Gid, Uid, execve, execveat, seteuid, setfsuid, setgroups, setresgid, setresuid};
use rustix::process::{
    DumpableBehavior, Signal, WaitOptions, set_dumpable_behavior, set_parent_process_death_signal,
};
use rustix::thread::{
    CapabilitiesSecureBits, capabilities, capabilities_secure_bits,
    configure_capability_in_ambient_set, set_capabilities, set_capabilities_secure_bits,
};
use serde::{Deserialize, Serialize};

use super::check;

/// Executes an open file: execveat(2). Returns only on failure.
pub fn execute_descriptor(
    file: BorrowedFd<'_>,
    args: &[CString],
    env: &[CString],
) -> io::Result<Infallible> {
    Ok(execveat(file, c"", args, env, AtFlags::AT_EMPTY_PATH)?)
}

/// Executes a file: execve(2). Returns only on failure.
pub fn execute(path: &CStr, args: &[CString], env: &[CString]) -> io::Result<Infallible> {
    Ok(execve(path, args, env)?)
}

/// Becomes user and group 0 of this process's user namespace, in no other group.
pub fn become_root() -> io::Result<()> {
    become_user(0, 0)
}

/// Becomes a user and a group of this process's user namespace, in no other group.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let of = |call: &'static str| {
        move |e: nix::Error| io::Error::new(io::Error::from(e).kind(), format!("{call}: {e}"))
    };
    setgroups(&[]).map_err(of("setgroups"))?;
    let gid = Gid::from_raw(gid);
    setresgid(gid, gid, gid).map_err(of("setresgid"))?;
    let uid = Uid::from_raw(uid);
    setresuid(uid, uid, uid).map_err(of("setresuid"))
}

/// Lets this process keep its capabilities over execve, whatever its user: as inheritable
/// and ambient ones, capabilities(7).
pub fn keep_capabilities_over_execve() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.inheritable = sets.permitted;
    set_capabilities(None, sets)?;
    for capability in sets.permitted.iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// Ends this process at once, without exit handlers: _exit(2).
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory of ours.
    unsafe { libc::_exit(status) }
}

/// Keeps the capabilities in changes of user: `PR_SET_SECUREBITS` with
/// `SECBIT_NO_SETUID_FIXUP`, capabilities(7).
pub fn separate_ids_from_capabilities() -> io::Result<()> {
    Ok(set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?)
}

/// Sets whether other processes of the same user may trace this process and own its
/// `/proc` files: `PR_SET_DUMPABLE`.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    let behavior =
        if dumpable { DumpableBehavior::Dumpable } else { DumpableBehavior::NotDumpable };
    Ok(set_dumpable_behavior(behavior)?)
}

/// This process, which is root, as another effective user that keeps root's capabilities and,
/// for files, is still root (setfsuid(2)).
/// Dropping this value makes it root again.
#[derive(Debug)]
pub struct EffectiveUser {
    securebits: CapabilitiesSecureBits,
}

impl EffectiveUser {
    /// Takes the effective user.
    pub fn begin(uid: u32) -> io::Result<Self> {
        let this = Self { securebits: capabilities_secure_bits()? };
        separate_ids_from_capabilities()?;
        seteuid(Uid::from_raw(uid))?;
        // For files it stays root, until this ends or a child takes a user.
        setfsuid(Uid::from_raw(0));
        Ok(this)
    }
}

impl Drop for EffectiveUser {
    fn drop(&mut self) {
        // The real and the saved user are root's, so neither can fail. A change of user makes a
        // process not dumpable.
        let _ = seteuid(Uid::from_raw(0));
        let _ = set_capabilities_secure_bits(self.securebits);
        let _ = set_dumpable(true);
    }
}

/// Sets whether orphans below this process become its children: `PR_SET_CHILD_SUBREAPER`.
pub fn set_child_subreaper(wanted: bool) -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(wanted)?)
}

/// Makes this process die with its parent: `PR_SET_PDEATHSIG` with SIGKILL. A change
/// of credentials clears this, so call it last.
pub fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// The flag `SECCOMP_FILTER_FLAG_TSYNC`: the program binds all threads, which the kernel takes
/// only without a listener.
pub const SECCOMP_TSYNC: u32 = 1 << 0;

/// The flag `SECCOMP_FILTER_FLAG_SPEC_ALLOW`: the program switches no mitigation of
/// speculation on.
pub const SECCOMP_SPEC_ALLOW: u32 = 1 << 2;

/// The flag `SECCOMP_FILTER_FLAG_NEW_LISTENER`: loading the program makes a listener.
pub const SECCOMP_NEW_LISTENER: u32 = 1 << 3;

/// Loads a seccomp program: seccomp(2), `SECCOMP_SET_MODE_FILTER`. Returns its listener, if
/// the flags ask for one.
///
/// `program` holds whole `struct sock_filter`s of eight bytes each.
///
/// # Errors
/// `EINVAL` if the program is not valid; `EACCES` without
/// no_new_privileges and CAP_SYS_ADMIN.
pub fn load_seccomp(program: &[u8], flags: u32) -> io::Result<Option<OwnedFd>> {
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
    // SAFETY: `header` has the true length of `filters`, which outlives the
    // call; the kernel only reads it.
    let loaded = check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const header)
    })?;
    let listens = flags & SECCOMP_NEW_LISTENER != 0;
    // SAFETY: with this flag the kernel returns a new descriptor that nothing else owns.
    Ok(listens.then(|| unsafe { OwnedFd::from_raw_fd(loaded as RawFd) }))
}

/// Joins the session keyring of this name among those of this process's user namespace,
/// or a new one if there is none that this process may search. Returns its serial number:
/// keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`.
pub fn join_session_keyring(name: &CStr) -> io::Result<i32> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: `name` ends with a NUL byte and outlives the call.
    let serial =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    Ok(check(serial)? as i32)
}

/// Sets the permissions of a key: keyctl(2), `KEYCTL_SETPERM`.
pub fn set_key_permissions(serial: i32, permissions: u32) -> io::Result<()> {
    const KEYCTL_SETPERM: libc::c_int = 5;
    // SAFETY: integer arguments.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, serial, permissions) })?;
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

/// The names of the kernel's resources, by their number.
const RESOURCES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

impl Rlimit {
    /// Returns the name of its resource.
    pub fn name(&self) -> &'static str {
        RESOURCES.get(self.resource as usize).copied().unwrap_or("an unknown limit")
    }
}

/// Sets a resource limit of this process: prlimit(2).
pub fn set_rlimit(limit: Rlimit) -> io::Result<()> {
    set_rlimit_of(0, limit)
}

/// Sets a resource limit of a process, or of this one for 0: prlimit(2).
pub fn set_rlimit_of(pid: i32, limit: Rlimit) -> io::Result<()> {
    let value = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
    let none = ptr::null::<u8>();
    // SAFETY: `value` outlives the call; no old value is asked for.
    check(unsafe {
        libc::syscall(libc::SYS_prlimit64, pid, limit.resource, &raw const value, none)
    })?;
    Ok(())
}

/// Returns a resource limit of a process, or of this one for 0: prlimit(2).
pub fn rlimit_of(pid: i32, resource: u32) -> io::Result<Rlimit> {
    let mut value = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let none = ptr::null::<u8>();
    // SAFETY: no new value is given; the kernel writes the old one to `value`.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, none, &raw mut value) })?;
    Ok(Rlimit { resource, soft: value.rlim_cur, hard: value.rlim_max })
}

/// Returns all resource limits of this process.
pub fn own_rlimits() -> io::Result<Vec<Rlimit>> {
    (0..).take(RESOURCES.len()).map(|resource| rlimit_of(0, resource)).collect()
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

impl Scheduler {
    /// Returns the limit with which a process without CAP_SYS_NICE may set this: sched(7),
    /// getrlimit(2). `None` if any process may, or none may.
    pub fn limit(&self) -> Option<Rlimit> {
        let (resource, value) = match self.policy as i32 {
            libc::SCHED_FIFO | libc::SCHED_RR => (libc::RLIMIT_RTPRIO, self.priority.into()),
            libc::SCHED_OTHER | libc::SCHED_BATCH if self.nice < 0 => {
                (libc::RLIMIT_NICE, u64::from((20 - self.nice).unsigned_abs()))
            }
            _ => return None,
        };
        Some(Rlimit { resource, soft: value, hard: value })
    }
}

/// Sets this process's scheduling: sched_setattr(2).
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
    // with its own size in it; it outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })?;
    Ok(())
}

/// Sets this process's I/O priority: ioprio_set(2).
pub fn set_io_priority(value: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: integer arguments.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })?;
    Ok(())
}

/// The highest CPU number that an affinity may name: the kernel's `NR_CPUS` is never above
/// 8192.
pub const MAX_CPU: u32 = 8191;

/// Sets the CPUs that this process may run on: sched_setaffinity(2). The kernel leaves out
/// those that the machine or the process's cpuset does not have.
pub fn set_cpu_affinity(cpus: impl IntoIterator<Item = u32>) -> io::Result<()> {
    let mut mask = [0u8; (MAX_CPU as usize + 1) / 8];
    for cpu in cpus.into_iter().filter(|cpu| *cpu <= MAX_CPU) {
        mask[cpu as usize / 8] |= 1 << (cpu % 8);
    }
    // SAFETY: `mask` has the given length and outlives the call, which reads it. Bit n of
    // the kernel's mask is bit n % 8 of byte n / 8 on a little-endian machine.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, mask.len(), mask.as_ptr()) })?;
    Ok(())
}

/// Returns the CPUs that a thread may run on, as the kernel writes them for a buffer of `length`
/// bytes: sched_getaffinity(2).
///
/// # Errors
/// `EINVAL` where the kernel does not take a buffer of this length; `ESRCH` if there is no such
/// thread.
pub fn cpu_affinity(thread: i32, length: u32) -> io::Result<Vec<u8>> {
    let mut mask = vec![0u8; (length as usize).min((MAX_CPU as usize + 1) / 8)];
    // SAFETY: `mask` has the given length and outlives the call, which writes it.
    let written = check(unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, thread, mask.len(), mask.as_mut_ptr())
    })?;
    mask.truncate(usize::try_from(written).unwrap_or(0));
    Ok(mask)
}

/// The arguments of set_mempolicy(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// An `MPOL_` mode with `MPOL_F_` flags.
    pub mode: i32,
    /// Numbers of the memory nodes.
    pub nodes: Vec<u32>,
}

/// The highest number of a memory node that a policy may name: the kernel's `MAX_NUMNODES`
/// is never above 1024.
pub const MAX_NODE: u32 = 1023;

/// Sets the memory policy of this process and of what it executes and clones:
/// set_mempolicy(2).
pub fn set_memory_policy(policy: &MemoryPolicy) -> io::Result<()> {
    const BITS: usize = MAX_NODE as usize + 1;
    let mut mask = [0u64; BITS / 64];
    for node in policy.nodes.iter().filter(|node| **node <= MAX_NODE) {
        mask[*node as usize / 64] |= 1 << (node % 64);
    }
    // A node beyond those that the kernel was built for is an error, but a shorter mask
    // without it is not.
    let (mask, bits) = match policy.nodes.is_empty() {
        true => (ptr::null(), 0),
        // The kernel takes one bit less than it is told.
        false => (mask.as_ptr(), BITS + 1),
    };
    // SAFETY: `mask` is null with length 0, or has the given number of bits and outlives the
    // call, which reads whole words of it: the last bit that counts is its last one.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, policy.mode, mask, bits) })?;
    Ok(())
}

/// Sets signals as a new program expects them: none blocked, and SIGPIPE, which Rust's
/// runtime ignores, with its default action.
pub fn reset_signals() -> io::Result<()> {
    // SAFETY: the default action is no function that could be unsound to call.
    unsafe {
        nix::sys::signal::signal(nix::sys::signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl)
    }?;
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Gives every signal its default action, and blocks none, whatever this process inherited.
pub fn forget_inherited_signals() -> io::Result<()> {
    /// The highest signal number.
    const LAST: i32 = 64;
    /// The kernel's own struct, of which libc keeps the numbers 32 and 33 for itself.
    #[repr(C)]
    struct KernelAction {
        handler: usize,
        flags: u64,
        restorer: usize,
        mask: u64,
    }
    let default = KernelAction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    for signal in (1..=LAST).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
        // SAFETY: `default` outlives the call and has the layout of the kernel's struct; the
        // default action runs no code of ours; no old action is asked for; 8 is the size of
        // the kernel's signal set.
        check(unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                ptr::null::<u8>(),
                size_of::<u64>(),
            )
        })?;
    }
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Returns the PID of a child that has ended and is not collected yet: waitid(2) with
/// `WNOWAIT`. `None` if there is none.
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

/// Collects a child that has ended: waitpid(2). Returns its status as shells give it:
/// the exit code, or 128 + the signal (which may be a real-time one).
pub fn collect_child(pid: i32) -> Option<u32> {
    let pid = rustix::process::Pid::from_raw(pid)?;
    let (_, status) = loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
            Err(rustix::io::Errno::INTR) => continue,
            other => break other.ok().flatten()?,
        }
    };
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    signal.or(status.exit_status()).map(i32::unsigned_abs)
}

/// Makes a system call with these arguments, of which the kernel knows no such number: syscall(2).
#[cfg(test)]
pub(crate) fn unknown_system_call(number: u32, arguments: [u64; 6]) -> io::Result<i64> {
    assert!((1024..1 << 30).contains(&number), "a system call of this number may exist");
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: no system call has such a number.
    check(unsafe { libc::syscall(number.into(), a, b, c, d, e, f) })
}

/// Calls sched_getaffinity(2) for an address at which it can have no effect on this program.
#[cfg(test)]
pub(crate) fn affinity_at(length: u64, address: u64) -> io::Result<i64> {
    // SAFETY: the tests only pass addresses where this process has no memory, or may not write.
    check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, length, address) })
}

/// Makes a system call with all arguments zero: syscall(2).
#[cfg(test)]
pub(crate) fn system_call(number: i64) -> io::Result<i64> {
    // SAFETY: the tests only pass numbers of calls that read no memory of this
    // process when their arguments are null pointers, or that do not exist.
    check(unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) })
}
