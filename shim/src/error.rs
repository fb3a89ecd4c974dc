//! The shim's error, and the only mapping from errors to ttrpc status codes.

use std::any::Any;
use std::{fmt, io};

use containerd_shim_protos::ttrpc;
use rustix::io::Errno;
use sandbox_core::error::FailureKind;

pub(crate) use containerd_shim_protos::ttrpc::Code;

/// Results of this crate.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// A failure as containerd shows it: a code for programs and a sentence for
/// people.
#[derive(Clone, Debug)]
pub(crate) struct Error {
    pub(crate) code: Code,
    message: String,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NOT_FOUND, message)
    }

    pub(crate) fn exists(message: impl Into<String>) -> Self {
        Self::new(Code::ALREADY_EXISTS, message)
    }

    /// Returns an error for a request in a wrong state: containerd's
    /// `ErrFailedPrecondition`.
    pub(crate) fn state(message: impl Into<String>) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    /// Whether it is the lack of descriptors.
    pub(crate) fn is_for_want_of_descriptors(&self) -> bool {
        self.code == Code::RESOURCE_EXHAUSTED
    }

    /// Adds to the sentence.
    pub(crate) fn and(self, more: &str) -> Self {
        Self { message: format!("{}; {more}", self.message), ..self }
    }

    /// Returns an error for something that this program or the kernel could not
    /// do. containerd shows `UNKNOWN` without a prefix of its own, as it does
    /// for runc's failures.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::UNKNOWN, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<sandbox_core::Error> for Error {
    fn from(error: sandbox_core::Error) -> Self {
        let code = match error.kind {
            FailureKind::Invalid => Code::INVALID_ARGUMENT,
            FailureKind::NotFound => Code::NOT_FOUND,
            FailureKind::Exists => Code::ALREADY_EXISTS,
            FailureKind::State => Code::FAILED_PRECONDITION,
            FailureKind::Internal => Code::UNKNOWN,
            FailureKind::NoDescriptors => Code::RESOURCE_EXHAUSTED,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code, error.message))
    }
}

/// Adds what was tried to an error of the kernel.
pub(crate) trait Context<T> {
    /// Returns the error `"{what}: {the error}"`.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: fmt::Display + Any> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::new(code_of(&e), format!("{}: {e}", what().into())))
    }
}

/// Returns `RESOURCE_EXHAUSTED` for the lack of descriptors, and `UNKNOWN` for all else.
fn code_of(error: &dyn Any) -> Code {
    let kind = match (error.downcast_ref::<io::Error>(), error.downcast_ref::<Errno>()) {
        (Some(error), _) => FailureKind::of(error),
        (_, Some(errno)) => FailureKind::of(&io::Error::from(*errno)),
        _ => FailureKind::Internal,
    };
    match kind {
        FailureKind::NoDescriptors => Code::RESOURCE_EXHAUSTED,
        _ => Code::UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_error_keeps_its_kind_and_its_sentence() {
        let error = Error::from(sandbox_core::Error::invalid("process.cwd is not absolute"));
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else {
            panic!("no status")
        };
        assert_eq!(status.code(), Code::INVALID_ARGUMENT);
        assert_eq!(status.message(), "process.cwd is not absolute");
    }
}
