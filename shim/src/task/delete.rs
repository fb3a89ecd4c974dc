//! Delete: forgets a process that has ended, or never began. With its last
//! container goes the sandbox.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::{DeleteRequest, DeleteResponse};
use containerd_shim_protos::events::task::TaskDelete;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

use super::lifecycle::{State, Step};
use super::sandbox::Boot;
use super::table::{Exit, KILLED, Sandbox, Shim, Table};
use super::{exits, hooks, shutdown};
use crate::error::Result;
use crate::ready::readable;

/// How long the kernel may take over a SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a Delete waits for a Create that it has undone: containerd waits no
/// more than three seconds for a shim that it gives up.
const UNDONE: Duration = Duration::from_secs(2);

pub(super) async fn delete(shim: Arc<Shim>, request: DeleteRequest) -> Result<DeleteResponse> {
    if !request.exec_id.is_empty() {
        return delete_exec(&shim, &request).await;
    }
    give_up_create(&shim, &request.id).await;
    delete_container(&shim, &request.id).await
}

/// A container that is still being created is deleted when whoever asked for it
/// has given up, which containerd tells nobody else (`TaskManager.Create`,
/// core/runtime/v2/task_manager.go). It takes an answer that there is none for a
/// good one.
async fn give_up_create(shim: &Shim, id: &str) {
    let undone = shim.table().give_up(id);
    if let Some(undone) = undone
        && tokio::time::timeout(UNDONE, undone).await.is_err()
    {
        log::warn!("container {id}: its Create was given up and is still being undone");
    }
}

async fn delete_exec(shim: &Shim, request: &DeleteRequest) -> Result<DeleteResponse> {
    let read = {
        let mut table = shim.table();
        let process = table.container(&request.id)?.process(&request.exec_id)?;
        process.state().next(Step::Delete)?;
        process.io.read_to_end()
    };
    read.await;
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    let process = container.process(&request.exec_id)?;
    process.step(Step::Delete)?;
    let (pid, exit) = (process.pid, process.exited());
    container.execs.remove(&request.exec_id);
    Ok(response(pid, exit))
}

async fn delete_container(shim: &Arc<Shim>, id: &str) -> Result<DeleteResponse> {
    let (never_ran, boot, cgroup, plan, bundle) = {
        let mut table = shim.table();
        let container = table.container(id)?;
        container.init.state().next(Step::Delete)?;
        let never_ran = container.init.state() == State::Created;
        if !never_ran {
            container.init.step(Step::Delete)?;
        }
        let (boot, cgroup) = (container.boot.clone(), container.cgroup.clone());
        (never_ran, boot, cgroup, container.plan.clone(), container.bundle.clone())
    };
    if never_ran {
        boot.forget(shim, id).await;
        end_unborn(shim, id).await?;
    } else {
        boot.forget_ended(id);
    }
    let read = shim.table().container(id)?.init.io.read_to_end();
    read.await;
    let is_root = boot.root == id;
    if !is_root && let Err(error) = cgroup.remove() {
        log::warn!("container {id}: {error}");
    }
    let (pid, exit) = {
        let mut table = shim.table();
        let container = table.container(id)?;
        let told = (container.init.pid, container.init.exited());
        table.remove(id);
        if table.is_empty() {
            take_down(&mut table, boot);
        }
        told
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
    shutdown::catch_up(shim);
    Ok(response)
}

/// A container that was killed at its gate has an exit too.
async fn end_unborn(shim: &Arc<Shim>, id: &str) -> Result<()> {
    let handle = shim.table().container(id)?.init.handle.clone();
    if let Some(handle) = handle {
        // Whatever boot said about it.
        let _ = handle.signal(rustix::process::Signal::KILL.as_raw());
        let _ = tokio::time::timeout(PATIENCE, readable(handle.pidfd.as_fd())).await;
    }
    exits::conclude(shim, id, "", Exit { status: KILLED, at: SystemTime::now() });
    shim.table().container(id)?.init.step(Step::Delete)
}

/// Takes the sandbox down behind the scenes; Shutdown waits for it.
pub(super) fn take_down(table: &mut Table, boot: Arc<Boot>) {
    table.sandbox = Sandbox::None;
    let before = table.tear_down.take();
    table.tear_down = Some(tokio::spawn(async move {
        if let Some(before) = before {
            let _ = before.await;
        }
        boot.tear_down().await;
    }));
}

fn response(pid: u32, exit: Option<Exit>) -> DeleteResponse {
    DeleteResponse {
        pid,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: MessageField(exit.map(|exit| Box::new(Timestamp::from(exit.at)))),
        ..Default::default()
    }
}
