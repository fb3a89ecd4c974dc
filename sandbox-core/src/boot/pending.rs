//! Processes between their clone and the word that they came up.
//!
//! ```text
//!   cloned ──"parked"──▶ at the gate ──Start──▶ opening ──end of file──▶ running
//!     │                                            │
//!     └────────────── a failure, or death ─────────┘──▶ the request fails
//! ```
//! An exec'd process has no gate: it goes from cloned to running.

use std::os::fd::OwnedFd;

use super::Boot;
use super::table::PodPid;
use crate::container::tree::Tree;
use crate::container::{Channel, Word};
use crate::control::message::Done;
use crate::error::{Error, Result};

/// One of them.
pub(super) struct Pending {
    /// The request to answer.
    pub(super) number: u64,
    pub(super) container: String,
    /// `None` for an init.
    pub(super) exec: Option<String>,
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
            (Stage::Parking, Ok(Word::Parked)) => self.parked(pending),
            (Stage::Executing, Ok(Word::Gone)) => self.executed(pending),
            (Stage::Parking, Ok(Word::Gone)) => {
                self.failed(
                    pending,
                    Error::internal("the container's first process was killed while it was made"),
                );
            }
            (_, Ok(Word::Failed(failure))) => self.failed(pending, failure.into()),
            (Stage::Executing, Ok(Word::Parked)) => {
                self.failed(pending, Error::internal("a process parked that had passed its gate"));
            }
            (_, Err(error)) => self.failed(pending, error),
        }
    }

    fn parked(&mut self, pending: Pending) {
        let Pending { number, container, pidfd, terminal, channel, tree, .. } = pending;
        drop(tree);
        let kept: Result<()> = self.containers.get(&container).map(|found| {
            if let Some(init) = &mut found.init {
                init.gate = Some(channel);
            }
        });
        let done = Done::Process { terminal: terminal.is_some() };
        let mut descriptors = vec![std::os::fd::AsFd::as_fd(&pidfd)];
        descriptors.extend(terminal.as_ref().map(std::os::fd::AsFd::as_fd));
        self.reply(number, kept.map(|()| done), &descriptors);
    }

    fn executed(&mut self, pending: Pending) {
        let Pending { number, exec, pidfd, terminal, .. } = pending;
        if exec.is_none() {
            return self.reply(number, Ok(Done::Ok), &[]);
        }
        let mut descriptors = vec![std::os::fd::AsFd::as_fd(&pidfd)];
        descriptors.extend(terminal.as_ref().map(std::os::fd::AsFd::as_fd));
        self.reply(number, Ok(Done::Process { terminal: terminal.is_some() }), &descriptors);
    }

    /// The process never ran the user's program: its exit is nobody's news.
    fn failed(&mut self, pending: Pending, error: Error) {
        self.containers.disown(pending.pid);
        if pending.exec.is_none() {
            self.containers.remove(&pending.container);
        }
        self.reply(pending.number, Err(error), &[]);
    }
}
