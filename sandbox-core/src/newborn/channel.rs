//! The newborn's end of the channel to boot.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::control::newborn::{AtGate, NewbornMessage, hand_listener_over, wait_to_go_on};
use crate::error::{Error, Result};

/// The newborn's end, and what it writes its log to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channel<'a> {
    pub(crate) boot: BorrowedFd<'a>,
    pub(crate) log: BorrowedFd<'a>,
}

impl Channel<'_> {
    /// Requests the ID maps of a new user namespace from boot, and waits for them.
    pub(super) fn get_mapped(self) -> Result<()> {
        NewbornMessage::Unmapped.send(self.boot)?;
        wait_to_go_on(self.boot)
    }

    /// Hands the listener of this process's seccomp program to an agent.
    pub(super) fn hand_listener_over(self, listener: BorrowedFd<'_>) -> Result<()> {
        hand_listener_over(self.boot, listener)
    }

    /// Gives boot the listener of this process's seccomp program. boot already decides about
    /// calls of this process.
    pub(super) fn give_listener(self, listener: OwnedFd) -> Result<()> {
        NewbornMessage::Watched(listener).send(self.boot)
    }

    /// Reports to boot that this process is at its gate, hands over what boot keeps, and
    /// waits until the gate opens.
    pub(super) fn wait_at_gate(self, handed_over: AtGate) -> Result<()> {
        NewbornMessage::AtGate(handed_over).send(self.boot)?;
        wait_to_go_on(self.boot)
    }

    /// Reports why this process does not go on.
    pub(super) fn report(self, error: Error) {
        // boot learns of the end of this process in any case.
        let _ = NewbornMessage::Failed(error.into()).send(self.boot);
    }
}
