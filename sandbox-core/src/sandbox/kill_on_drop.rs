//! A child of the shim that must not outlive a failure.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// The pidfd of a child, which is killed and reaped on drop, unless it is kept.
#[derive(Debug)]
pub(super) struct KillOnDrop(Option<OwnedFd>);

impl KillOnDrop {
    pub(super) fn new(pidfd: OwnedFd) -> Self {
        Self(Some(pidfd))
    }

    /// Returns the pidfd. The child lives on.
    pub(super) fn keep(mut self) -> OwnedFd {
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
        if let Some(pidfd) = &self.0 {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}
