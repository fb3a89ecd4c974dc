//! Start: opens the gate of a created container, or runs an exec.

use std::sync::Arc;
use std::time::SystemTime;

use containerd_shim_protos::api::{StartRequest, StartResponse};
use containerd_shim_protos::events::task::TaskStart;
use sandbox_core::control::message::Request;

use super::lifecycle::Step;
use super::table::{Exit, Shim};
use super::{exec, exits, hooks};
use crate::error::Result;

/// What a container reports whose program could not be run.
const NOT_RUN: u32 = 127;

pub(super) async fn start(shim: Arc<Shim>, request: StartRequest) -> Result<StartResponse> {
    let pid = if request.exec_id.is_empty() {
        start_init(&shim, &request.id).await?
    } else {
        exec::start(&shim, &request.id, &request.exec_id).await?
    };
    Ok(StartResponse { pid, ..Default::default() })
}

async fn start_init(shim: &Arc<Shim>, id: &str) -> Result<u32> {
    let (boot, plan, pause) = {
        let mut table = shim.table();
        let container = table.container(id)?;
        container.init.step(Step::Start)?;
        (container.boot.clone(), container.plan.clone(), container.is_pause())
    };
    if !pause {
        let request = Request::Start { container: id.to_string() };
        if let Err(error) = exits::or_ended(shim, id, "", boot.ask(shim, request, &[])).await {
            exits::conclude(shim, id, "", Exit { status: NOT_RUN, at: SystemTime::now() });
            return Err(error);
        }
    }
    let (pid, bundle) = {
        let mut table = shim.table();
        let container = table.container(id)?;
        container.init.step(Step::Started)?;
        let pid = container.init.pid;
        let container_id = id.to_string();
        shim.events.publish(&TaskStart { container_id, pid, ..Default::default() });
        (pid, container.bundle.clone())
    };
    exits::catch_up(shim, id, "");
    let state = hooks::State { id, pid, status: "running", bundle: &bundle, plan: &plan };
    for hook in &plan.host.hooks.poststart {
        // The specification wants a warning and no more.
        if let Err(error) = hooks::run(hook, &state).await {
            log::warn!("container {id}: {error}");
        }
    }
    Ok(pid)
}
