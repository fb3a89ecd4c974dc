//! Child processes that belong to a value.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sched::CloneFlags;
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::clone::{Cloned, SingleThreaded, clone_into};
use super::process::{die_with_parent, exit_now, reset_signals};

/// The pidfd of a child, which is killed and collected on drop, unless it is kept.
#[derive(Debug)]
pub struct KillOnDrop(Option<OwnedFd>);

impl KillOnDrop {
    /// Takes the pidfd of a child that nothing else collects.
    pub fn new(pidfd: OwnedFd) -> Self {
        Self(Some(pidfd))
    }

    /// Returns the pidfd. The child lives on.
    pub fn keep(mut self) -> OwnedFd {
        self.0.take().expect("it is taken by this alone, which consumes the value")
    }
}

impl AsFd for KillOnDrop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("it is taken by keep alone, which consumes the value").as_fd()
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some(pidfd) = &self.0 else { return };
        // Neither can fail on a child that nothing else collects.
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
        let exited = WaitIdOptions::EXITED;
        while let Err(Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), exited) {}
    }
}

/// A child process. Killed and collected on drop; it dies with its parent as
/// well.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: KillOnDrop,
}

impl Child {
    /// Clones a child into new namespaces, for `work` and nothing else.
    pub fn run(
        proof: &SingleThreaded,
        namespaces: CloneFlags,
        work: impl FnOnce(),
    ) -> io::Result<Self> {
        let parent = rustix::process::getpid();
        match clone_into(proof, namespaces, None)? {
            Cloned::Parent { pid, pidfd } => Ok(Self { pid, pidfd: KillOnDrop::new(pidfd) }),
            Cloned::Child => {
                // The child must never return into its copy of the caller.
                let work = AssertUnwindSafe(|| {
                    // The parent may have died before the child asked for the
                    // signal. In a PID namespace of its own the child sees no
                    // parent at all.
                    let orphan = || rustix::process::getppid().is_some_and(|p| p != parent);
                    if die_with_parent().is_ok() && !orphan() {
                        work();
                    }
                });
                exit_now(catch_unwind(work).map_or(101, |()| 0))
            }
        }
    }

    /// Clones a child into new namespaces that does nothing but exist. It keeps
    /// no descriptor of its parent's open and blocks no signal.
    pub fn idle(proof: &SingleThreaded, namespaces: CloneFlags) -> io::Result<Self> {
        Self::run(proof, namespaces, || {
            // The child exists even if this fails.
            let _ = reset_signals();
            close_all();
            loop {
                rustix::event::pause();
            }
        })
    }

    /// Returns its ID in the caller's PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

impl AsFd for Child {
    /// Returns its pidfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Closes all descriptors of a process that then only waits to be killed.
fn close_all() {
    // SAFETY: the only caller uses and drops no descriptor after this: it waits
    // for ever, and a panic there is impossible.
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The child waits all the same: no lock that the harness's other thread
    /// may hold is asked for on the way.
    #[test]
    fn an_idle_child_holds_nothing_and_ends_with_its_value() {
        let child = Child::idle(&SingleThreaded::in_a_test(), CloneFlags::empty()).unwrap();
        let descriptors = format!("/proc/{}/fd", child.pid());
        while std::fs::read_dir(&descriptors).unwrap().next().is_some() {
            std::thread::yield_now();
        }
        drop(child);
        assert!(!std::path::Path::new(&descriptors).exists());
    }
}
