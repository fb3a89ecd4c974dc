//! Shutdown: containerd has no more need of the shim. It says so after each
//! Delete; only after that of the last container does it mean the shim.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::Empty;

use super::table::Shim;
use crate::error::Result;

/// containerd waits three seconds for a shim to go.
const PATIENCE: Duration = Duration::from_secs(2);

/// Time for the answer to get to containerd.
const GOODBYE: Duration = Duration::from_millis(2);

pub(super) async fn shutdown(shim: Arc<Shim>) -> Result<Empty> {
    let tear_down = {
        let mut table = shim.table();
        if !table.is_empty() {
            return Ok(Empty::default());
        }
        table.tear_down.take()
    };
    if let Some(tear_down) = tear_down {
        let _ = tear_down.await;
    }
    shim.events.flush(PATIENCE).await;
    tokio::spawn(async move {
        tokio::time::sleep(GOODBYE).await;
        shim.ending.send_replace(true);
    });
    Ok(Empty::default())
}
