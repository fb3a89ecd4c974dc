//! Delete: forgets a process that has ended, or was never started. With the
//! last container, the sandbox is torn down. State shows the end of a process
//! before its exit is published, so a Delete waits for that.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{DeleteRequest, DeleteResponse};
use containerd_shim_protos::events::task::TaskDelete;
use containerd_shim_protos::protobuf::MessageField;
use sandbox_core::types::ProcessId;

use super::boot::BootClient;
use super::shim::Shim;
use super::{exits, hooks, let_go, teardown};
use crate::error::Result;
use crate::exit::{Exit, timestamp};
use crate::ready::readable;

/// The time that the mounts of a container may keep something busy.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that a process has to end by SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn delete(shim: Arc<Shim>, request: DeleteRequest) -> Result<DeleteResponse> {
    if !request.exec_id.is_empty() {
        return delete_exec(&shim, &request).await;
    }
    // containerd treats the NotFound that follows as success.
    teardown::cancel_create(&shim, &request.id).await;
    delete_container(&shim, &request.id).await
}

async fn delete_exec(shim: &Shim, request: &DeleteRequest) -> Result<DeleteResponse> {
    let id = ProcessId::exec(&request.id, &request.exec_id);
    exits::published(shim, &id).await?;
    let read = {
        let mut table = shim.table();
        let process = table.process(&id)?;
        process.state.check_delete()?;
        process.io.read_to_end()
    };
    read.await;
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    let process = container.process(id.exec.as_deref())?;
    let exit = process.state.delete()?;
    let pid = process.pid;
    container.execs.remove(&request.exec_id);
    Ok(response(pid, exit))
}

pub(super) async fn delete_container(shim: &Arc<Shim>, id: &str) -> Result<DeleteResponse> {
    shim.descriptors.must_work();
    exits::published(shim, &ProcessId::init(id)).await?;
    let (at_gate, boot, cgroup, plan, bundle) = {
        let mut table = shim.table();
        let container = table.container(id)?;
        let init = &mut container.init.state;
        init.check_delete()?;
        let at_gate = init.is_at_gate();
        if !at_gate {
            init.delete()?;
        }
        let (boot, cgroup) = (container.boot.clone(), container.cgroup.clone());
        (at_gate, boot, cgroup, container.plan.clone(), container.bundle.clone())
    };
    if at_gate {
        teardown::forget(shim, &boot, id).await;
        end_at_gate(shim, id).await?;
    } else {
        teardown::forget_ended(&boot, id);
    }
    let read = shim.table().container(id)?.init.io.read_to_end();
    read.await;
    teardown::take_cgroup_away(&boot, id, &cgroup);
    let keeps_busy = shim.table().container(id)?.keeps_busy;
    if keeps_busy && tokio::time::timeout(RELEASE_TIMEOUT, release(&boot)).await.is_err() {
        log::warn!("container {id}: its mounts are not gone {RELEASE_TIMEOUT:?} after its end");
    }
    let (pid, exit) = {
        let mut table = shim.table();
        let container = table.container(id)?;
        let known = (container.init.pid, container.init.state.known_exit());
        table.remove(id);
        teardown::tear_down_if_empty(&mut table, &boot);
        known
    };
    hooks::poststop(id, &bundle, &plan).await;
    let response = response(pid, exit);
    shim.events.publish(&TaskDelete {
        container_id: id.to_string(),
        pid,
        exit_status: response.exit_status,
        exited_at: response.exited_at.clone(),
        ..Default::default()
    });
    teardown::shut_down_if_pending(shim);
    Ok(response)
}

/// Waits until the mounts of a container that has ended are gone.
async fn release(boot: &BootClient) {
    for gofer in boot.sandbox.gofers_left() {
        let _ = readable(gofer.as_fd()).await;
    }
    let_go::wait(let_go::ever_let_go()).await;
}

/// Ends an init at its gate: it must have an exit too.
async fn end_at_gate(shim: &Arc<Shim>, id: &str) -> Result<()> {
    let process = shim.table().container(id)?.init.state.process().cloned();
    if let Some(process) = process {
        // The kill does not depend on boot's reply.
        let _ = process.signal(rustix::process::Signal::KILL.as_raw());
        let _ = tokio::time::timeout(KILL_TIMEOUT, readable(process.pidfd.as_fd())).await;
    }
    // Processes may have been exec'd into it; their exits come first.
    if *shim.table().container(id)?.unfinished_execs.borrow() > 0 {
        exits::end_execs(shim, id).await;
    }
    exits::conclude(shim, &ProcessId::init(id), Exit::killed());
    shim.table().container(id)?.init.state.delete()?;
    Ok(())
}

fn response(pid: u32, exit: Option<Exit>) -> DeleteResponse {
    DeleteResponse {
        pid,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map_or_else(MessageField::none, |exit| timestamp(exit.at)),
        ..Default::default()
    }
}
