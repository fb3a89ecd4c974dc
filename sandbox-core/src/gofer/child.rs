//! Forked children, for the few steps that need another namespace. The gofer
//! has one thread, which each fork proves again.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::control::packet::{Received, receive_packet, send_packet};
use crate::error::{Context, Error, Failure, Result};
use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
use crate::sys::process::{die_with_parent, exit_now};

/// A child process, which is killed and reaped on drop.
pub(super) struct Child {
    pid: i32,
    pidfd: OwnedFd,
}

impl Child {
    /// Clones a child in new namespaces that does nothing but exist.
    pub(super) fn parked(flags: libc::c_int) -> Result<Self> {
        Self::run(flags, || {
            loop {
                rustix::event::pause();
            }
        })
    }

    /// Returns its ID in the gofer's PID namespace.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    fn run(flags: libc::c_int, work: impl FnOnce()) -> Result<Self> {
        let proof = SingleThreaded::prove().context(|| "counting threads")?;
        let parent = rustix::process::getpid();
        match clone_into(&proof, flags, None).context(|| "clone3")? {
            Cloned::Parent { pid, pidfd } => Ok(Self { pid, pidfd }),
            Cloned::Child => {
                // The child must never return into its copy of the caller.
                let work = AssertUnwindSafe(|| {
                    // The parent may have died before this call. In its own PID
                    // namespace the child sees no parent at all.
                    let orphan = || rustix::process::getppid().is_some_and(|p| p != parent);
                    if die_with_parent().is_ok() && !orphan() {
                        work();
                    }
                });
                exit_now(catch_unwind(work).map_or(101, |()| 0))
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Neither can fail, since only we reap this child.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let exited = WaitIdOptions::EXITED;
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), exited)
        {}
    }
}

/// Runs `work` in a child in new namespaces (`CLONE_NEW*`) and returns the
/// descriptor that it makes.
pub(super) fn made_in_child(
    flags: libc::c_int,
    work: impl FnOnce() -> Result<OwnedFd>,
) -> Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .context(|| "socketpair")?;
    let child = Child::run(flags, || report(&theirs, work()))?;
    // So that the child's death closes the channel.
    drop(theirs);
    let received = receive_packet(&ours, 64 * 1024, 1).context(|| "receiving from a child")?;
    drop(child);
    match received {
        Received::Packet { fds, bytes, .. } if bytes.is_empty() => fds
            .take()
            .pop()
            .ok_or_else(|| Error::internal("a child of the gofer sent no descriptor")),
        Received::Packet { bytes, .. } => Err(postcard::from_bytes::<Failure>(&bytes)
            .map_or_else(|e| Error::internal(format!("a child of the gofer: {e}")), Error::from)),
        Received::Closed | Received::WouldBlock => {
            Err(Error::internal("a child of the gofer died without a report"))
        }
    }
}

/// Sends an empty packet with a descriptor, or a [`Failure`].
fn report(socket: &OwnedFd, outcome: Result<OwnedFd>) {
    // The parent may be gone.
    let _ = match outcome {
        Ok(fd) => send_packet(socket, &[], &[fd.as_fd()]),
        Err(error) => {
            let bytes = postcard::to_stdvec(&Failure::from(error)).unwrap_or_default();
            send_packet(socket, &bytes, &[])
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    // The test harness has more than one thread, so the children refuse to be
    // made. The gofer tests of the executable cover the rest.
    #[test]
    fn no_child_is_forked_from_a_threaded_process() {
        let error = Child::parked(0).map(drop).unwrap_err();
        assert!(error.to_string().contains("threads"), "{error}");
    }
}
