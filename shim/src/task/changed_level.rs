//! A level of the log that holds for a while.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sandbox_core::control::message::LogLevel;
use tokio::task::AbortHandle;

/// The level that holds for a while, if there is one.
#[derive(Default)]
pub(super) struct ForAWhile(Mutex<Option<Changed>>);

/// What becomes of it.
pub(super) struct Changed {
    /// The level to return to.
    pub(super) before: LogLevel,
    /// What returns to it.
    pub(super) timer: AbortHandle,
}

impl ForAWhile {
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Changed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
