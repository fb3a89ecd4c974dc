//! The heap profile that is being taken: one at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The profile that is being taken, if there is one, with what ends it early.
#[derive(Default)]
pub(crate) struct OneHeapProfile(Mutex<Option<Arc<Notify>>>);

impl OneHeapProfile {
    /// Ends the profile that is being taken. Returns whether there is one.
    pub(crate) fn end(&self) -> bool {
        self.lock().as_ref().inspect(|stop| stop.notify_one()).is_some()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
