//! An exec that is started at once and that no client deletes: the shim does, once it has ended.

use std::sync::Arc;

use containerd_shim_protos::api::{DeleteRequest, ExecProcessRequest};
use sandbox_core::sandbox::counters::Operation;
use sandbox_core::types::ProcessId;

use super::count::Counted;
use super::shim::Shim;
use super::{delete, exec};
use crate::error::Result;

/// Runs it. Returns its PID. Nothing of one that does not start is left.
pub(crate) async fn exec_detached(shim: Arc<Shim>, request: ExecProcessRequest) -> Result<u32> {
    let id = ProcessId::exec(&request.id, &request.exec_id);
    exec::exec(&shim, request)?;
    let mut exit = shim.table().process(&id)?.exit.subscribe();
    let counted = Counted::begin(Operation::Exec, &shim);
    let started = counted.count(exec::start(&shim, &id)).await;
    if started.is_err() {
        forget(shim, id).await;
        return started;
    }
    tokio::spawn(async move {
        // Fails if its container is deleted, and it with that.
        if exit.wait_for(Option::is_some).await.is_ok() {
            forget(shim, id).await;
        }
    });
    started
}

async fn forget(shim: Arc<Shim>, id: ProcessId) {
    let name = id.to_string();
    let request =
        DeleteRequest { exec_id: id.exec_id().to_string(), id: id.container, ..Default::default() };
    if let Err(error) = delete::delete(shim, request).await {
        log::warn!("{name}: {error}");
    }
}
