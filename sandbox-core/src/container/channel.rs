//! boot's end of the channel to a newborn.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::control::newborn::{NewbornMessage, send_go_on};
use crate::control::packet;
use crate::error::{Context, Result};

/// boot's end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Makes a channel. Also returns the newborn's end.
    pub(crate) fn pair() -> Result<(Self, OwnedFd)> {
        let (boot, newborn) = packet::pair().context(|| "socketpair")?;
        Ok((Self(boot), newborn))
    }

    /// Lets the waiting newborn go on.
    pub(crate) fn let_go_on(&self) -> Result<()> {
        send_go_on(&self.0)
    }

    /// Receives a message. `None` if the newborn has executed its program or is dead. Blocks
    /// while there is no message.
    pub(crate) fn receive(&self) -> Result<Option<NewbornMessage>> {
        NewbornMessage::receive(&self.0)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
