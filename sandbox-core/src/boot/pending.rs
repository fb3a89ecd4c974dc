//! Processes between their clone and the word that they came up.
//!
//! ```text
//!   cloned ──"parked"──▶ at the gate ──Start──▶ opening ──end of file──▶ running
//!     │                                            │
//!     └────────────── a failure, or death ─────────┘──▶ the request fails
//! ```
//! Before it parks, a process may ask once for the maps of its user namespace.
//! An exec'd process has no gate: it goes from cloned to running.

use std::os::fd::{AsFd, OwnedFd};

use super::Boot;
use super::table::Container;
use crate::container::paths::PROC;
use crate::container::tree::Tree;
use crate::container::{Channel, Word};
use crate::control::message::{Done, Upward};
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
    /// What its root is made from. Kept until it is parked: the directory must
    /// not go while it still looks it up, though its mounts are its own.
    pub(super) tree: Option<Tree>,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Create: the word that it is parked.
    Parking,
    /// Start or Exec: end of file, which execve brings about.
    Executing,
}

impl Boot {
    /// A pending process has something to say, or is gone.
    pub(super) fn hear(&mut self, token: u64) {
        let Some(pending) = self.containers.pending.remove(&token) else {
            return;
        };
        self.events.forget(&pending.channel);
        let word = pending.channel.listen();
        match (pending.stage, word) {
            (Stage::Parking, Ok(Word::Unmapped)) => self.map(pending),
            (Stage::Parking, Ok(Word::Parked)) => self.parked(pending),
            (Stage::Executing, Ok(Word::Gone)) => self.executed(pending),
            (Stage::Parking, Ok(Word::Gone)) => {
                self.failed(
                    pending,
                    Error::internal("the container's first process was killed while it was made"),
                );
            }
            (_, Ok(Word::Failed(failure))) => self.failed(pending, failure.into()),
            (Stage::Executing, Ok(Word::Parked | Word::Unmapped)) => {
                self.failed(pending, Error::internal("a process parked that had passed its gate"));
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

    fn parked(&mut self, pending: Pending) {
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
