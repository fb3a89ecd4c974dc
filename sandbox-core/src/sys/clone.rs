//! clone3(2), used as a fork into namespaces.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sched::CloneFlags;

/// Proof that this process has one thread. Only then is it sound to use the heap and
/// locks in a forked child: no other thread can have held them.
#[derive(Debug)]
pub struct SingleThreaded(());

impl SingleThreaded {
    /// Counts this process's threads: the link count of `/proc/self/task` is their number
    /// plus two (proc(5)).
    pub fn prove() -> io::Result<Self> {
        let threads = rustix::fs::stat("/proc/self/task")?.st_nlink.saturating_sub(2);
        match threads {
            1 => Ok(Self(())),
            n => Err(io::Error::other(format!(
                "this process has {n} threads and may only be cloned with one"
            ))),
        }
    }

    /// Makes a proof for a unit test, whose harness has one more thread, which waits.
    /// Only for children that take no lock.
    #[cfg(test)]
    pub(crate) fn in_a_test() -> Self {
        Self(())
    }
}

/// The side of a clone on which the call returns.
#[derive(Debug)]
pub enum Cloned {
    /// The caller.
    Parent {
        /// The child's ID in the caller's PID namespace.
        pid: i32,
        /// The child's pidfd, close-on-exec.
        pidfd: OwnedFd,
    },
    /// The new process.
    Child,
}

/// Forks into the new namespaces that `flags` name and, on cgroup v2, directly into
/// the cgroup with the given directory. The child starts with default signal
/// dispositions. clone(2), clone3.
pub fn clone_into(
    proof: &SingleThreaded,
    flags: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Cloned> {
    clone_with(proof, flags, cgroup, libc::SIGCHLD)
}

/// Forks a sibling into the new namespaces that `flags` name: a child of this process's parent,
/// which gets the same signal at its end (clone(2), `CLONE_PARENT`).
pub fn clone_sibling(proof: &SingleThreaded, flags: CloneFlags) -> io::Result<Cloned> {
    clone_with(proof, flags | CloneFlags::CLONE_PARENT, None, 0)
}

fn clone_with(
    _proof: &SingleThreaded,
    flags: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
    exit_signal: libc::c_int,
) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // The flags are bits: NEWNS and others fit an int, INTO_CGROUP does not.
    let mut bits = u64::from(flags.bits() as u32) | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    if cgroup.is_some() {
        bits |= CLONE_INTO_CGROUP;
    }
    let args = libc::clone_args {
        flags: bits,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: exit_signal as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: without CLONE_VM the child gets a copy of this address space, and
    // with no other thread (the proof) nothing in it is in mid-change. `args`
    // and `pidfd` outlive the call; no stack is given, so the child returns
    // here on its copy of this one.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, mem::size_of_val(&args)) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: pid as i32,
            // SAFETY: the kernel stored a new descriptor there that nothing else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
