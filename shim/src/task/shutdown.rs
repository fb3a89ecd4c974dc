//! Shutdown: containerd has no more need of the shim. 1.x says so after each
//! Delete, and means the shim only after that of the last container. 2.x says
//! so once, after that of the sandbox's root, and means it even if containers
//! are left that died with the sandbox and that it has yet to delete.
//!
//! A sandbox that was asked for itself ends by ShutdownSandbox, whatever becomes
//! of its containers; but a containerd that starts and does not know it any more
//! says it so (`core/runtime/v2/shim_load.go`, `loadShim`).

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

/// Whose end a Shutdown means.
enum Whose {
    /// The pod's, and the shim's with it.
    Pods,
    /// The last container's, and the shim's with it.
    LastContainers,
    /// A container's while others need the shim.
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
