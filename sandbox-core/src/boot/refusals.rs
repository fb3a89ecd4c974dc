//! What the processes of a container are refused, as far as boot is asked about it.

use super::Boot;
use crate::sys::seccomp_listener::Call;
use crate::types::ProcessId;

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
    }
}
