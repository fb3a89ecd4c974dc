//! Processes between their clone and their execve.
//!
//! ```text
//!   cloned ──AtGate──▶ at the gate ──Start──▶ opening ──end of file──▶ running
//!     │                                            │
//!     └────────────── a failure, or death ─────────┘──▶ the request fails
//! ```
//! Before its gate a process may request the maps of a user namespace of its own, once.
//! An exec'd process has no gate: it goes from cloned to running.

use std::os::fd::{AsFd, OwnedFd};

use super::Boot;
use super::table::{Container, Pending, Stage};
use crate::container::paths::PROC;
use crate::control::message::{Done, Upward};
use crate::control::newborn::{AtGate, NewbornMessage as Message};
use crate::error::Error;
use crate::types::PodPid;

impl Boot {
    /// Receives a message from a pending process, or its end.
    pub(super) fn receive(&mut self, token: u64) {
        let Some(pending) = self.containers.pending.remove(&token) else {
            return;
        };
        self.events.forget(&pending.channel);
        let message = pending.channel.receive();
        match (pending.stage, message) {
            (Stage::ToGate, Ok(Some(Message::Unmapped))) => self.map(pending),
            (Stage::ToGate, Ok(Some(Message::AtGate(handed_over)))) => {
                self.at_gate(pending, handed_over);
            }
            (Stage::Executing, Ok(None)) => self.executed(pending),
            (Stage::ToGate, Ok(None)) => {
                self.failed(
                    pending,
                    Error::internal("the container's init was killed while it was made"),
                );
            }
            (_, Ok(Some(Message::Failed(failure)))) => self.failed(pending, failure.into()),
            (Stage::Executing, Ok(Some(Message::AtGate(_) | Message::Unmapped))) => {
                self.failed(pending, Error::internal("a process has reached its gate twice"));
            }
            (_, Err(error)) => self.failed(pending, error),
        }
    }

    /// Gives the new user namespace of a process its IDs.
    fn map(&mut self, mut pending: Pending) {
        let wanted = || Error::internal("a process wants a user namespace of its own");
        let mapped = pending.mappings.take().ok_or_else(wanted).and_then(|mappings| {
            mappings.write(format!("{PROC}/{}", pending.pid.0))?;
            pending.channel.let_go_on()
        });
        match mapped {
            // More messages follow.
            Ok(()) => drop(self.expect(pending)),
            Err(error) => self.failed(pending, error),
        }
    }

    fn at_gate(&mut self, pending: Pending, handed_over: AtGate) {
        let Pending { number, process, pid, pidfd, channel, .. } = pending;
        match self.containers.get(&process.container) {
            Ok(Container { init: Some(init), join_info }) => {
                if let Some(devpts) = handed_over.devpts {
                    join_info.set_terminals(devpts);
                }
                init.gate = Some(channel);
            }
            Ok(_) => {}
            Err(error) => return self.reply(number, Err(error)),
        }
        self.present(number, pid, &pidfd, handed_over.terminal.as_ref());
    }

    fn executed(&mut self, pending: Pending) {
        let Pending { number, process, pid, pidfd, terminal, .. } = pending;
        match process.is_init() {
            true => self.reply(number, Ok(Done::Ok)),
            false => self.present(number, pid, &pidfd, terminal.as_ref()),
        }
    }

    /// Sends a new process and its terminal to the shim.
    fn present(&self, number: u64, pid: PodPid, pidfd: &OwnedFd, terminal: Option<&OwnedFd>) {
        let outcome = Ok(Done::Process { terminal: terminal.is_some() });
        let descriptors: Vec<_> =
            [Some(pidfd), terminal].into_iter().flatten().map(AsFd::as_fd).collect();
        self.send_for(Some(pid), &Upward::Reply { number, outcome }, &descriptors);
    }

    /// Replies with an error. The process never ran the user's program, so its exit is not
    /// reported.
    fn failed(&mut self, pending: Pending, error: Error) {
        self.containers.disown(pending.pid);
        if pending.process.is_init() {
            self.containers.remove(&pending.process.container);
        }
        self.reply(pending.number, Err(error));
    }
}
