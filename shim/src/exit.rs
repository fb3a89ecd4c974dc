//! The exit of a process, and the statuses that the shim itself sets.

use std::time::SystemTime;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

/// The status of a process that SIGKILL ended, or that was killed before it ran.
pub(crate) const KILLED: u32 = 128 + 9;

/// The status of a process whose program could not be run, as shells set it.
const NOT_RUN: u32 = 127;

/// The status and the time of a process's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

impl Exit {
    /// Returns an exit of this moment.
    pub(crate) fn now(status: u32) -> Self {
        Self { status, at: SystemTime::now() }
    }

    /// Returns the exit of a process that is killed at this moment.
    pub(crate) fn killed() -> Self {
        Self::now(KILLED)
    }

    /// Returns the exit of a process whose program never ran.
    pub(crate) fn not_run() -> Self {
        Self::now(NOT_RUN)
    }

    /// Whether SIGKILL may have ended the process.
    pub(crate) fn is_kill(self) -> bool {
        self.status == KILLED
    }
}

/// Returns a time as a field of a message.
pub(crate) fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    MessageField::some(Timestamp::from(at))
}
