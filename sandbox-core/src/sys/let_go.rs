//! Closes descriptors where nobody waits for it.
//!
//! The last close of some descriptors makes the kernel wait until all CPUs have passed a
//! point (a grace period of RCU): 10 to 28 ms on 16 CPUs. Those of a mount namespace and of
//! a detached mount are such.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};

/// The most descriptors of one message (`SCM_MAX_FD`, unix(7)).
const MAX: usize = 253;

/// Closes the descriptors. If one is the last of its file, a thread of the kernel puts the
/// file away, a few milliseconds later, and does so one file after another.
///
/// The descriptors travel in a message that nobody receives, in the queue of a socket that
/// only this message holds. The kernel's collector of such sockets
/// (`net/unix/garbage.c`) closes what they hold, since Linux 6.10 in a thread of its own;
/// before that, and if the message cannot be sent, this process closes it and waits.
pub fn let_go(descriptors: impl IntoIterator<Item = OwnedFd>) {
    let mut left: Vec<OwnedFd> = descriptors.into_iter().collect();
    while !left.is_empty() {
        // One of a message is the socket's own.
        let some = left.split_off(left.len().saturating_sub(MAX - 1));
        // Without room for a message, the error closes them.
        let _ = entrust(some);
    }
}

/// Sends the descriptors to the collector.
fn entrust(descriptors: Vec<OwnedFd>) -> io::Result<()> {
    let (sender, queue) =
        socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let all: Vec<BorrowedFd<'_>> = descriptors.iter().chain([&queue]).map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(all.len()))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&all));
    sendmsg(&sender, &[IoSlice::new(b"-")], &mut ancillary, SendFlags::NOSIGNAL)?;
    // Before the sockets, whose end starts the collector: this close must not be the last.
    drop(descriptors);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_closes_what_is_let_go() {
        let pipes: Vec<_> = (0..300).map(|_| rustix::pipe::pipe().unwrap()).collect();
        let (readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        let_go(writers);
        for reader in readers {
            // Returns at the end of file, which the last writer's close causes.
            assert_eq!(rustix::io::read(&reader, &mut [0]), Ok(0));
        }
    }

    #[test]
    fn what_somebody_else_holds_stays_open() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let_go([writer.try_clone().unwrap()]);
        let (end, last) = rustix::pipe::pipe().unwrap();
        let_go([last]);
        assert_eq!(rustix::io::read(&end, &mut [0]), Ok(0));
        rustix::io::write(&writer, b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0]), Ok(1));
    }
}
