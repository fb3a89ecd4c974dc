//! Counts what the shim does, for `palisade metrics`: additions to a page of memory that the
//! sandbox has (`sandbox-core/src/sandbox/counters.rs`), by the thread that serves the request.

use std::sync::Arc;
use std::time::Instant;

use sandbox_core::sandbox::counters::Operation;

use super::shim::Shim;
use super::table::Sandbox;
use crate::error::Result;

/// A request that is under way.
pub(crate) struct Counted {
    shim: Arc<Shim>,
    operation: Operation,
    begun: Instant,
}

impl Counted {
    /// Begins to count a request.
    pub(crate) fn begin(operation: Operation, shim: &Arc<Shim>) -> Self {
        Self { shim: shim.clone(), operation, begun: Instant::now() }
    }

    /// Begins to count a Create, which makes the sandbox if there is none.
    pub(super) fn begin_create(shim: &Arc<Shim>) -> Self {
        let made = matches!(shim.table().sandbox, Sandbox::Made(_));
        Self::begin(if made { Operation::Create } else { Operation::CreatePod }, shim)
    }

    /// Counts how a request ends, unless there is no sandbox left to count it for.
    pub(crate) async fn count<T>(self, request: impl Future<Output = Result<T>>) -> Result<T> {
        let outcome = request.await;
        if let Sandbox::Made(boot) = &self.shim.table().sandbox {
            let counters = boot.sandbox.counters();
            match &outcome {
                Ok(_) => counters.done(self.operation, self.begun.elapsed()),
                Err(_) => counters.failed(self.operation),
            }
        }
        outcome
    }
}
