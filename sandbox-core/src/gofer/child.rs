//! Forked children, for the few steps that need another namespace. The gofer
//! has one thread, which each fork proves again.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;

use crate::control::encoding::Message;
use crate::control::packet::{Received, pair, receive_packet, send_packet};
use crate::error::{Context, Error, Failure, Result};
use crate::sys::child::Child;
use crate::sys::clone::SingleThreaded;

/// Starts a child in new namespaces that only waits to be killed.
pub(super) fn idle(namespaces: CloneFlags) -> Result<Child> {
    Child::idle(&alone()?, namespaces).context(|| "clone3")
}

fn alone() -> Result<SingleThreaded> {
    SingleThreaded::prove().context(|| "counting threads")
}

/// Runs `work` in a child in new namespaces and returns the
/// descriptor that it makes.
pub(super) fn made_in_child(
    namespaces: CloneFlags,
    work: impl FnOnce() -> Result<OwnedFd>,
) -> Result<OwnedFd> {
    let (ours, theirs) = pair().context(|| "socketpair")?;
    let child =
        Child::run(&alone()?, namespaces, || report(&theirs, work())).context(|| "clone3")?;
    // Held until the gofer ends, so that the kernel destroys the child's mounts when nobody
    // waits for that.
    let mounts = File::open(format!("/proc/{}/ns/mnt", child.pid()));
    // The child's death then closes the channel.
    drop(theirs);
    let received = receive_packet(&ours, 64 * 1024, 1).context(|| "receiving from a child")?;
    drop(child);
    std::mem::forget(mounts);
    match received {
        Received::Packet { fds, bytes, .. } if bytes.is_empty() => fds
            .take()
            .pop()
            .ok_or_else(|| Error::internal("a child of the gofer sent no descriptor")),
        Received::Packet { bytes, .. } => Err(Failure::decode(&bytes)?.into()),
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
            let bytes = Failure::from(error).encode().unwrap_or_default();
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
        let error = idle(CloneFlags::empty()).map(drop).unwrap_err();
        assert!(error.to_string().contains("threads"), "{error}");
    }
}
