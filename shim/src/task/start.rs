//! Start: opens the gate of a created container, or runs an exec.

use std::sync::Arc;

use containerd_shim_protos::api::{StartRequest, StartResponse};
use containerd_shim_protos::events::task::TaskStart;
use sandbox_core::control::message::Request;
use sandbox_core::types::ProcessId;

use super::container::process_id;
use super::shim::Shim;
use super::{exec, exits, hooks, rest, restore};
use crate::error::Result;
use crate::exit::Exit;

pub(super) async fn start(shim: Arc<Shim>, request: StartRequest) -> Result<StartResponse> {
    let id = process_id(&request.id, &request.exec_id);
    let pid = match &id.exec {
        None => start_init(&shim, &id).await?,
        Some(_) => exec::start(&shim, &id).await?,
    };
    Ok(StartResponse { pid, ..Default::default() })
}

async fn start_init(shim: &Arc<Shim>, process: &ProcessId) -> Result<u32> {
    let id = &process.container;
    let restore = shim.table().container(id)?.restore.clone();
    if let Some(plan) = restore {
        let pid = restore::start(shim, process, plan).await?;
        rest::container_started();
        return Ok(pid);
    }
    let (boot, plan, pause) = {
        let mut table = shim.table();
        let container = table.container(id)?;
        container.init.state.start_init()?;
        (container.boot.clone(), container.plan.clone(), container.is_pause())
    };
    if !pause {
        let reply = async {
            boot.let_programs_run().await?;
            let request = Request::Start { container: id.clone() };
            shim.ask(&boot, request, &[]).await
        };
        if let Err(error) = exits::unless_exited(shim, process, reply).await {
            let explained = boot.explain(error);
            exits::conclude(shim, process, Exit::not_run());
            return Err(explained);
        }
    }
    let (pid, bundle, early_exit) = {
        let mut table = shim.table();
        let container = table.container(id)?;
        let early_exit = container.init.state.started()?;
        let pid = container.init.pid;
        let container_id = id.clone();
        shim.events.publish(&TaskStart { container_id, pid, ..Default::default() });
        (pid, container.bundle.clone(), early_exit)
    };
    if let Some(status) = early_exit {
        exits::report(shim, process, status);
    }
    let state = hooks::State { id, pid, status: "running", bundle: &bundle, plan: &plan };
    for hook in &plan.host.hooks.poststart {
        // The specification requires only a warning.
        if let Err(error) = hooks::run(hook, &state).await {
            log::warn!("container {id}: {error}");
        }
    }
    rest::container_started();
    Ok(pid)
}
