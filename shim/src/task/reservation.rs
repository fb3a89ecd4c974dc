//! A Create's claim on its ID, and on the sandbox if it makes that too.

use std::sync::Arc;

use tokio::sync::watch;

use super::boot::BootClient;
use super::container::Container;
use super::pod::Pod;
use super::shim::{Shim, raised};
use super::table::Sandbox;
use super::teardown;
use crate::error::{Error, Result};

/// A claim on an ID. If it is dropped before it is filled, it frees the ID and
/// tears down a sandbox that nothing needs any more.
pub(super) struct Reservation {
    shim: Arc<Shim>,
    id: String,
    /// The sandbox to join; `None` for the first container, which makes it.
    boot: Option<Arc<BootClient>>,
    cancelled: watch::Receiver<bool>,
    filled: bool,
}

impl Reservation {
    pub(super) fn take(shim: &Arc<Shim>, id: &str) -> Result<Self> {
        let mut table = shim.table();
        table.check_lives()?;
        // A container can only join a pod that runs.
        table.pod.as_ref().map(Pod::files).transpose()?;
        // An ID that is taken is the better reason to refuse the Create.
        let is_taken = table.has(id);
        let boot = match &table.sandbox {
            Sandbox::Made(boot) => {
                // Of a dead one, its spec would be found to be wrong.
                if !is_taken {
                    boot.check_alive()?;
                }
                Some(boot.clone())
            }
            Sandbox::None => None,
            Sandbox::Making if is_taken => None,
            Sandbox::Making => {
                return Err(Error::state("the sandbox's first container is still being created"));
            }
        };
        let cancelled = table.reserve(id)?;
        if boot.is_none() {
            table.begin_sandbox();
        }
        drop(table);
        Ok(Self { shim: shim.clone(), id: id.to_string(), boot, cancelled, filled: false })
    }

    /// Waits until the Create is cancelled.
    pub(super) fn cancelled(&self) -> impl Future<Output = ()> + use<> {
        raised(self.cancelled.clone())
    }

    pub(super) fn boot(&self) -> Option<&Arc<BootClient>> {
        self.boot.as_ref()
    }

    /// Makes the container visible to every request. Returns the status of an exit that
    /// was reported meanwhile.
    pub(super) fn fill(mut self, container: Container) -> Option<u32> {
        self.filled = true;
        let mut table = self.shim.table();
        table.sandbox_made(container.boot.clone());
        table.fill(container)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.filled {
            return;
        }
        let mut table = self.shim.table();
        table.remove(&self.id);
        match &self.boot {
            None => table.sandbox_failed(),
            // All other containers may have gone while this one was being made.
            Some(boot) => teardown::tear_down_if_empty(&mut table, boot),
        }
        drop(table);
        teardown::shut_down_if_pending(&self.shim);
    }
}
