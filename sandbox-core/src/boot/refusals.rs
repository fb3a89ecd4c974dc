//! What the processes of a container are refused, as far as boot is asked about it.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Boot;
use crate::control::refusal::Answer;
use crate::sys::seccomp_listener::{Call, Data};
use crate::types::{self, ProcessId};

/// A system call that a container's process does not get.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal<'a> {
    /// The init or the exec'd process that the caller descends from, or is.
    pub(super) process: &'a ProcessId,
    /// The call, whose caller waits meanwhile.
    pub(super) call: &'a Call,
    pub(super) outcome: Outcome,
    pub(super) by: Rule,
}

/// What the caller gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This errno, or the result 0.
    Errno(u16),
    /// What the kernel decides, most likely an error, since the process lacks a capability.
    KernelDecides,
}

/// What refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Baseline,
    /// The spec's seccomp profile.
    Profile,
    /// That the process lacks the capability of this number.
    Capability(u8),
}

impl Boot {
    /// Takes note of a refusal, before its caller is answered. Must not wait.
    pub(super) fn note(&mut self, refusal: &Refusal<'_>) {
        let Refusal { process, call, outcome, by } = refusal;
        log::trace!("{process}: {call:?} {outcome:?} {by:?}");
        // A newborn has what its program will lack: it becomes the user with the program's filter.
        // Once it is the program, its channel is at its end, also where boot has yet to learn that.
        let mut pending = self.containers.pending.values();
        if pending.any(|one| one.pid.0 == call.thread && !is_readable(&one.channel)) {
            return;
        }
        let answer = match *outcome {
            Outcome::Errno(errno) => Answer::Refused(errno),
            Outcome::KernelDecides => Answer::Watched,
        };
        let Data { number, architecture: audit, arguments, .. } = call.data;
        let made = types::Call { audit, number, arguments };
        self.user_log.note(&process.container, call.thread, made, answer);
    }
}

/// Whether there is something to read, or the end.
fn is_readable(fd: impl AsFd) -> bool {
    let mut asked = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
