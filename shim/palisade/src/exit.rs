//! Exit statuses, as palisade(1) documents them.

use std::fmt;
use std::process::ExitCode;

/// Why a verb failed, as far as a script may want to tell it from other reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// What was asked for is not so or cannot be done: 1.
    Failed(String),
    /// No pod, container or process is meant by what was named, or more than one: 3.
    NotFound(String),
    /// A shim or a sandbox process gave no answer in time: 4.
    NoAnswer(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Failed(text) | Self::NotFound(text) | Self::NoAnswer(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for Failure {}

/// Returns the exit status of an error. That of a wrong command line is 2 (clap's).
pub(crate) fn of(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref() {
        Some(Failure::NotFound(_)) => ExitCode::from(3),
        Some(Failure::NoAnswer(_)) => ExitCode::from(4),
        Some(Failure::Failed(_)) | None => ExitCode::FAILURE,
    }
}
