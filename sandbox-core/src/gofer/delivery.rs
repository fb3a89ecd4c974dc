//! Sends mounts into the sandbox's mounts channel.

use std::io::ErrorKind;
use std::mem::take;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};

use crate::control::encoding::Message;
use crate::control::gofer::{Delivery, Slot};
use crate::control::packet::send_packet;
use crate::error::{Context, Error, Result};

/// Below `MAX_DESCRIPTORS`, so that each packet fits.
const PER_PACKET: usize = 30;

/// Collects mounts into packets of up to [`PER_PACKET`].
pub(super) struct Outbox {
    channel: OwnedFd,
    container: String,
    slots: Vec<Slot>,
    mounts: Vec<OwnedFd>,
}

impl Outbox {
    pub(super) fn new(channel: OwnedFd, container: String) -> Self {
        Self { channel, container, slots: Vec::new(), mounts: Vec::new() }
    }

    pub(super) fn put(&mut self, slot: Slot, mount: OwnedFd) -> Result<()> {
        if self.slots.len() == PER_PACKET {
            self.send(false)?;
        }
        self.slots.push(slot);
        self.mounts.push(mount);
        Ok(())
    }

    /// Sends the rest, in a packet that marks the end of the delivery.
    pub(super) fn finish(mut self) -> Result<()> {
        self.send(true)
    }

    fn send(&mut self, last: bool) -> Result<()> {
        let container = self.container.clone();
        let delivery = Delivery { container, slots: take(&mut self.slots), last };
        let bytes = delivery.encode()?;
        // The packet holds the mounts from here on, so closing ours is cheap.
        let mounts = take(&mut self.mounts);
        let fds: Vec<_> = mounts.iter().map(AsFd::as_fd).collect();
        loop {
            match send_packet(&self.channel, &bytes, &fds) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    wait_for(&self.channel, PollFlags::OUT)?;
                }
                Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                    return Err(Error::internal("the sandbox died before it took its mounts"));
                }
                result => return result.context(|| "sending mounts to the sandbox"),
            }
        }
    }
}

/// Waits for a socket that its owner made nonblocking.
pub(super) fn wait_for(socket: impl AsFd, what: PollFlags) -> Result<()> {
    rustix::event::poll(&mut [PollFd::new(&socket, what)], None).map(drop).context(|| "poll")
}
