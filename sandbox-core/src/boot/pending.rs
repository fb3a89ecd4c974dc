//! Processes between their clone and their execve.
//!
//! ```text
//!   cloned ──AtGate──▶ at the gate ──Start──▶ opening ──end of file──▶ running
//!     │                                            │
//!     └────────────── a failure, or death ─────────┘──▶ the request fails
//! ```
//! Before its gate a process may ask once for the maps of its user namespace.
//! An exec'd process has no gate: it goes from cloned to running.

use std::os::fd::{AsFd, OwnedFd};

use super::Boot;
use super::table::Container;
use crate::container::channel::Channel;
use crate::container::paths::PROC;
use crate::container::tree::Tree;
use crate::control::message::{Done, Upward};
use crate::control::newborn::NewbornMessage as Message;
use crate::error::Error;
use crate::sys::pidfd::mount_namespace_of;
use crate::types::{PodPid, ProcessId};

/// One of them.
pub(super) struct Pending {
    /// The request to answer.
    pub(super) number: u64,
    pub(super) process: ProcessId,
    pub(super) pid: PodPid,
    pub(super) pidfd: OwnedFd,
    /// Its terminal's master side, on its way to the shim.
    pub(super) terminal: Option<OwnedFd>,
    pub(super) channel: Channel,
    pub(super) stage: Stage,
    /// What its root is made from. Kept until it is at its gate: the directory must
    /// not go while it still looks it up, though its mounts are its own.
    pub(super) tree: Option<Tree>,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Create: the message that it is at its gate.
    ToGate,
    /// Start or Exec: end of file, which execve brings about.
    Executing,
}

impl Boot {
    /// A pending process has something to say, or is gone.
    pub(super) fn receive(&mut self, token: u64) {
        let Some(pending) = self.containers.pending.remove(&token) else {
            return;
        };
        self.events.forget(&pending.channel);
        let message = pending.channel.receive();
        match (pending.stage, message) {
            (Stage::ToGate, Ok(Some(Message::Unmapped))) => self.map(pending),
            (Stage::ToGate, Ok(Some(Message::AtGate))) => self.at_gate(pending),
            (Stage::Executing, Ok(None)) => self.executed(pending),
            (Stage::ToGate, Ok(None)) => {
                self.failed(
                    pending,
                    Error::internal("the container's first process was killed while it was made"),
                );
            }
            (_, Ok(Some(Message::Failed(failure)))) => self.failed(pending, failure.into()),
            (Stage::Executing, Ok(Some(Message::AtGate | Message::Unmapped))) => {
                self.failed(
                    pending,
                    Error::internal("a process is at its gate that had passed it"),
                );
            }
            (_, Err(error)) => self.failed(pending, error),
        }
    }

    /// Gives a process's new user namespace the sandbox's IDs.
    fn map(&mut self, pending: Pending) {
        let mapped = self
            .identities
            .write(format!("{PROC}/{}", pending.pid.0))
            .and_then(|()| pending.channel.let_go_on());
        match mapped {
            // It has more to say.
            Ok(()) => drop(self.expect(pending)),
            Err(error) => self.failed(pending, error),
        }
    }

    fn at_gate(&mut self, pending: Pending) {
        let Pending { number, process, pid, pidfd, terminal, channel, tree, .. } = pending;
        match self.containers.get(&process.container) {
            Ok(Container { init: Some(init), .. }) => {
                init.gate = Some(channel);
                // An older kernel has its way.
                init.mounts = mount_namespace_of(&pidfd).ok();
            }
            Ok(_) => {}
            Err(error) => return self.reply(number, Err(error)),
        }
        self.present(number, pid, &pidfd, terminal.as_ref());
        // Taking mounts down takes time, which nobody waits for now.
        drop(tree);
    }

    fn executed(&mut self, pending: Pending) {
        let Pending { number, process, pid, pidfd, terminal, .. } = pending;
        match process.is_init() {
            true => self.reply(number, Ok(Done::Ok)),
            false => self.present(number, pid, &pidfd, terminal.as_ref()),
        }
    }

    /// Hands a new process and its terminal up.
    fn present(&self, number: u64, pid: PodPid, pidfd: &OwnedFd, terminal: Option<&OwnedFd>) {
        let outcome = Ok(Done::Process { terminal: terminal.is_some() });
        let descriptors: Vec<_> =
            [Some(pidfd), terminal].into_iter().flatten().map(AsFd::as_fd).collect();
        self.say_for(Some(pid), &Upward::Reply { number, outcome }, &descriptors);
    }

    /// The process never ran the user's program: its exit is nobody's news.
    fn failed(&mut self, pending: Pending, error: Error) {
        self.containers.disown(pending.pid);
        if pending.process.is_init() {
            self.containers.remove(&pending.process.container);
        }
        self.reply(pending.number, Err(error));
    }
}
