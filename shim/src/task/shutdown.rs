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

//! A container that is there, or is being created, is ended first. containerd sends a Shutdown
//! after a Delete that has overtaken the Create, or has failed, and forgets the container: it
//! would stay for good.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{Empty, KillRequest, ShutdownRequest};
use rustix::process::Signal;

use super::shim::{End, Shim};
use super::{delete, kill, teardown};
use crate::error::Result;

/// The time that a container that containerd has forgotten has to end by SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn shutdown(shim: Arc<Shim>, request: ShutdownRequest) -> Result<Empty> {
    end_forgotten(&shim, &request.id).await;
    match whose(&shim, &request.id) {
        Whose::Pods => teardown::shut_down_pod(&shim, &request.id).await,
        Whose::LastContainers => teardown::shut_down(&shim, End::Now).await,
        Whose::Nothings => {}
    }
    Ok(Empty::default())
}

/// Ends a container that containerd has forgotten, in whatever state it is, with its events.
async fn end_forgotten(shim: &Arc<Shim>, id: &str) {
    teardown::cancel_create(shim, id).await;
    let (mut exit, was_started) = match shim.table().container(id) {
        Ok(container) => (container.init.exit.subscribe(), container.init.state.is_alive()),
        Err(_) => return,
    };
    log::warn!("container {id}: containerd does not know it any more, so it is ended");
    if was_started {
        let signal = Signal::KILL.as_raw().cast_unsigned();
        let request = KillRequest { id: id.to_string(), signal, ..Default::default() };
        if let Err(error) = kill::kill(shim, &request) {
            log::debug!("container {id}: {error}");
        }
        let _ = tokio::time::timeout(KILL_TIMEOUT, exit.wait_for(Option::is_some)).await;
    }
    if let Err(error) = delete::delete_container(shim, id).await {
        log::warn!("container {id}: {error}");
    }
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
