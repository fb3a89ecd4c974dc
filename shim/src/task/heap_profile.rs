//! A heap profile: the samplers of the shim's allocator and of boot's, which an operator switches on
//! for a while. One at a time.

use std::fs::File;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::control::message::Request;
use sandbox_core::sys::heap;
use tokio::sync::Notify;

use super::boot::BootClient;
use super::shim::Shim;
use super::table::Sandbox;
use crate::error::{Code, Error, Result};

/// The time that boot has to switch its sampler: less than that which `palisade` waits for the shim.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A profile that is being taken.
pub(crate) struct Taking {
    shim: Arc<Shim>,
    /// What ends it early.
    pub(crate) stop: Arc<Notify>,
    /// What the shim's sampler fills.
    pub(crate) own: File,
    /// What boot's sampler fills, if there is a boot.
    pub(crate) of_boot: Option<File>,
    boot: Option<Arc<BootClient>>,
    /// Why boot's part is missing, or not complete.
    pub(crate) missing: Option<String>,
}

impl Drop for Taking {
    /// The shim's sampler ends with the profile, whatever ends that.
    fn drop(&mut self) {
        heap::switch_off();
        self.shim.heap_profile.lock().take();
    }
}

/// Switches both samplers on.
///
/// # Errors
/// Fails while another profile is taken. That boot does not answer is no error.
pub(crate) async fn switch_on(shim: &Arc<Shim>, every: NonZeroU32) -> Result<Taking> {
    let stop = Arc::new(Notify::new());
    {
        let mut taken = shim.heap_profile.lock();
        if taken.is_some() {
            return Err(Error::new(
                Code::FAILED_PRECONDITION,
                "a heap profile of this pod is being taken; one is taken at a time, so wait for \
                 its end",
            ));
        }
        *taken = Some(stop.clone());
    }
    let failed = |error| {
        shim.heap_profile.lock().take();
        Error::internal(format!("switch the sampler of allocations on: {error}"))
    };
    let own = heap::new_table().map_err(failed)?;
    let boot = match &shim.table().sandbox {
        Sandbox::Made(boot) => Some(boot.clone()),
        Sandbox::None | Sandbox::Making => None,
    };
    let of_boot = boot.is_some().then(heap::new_table).transpose().map_err(failed)?;
    heap::switch_on(&own, every).map_err(failed)?;
    let mut taking = Taking { shim: shim.clone(), stop, own, of_boot, boot, missing: None };
    taking.switch_boot(Some(every)).await;
    Ok(taking)
}

impl Taking {
    /// Switches both samplers off. What they have found can be read then.
    pub(crate) async fn switch_off(&mut self) {
        heap::switch_off();
        self.switch_boot(None).await;
    }

    async fn switch_boot(&mut self, every: Option<NonZeroU32>) {
        let (Some(boot), Some(table)) = (&self.boot, &self.of_boot) else { return };
        let with = every.map(|_| table.as_fd());
        let request = Request::HeapProfile { every };
        let asked = self.shim.ask(boot, request, with.as_slice());
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
        let error = match answered {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} seconds", ANSWER_TIMEOUT.as_secs()),
        };
        self.missing.get_or_insert(error);
    }
}
