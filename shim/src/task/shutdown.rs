//! Shutdown: containerd does not need the shim any more.
//!
//! containerd 1.x sends it after each Delete, and means the shim only after the
//! last container's. 2.x sends it once, after the Delete of the sandbox's root,
//! and means the shim even if there still are containers that died with the
//! sandbox, which it has yet to delete.
//!
//! A sandbox of the Sandbox service ends by ShutdownSandbox, whatever becomes
//! of its containers. But a containerd that starts and has no record of the
//! sandbox sends Shutdown for it (`core/runtime/v2/shim_load.go`, `loadShim`).

use std::sync::Arc;

use containerd_shim_protos::api::{Empty, ShutdownRequest};

use super::shim::{End, Shim};
use super::teardown;
use crate::error::Result;

pub(super) async fn shutdown(shim: Arc<Shim>, request: ShutdownRequest) -> Result<Empty> {
    match whose(&shim, &request.id) {
        Whose::Pods => teardown::shut_down_pod(&shim, &request.id).await,
        Whose::LastContainers => teardown::shut_down(&shim, End::Now).await,
        Whose::Nothings => {}
    }
    Ok(Empty::default())
}

/// The thing that a Shutdown ends.
enum Whose {
    /// The pod, and the shim with it.
    Pods,
    /// The last container, and the shim with it.
    LastContainers,
    /// A container only, since others need the shim.
    Nothings,
}

fn whose(shim: &Shim, id: &str) -> Whose {
    let mut table = shim.table();
    if table.pod.is_some() {
        return if table.pod(id).is_ok() { Whose::Pods } else { Whose::Nothings };
    }
    if table.is_empty() {
        return Whose::LastContainers;
    }
    table.shutdown_pending |= !table.has_owner();
    Whose::Nothings
}
