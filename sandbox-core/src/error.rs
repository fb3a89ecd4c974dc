//! The one error type of this crate.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// A failure, with a sentence that a person can act on. The kind is all that a
/// program is meant to look at.
#[derive(Debug)]
pub struct Error {
    /// What kind of mistake it was.
    pub kind: FailureKind,
    message: String,
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The request or the spec is wrong; name the field and what was expected.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Invalid, message)
    }

    /// An error of the given kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Something that this program or the kernel could not do.
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

/// An [`Error`] as it travels between processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of mistake it was.
    pub kind: FailureKind,
    /// A sentence for the user. The shim cuts it at 4096 bytes and takes
    /// control characters out.
    pub message: String,
}

/// Kinds of failure, as far as a client of containerd can tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The request or the spec is wrong.
    Invalid,
    /// There is no such container or process.
    NotFound,
    /// There is one already.
    Exists,
    /// Not in this state.
    State,
    /// The kernel refused; the message says what.
    Internal,
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

/// Says what was tried when the kernel refused it.
pub trait Context<T> {
    /// `"{what}: {the kernel's error}"`, with `what` such as `"mkdir /run/x"`.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::internal(format!("{}: {}", what().into(), e.into())))
    }
}
