//! The user logs of one sandbox's containers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sandbox_core::control::refusal::Records;

use super::place::Place;
use super::told::Told;
use crate::options::UserLogFormat;

/// The user logs of a sandbox's containers.
#[derive(Default)]
pub(in crate::task) struct UserLogs(Mutex<Inner>);

#[derive(Default)]
pub(super) struct Inner {
    pub(super) records: Records,
    /// Whether what came was no record, which was logged.
    pub(super) broken: bool,
    pub(super) containers: HashMap<String, OfContainer>,
}

/// The user log of one container.
pub(super) struct OfContainer {
    pub(super) told: Told,
    pub(super) place: Place,
    pub(super) format: UserLogFormat,
    /// Lines for which there was no room.
    pub(super) lost: u64,
}

impl UserLogs {
    /// Locks a mutex that is never contended, since there is one thread.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has(&self, container: &str) -> bool {
        self.lock().containers.contains_key(container)
    }

    /// Forgets a container.
    pub(in crate::task) fn forget(&self, container: &str) {
        self.lock().containers.remove(container);
    }
}
