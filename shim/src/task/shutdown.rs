//! Shutdown: containerd has no more need of the shim. 1.x says so after each
//! Delete, and means the shim only after that of the last container. 2.x says
//! so once, after that of the sandbox's root, and means it even if containers
//! are left that died with the sandbox and that it has yet to delete.
//!
//! A sandbox that was asked for itself ends by ShutdownSandbox, whatever becomes
//! of its containers; but a containerd that starts and does not know it any more
//! says it so (`core/runtime/v2/shim_load.go`, `loadShim`).

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{Empty, ShutdownRequest};
use tokio::time::Instant;

use super::table::Shim;
use crate::error::Result;
use crate::sandbox_service;
use crate::serve::Ending;

/// containerd waits three seconds for a shim to go.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn shutdown(shim: Arc<Shim>, request: ShutdownRequest) -> Result<Empty> {
    let pod = shim.table().pod.as_ref().map(|pod| pod.has_id(&request.id));
    match pod {
        Some(true) => {
            sandbox_service::end_shim(&shim, &request.id).await;
            return Ok(Empty::default());
        }
        Some(false) => return Ok(Empty::default()),
        None => {}
    }
    {
        let mut table = shim.table();
        if !table.is_empty() {
            table.shutdown_pending |= !table.has_root();
            return Ok(Empty::default());
        }
    }
    shim.end(Ending::Now).await;
    Ok(Empty::default())
}

/// Ends the shim, if it was to end as soon as it has no more containers.
pub(super) fn catch_up(shim: &Arc<Shim>) {
    let now = {
        let table = shim.table();
        table.shutdown_pending && table.is_empty()
    };
    if now {
        let shim = shim.clone();
        tokio::spawn(async move { shim.end(Ending::Now).await });
    }
}

impl Shim {
    /// Ends the shim, once its sandbox is gone and its events are told.
    pub(crate) async fn end(&self, ending: Ending) {
        let tear_down = self.table().tear_down.take();
        if let Some(tear_down) = tear_down {
            let _ = tear_down.await;
        }
        self.tell_all(PATIENCE).await;
        self.ending.send_replace(ending);
    }

    /// Tells what is left to be told, but does not try for ever.
    pub(crate) async fn tell_all(&self, patience: Duration) {
        let give_up = Instant::now() + patience;
        let mut untold = self.untold.subscribe();
        let told = untold.wait_for(|exits| *exits == 0);
        let _ = tokio::time::timeout_at(give_up, told).await;
        self.events.flush(give_up.saturating_duration_since(Instant::now())).await;
    }
}
