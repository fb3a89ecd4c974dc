//! Processes between their clone and their execve.
//!
//! ```text
//!   cloned ──AtGate──▶ at the gate ──Start──▶ opening ──end of file──▶ running
//!     │                                            │
//!     └────────────── a failure, or death ─────────┘──▶ the request fails
//! ```
//! At any time it may give boot the listener of its seccomp program (`supervise.rs`), once.
//! Before its gate a process may request the maps of a user namespace of its own, once. At any
//! time it may hand over the listener of its seccomp program, once.
//! An exec'd process has no gate: it goes from cloned to running.

use std::os::fd::{AsFd, OwnedFd, RawFd};

use rustix::process::{PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_send_signal};

use super::table::{Container, Pending, Stage};
use super::{Boot, logger};
use crate::container::paths::PROC;
use crate::control::message::{Done, Upward};
use crate::control::newborn::{AtGate, NewbornMessage as Message};
use crate::error::{Context, Error, FailureKind, Result};
use crate::types::PodPid;

impl Boot {
    /// Receives a message from a pending process, or its end.
    pub(super) fn receive(&mut self, token: u64) {
        let Some(pending) = self.containers.pending.remove(&token) else {
            return;
        };
        logger::belongs_to(pending.number);
        self.events.forget(&pending.channel);
        let message = pending.channel.receive();
        match (pending.stage, message) {
            (Stage::ToGate, Ok(Some(Message::Unmapped))) => self.map(pending),
            (_, Ok(Some(Message::Listener(fd)))) => self.hand_listener_over(pending, fd),
            (_, Ok(Some(Message::Watched(listener)))) => self.watch(pending, listener),
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
            (_, Ok(Some(Message::Restorer(_)))) => {
                self.failed(
                    pending,
                    Error::internal("a process restores nothing and says it does"),
                );
            }
            (_, Err(error)) => {
                // What it handed over may be lost with the message: it must not go on.
                let _ = pidfd_send_signal(&pending.pidfd, Signal::KILL);
                self.failed(pending, error);
            }
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

    /// Answers the system calls of a process from now on.
    fn watch(&mut self, pending: Pending, listener: OwnedFd) {
        match self.supervise(&pending.process, listener) {
            // More messages follow.
            Ok(()) => drop(self.expect(pending)),
            Err(error) => {
                // It fails only if the process is dead.
                let _ = pidfd_send_signal(&pending.pidfd, Signal::KILL);
                self.failed(pending, error);
            }
        }
    }

    /// Sends the listener of a process's seccomp program to the shim, which knows the agent.
    fn hand_listener_over(&mut self, mut pending: Pending, fd: RawFd) {
        let listener = pidfd_getfd(&pending.pidfd, fd, PidfdGetfdFlags::empty())
            .context(|| "get the seccomp listener of a container's process");
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => return self.failed(pending, error),
        };
        let message = Upward::Listener { of: pending.number };
        let descriptors = [pending.pidfd.as_fd(), listener.as_fd()];
        self.send_for(Some(pending.pid), &message, &descriptors);
        pending.hands_listener_over = true;
        // It may die meanwhile.
        drop(self.expect(pending));
    }

    /// Lets the process of a request go on, or fails the request.
    pub(super) fn listener_handed_over(&mut self, of: u64, refused: Option<String>) -> Result<()> {
        let Some(mut pending) = self.containers.take_with_listener(of) else {
            return Err(Error::new(FailureKind::NotFound, "no process waits with a listener"));
        };
        self.events.forget(&pending.channel);
        if let Some(refused) = refused {
            // It fails only if the process is dead.
            let _ = pidfd_send_signal(&pending.pidfd, Signal::KILL);
            self.failed(pending, Error::invalid(refused));
            return Ok(());
        }
        pending.hands_listener_over = false;
        match pending.channel.let_go_on() {
            Ok(()) => self.expect(pending),
            // It is dead.
            Err(_) => {
                self.failed(pending, Error::internal("the process died while it was made"));
                Ok(())
            }
        }
    }

    fn at_gate(&mut self, pending: Pending, handed_over: AtGate) {
        let Pending { number, process, pid, pidfd, channel, .. } = pending;
        match self.containers.get(&process.container) {
            Ok(Container { init: Some(init), join_info }) => {
                if let Some(devpts) = handed_over.devpts {
                    join_info.set_terminals(devpts);
                }
                join_info.set_home(pid);
                init.gate = Some(channel);
            }
            Ok(_) => {}
            Err(error) => return self.reply(number, Err(error)),
        }
        let AtGate { terminal, mounts, .. } = handed_over;
        self.present(number, pid, &pidfd, terminal.as_ref(), mounts.as_ref());
    }

    fn executed(&mut self, pending: Pending) {
        let Pending { number, process, pid, pidfd, terminal, .. } = pending;
        match process.is_init() {
            true => self.reply(number, Ok(Done::Ok)),
            false => self.present(number, pid, &pidfd, terminal.as_ref(), None),
        }
    }

    /// Sends a new process, its terminal and the mounts that it has left to the shim. Nothing
    /// of the last is closed here: that takes long.
    pub(super) fn present(
        &self,
        number: u64,
        pid: PodPid,
        pidfd: &OwnedFd,
        terminal: Option<&OwnedFd>,
        mounts: Option<&OwnedFd>,
    ) {
        let outcome = Ok(Done::Process { terminal: terminal.is_some(), mounts: mounts.is_some() });
        let descriptors: Vec<_> =
            [Some(pidfd), terminal, mounts].into_iter().flatten().map(AsFd::as_fd).collect();
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
