//! The one error type of this crate.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// A failure, with a sentence for a person. Programs look only at the kind.
#[derive(Debug)]
pub struct Error {
    /// The kind of failure.
    pub kind: FailureKind,
    message: String,
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an error for a wrong request or spec. The message names the field
    /// and what was expected.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Invalid, message)
    }

    /// Makes an error of the given kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Makes an error for an operation that failed in this program or in the
    /// kernel.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Internal, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// An [`Error`] in the form that is sent between processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of failure.
    pub kind: FailureKind,
    /// A sentence for the user. The shim cuts it at 4096 bytes and removes
    /// control characters.
    pub message: String,
}

/// The kinds of failure that a client of containerd can distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The request or the spec is wrong.
    Invalid,
    /// The container or process does not exist.
    NotFound,
    /// The container or process exists already.
    Exists,
    /// The state of the container or process does not allow the request.
    State,
    /// The kernel refused, or this program failed; the message says at what.
    Internal,
    /// There are no more descriptors for this process, or on the host.
    NoDescriptors,
}

impl FailureKind {
    /// Returns the kind of an error of the kernel's.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Self::NoDescriptors,
            _ => Self::Internal,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind, failure.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { kind: error.kind, message: error.message }
    }
}

/// Adds to the kernel's error what was attempted.
pub trait Context<T> {
    /// Makes the message `"{what}: {the kernel's error}"`, with `what` such as
    /// `"mkdir /run/x"`.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| {
            let error = e.into();
            Error::new(FailureKind::of(&error), format!("{}: {error}", what().into()))
        })
    }
}
