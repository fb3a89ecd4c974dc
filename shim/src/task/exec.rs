//! Exec: one more process for a container. It is checked and planned here, and
//! runs when containerd says Start.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use containerd_shim_protos::api::{Empty, ExecProcessRequest};
use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted};
use sandbox_core::control::message::{Done, Request};
use sandbox_core::sandbox::{Along, Process as Handle};
use sandbox_core::spec::plan::ProcessPlan;
use sandbox_core::spec::{ProcessDefaults, load_process, plan_process};

use super::create::attached;
use super::exits;
use super::lifecycle::{State, Step};
use super::sandbox::{Boot, Gifts};
use super::table::{Container, Exit, Process, Shim};
use crate::error::{Error, Result};
use crate::stdio::{self, Donated, Owner, Stdio};

/// What an exec that never ran reports to those who wait for it.
const NOT_RUN: u32 = 127;

pub(super) fn exec(shim: &Shim, request: ExecProcessRequest) -> Result<Empty> {
    shim.events.has_room()?;
    let process = load_process(&request.spec.value)?;
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    if request.exec_id.is_empty() {
        return Err(Error::invalid("exec_id is empty"));
    }
    if container.execs.contains_key(&request.exec_id) {
        return Err(Error::exists(format!("exec {} already exists", request.exec_id)));
    }
    can_exec(container)?;
    let mut plan = plan_process(&process, &ProcessDefaults::of(&container.plan))?;
    // containerd's flag counts, as with runc.
    plan.terminal = request.terminal.then(|| plan.terminal.unwrap_or_default());
    let stdio = Stdio {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
    };
    let mut process = Process::new(stdio);
    process.plan = Some(Box::new(plan));
    container.execs.insert(request.exec_id.clone(), process);
    shim.events.publish(&TaskExecAdded {
        container_id: request.id,
        exec_id: request.exec_id,
        ..Default::default()
    });
    Ok(Empty::default())
}

fn can_exec(container: &Container) -> Result<()> {
    if container.is_pause() {
        return Err(Error::state(format!(
            "container {} is a sandbox without a process; exec into one of its containers",
            container.id
        )));
    }
    match container.init.state() {
        State::Paused => Err(Error::state(format!("container {} is paused", container.id))),
        State::Stopped | State::Deleting => Err(not_running(container)),
        _ if container.init.ending => Err(not_running(container)),
        _ => Ok(()),
    }
}

fn not_running(container: &Container) -> Error {
    Error::state(format!("container {} init process is not running", container.id))
}

/// An exec between Start and boot's answer.
struct Begun {
    boot: Arc<Boot>,
    plan: Box<ProcessPlan>,
    stdio: Stdio,
    owner: (u32, u32),
}

/// Start of an exec. Returns its PID.
pub(super) async fn start(shim: &Arc<Shim>, id: &str, exec: &str) -> Result<u32> {
    let begun = begin(shim, id, exec)?;
    let outcome = run(shim, id, exec, begun).await;
    match outcome {
        Ok(pid) => {
            exits::catch_up(shim, id, exec);
            Ok(pid)
        }
        Err(error) => {
            give_up(shim, id, exec);
            Err(error)
        }
    }
}

fn begin(shim: &Shim, id: &str, exec: &str) -> Result<Begun> {
    let mut table = shim.table();
    let container = table.container(id)?;
    if container.init.state() != State::Running {
        can_exec(container)?;
        return Err(not_running(container));
    }
    can_exec(container)?;
    let boot = container.boot.clone();
    let process = container.process(exec)?;
    process.step(Step::Start)?;
    let plan = process.plan.take().ok_or_else(|| Error::internal("this exec has no plan"))?;
    let owner = (boot.handle.host_uid(plan.uid), boot.handle.host_gid(plan.gid));
    let stdio = process.stdio.clone();
    container.unsettled.send_modify(|execs| *execs += 1);
    Ok(Begun { boot, plan, stdio, owner })
}

async fn run(shim: &Arc<Shim>, id: &str, exec: &str, begun: Begun) -> Result<u32> {
    let Begun { boot, plan, stdio, owner: (uid, gid) } = begun;
    let owner = Owner { uid, gid, namespace: &shim.namespace, container: id };
    let (io, donated) = stdio::open(&stdio, owner).await?;
    let gifts = gifts(shim, id, &boot, &donated)?;
    let request = Request::Exec {
        container: id.to_string(),
        exec: exec.to_string(),
        process: plan,
        donations: gifts.donations,
    };
    let descriptors = gifts.descriptors(&donated);
    let reply = exits::or_ended(shim, id, exec, boot.ask(shim, request, &descriptors)).await?;
    let (handle, terminal) = take_process(reply)?;
    let io = attached(io, terminal)?;
    let mut table = shim.table();
    let process = table.process(id, exec)?;
    process.run(handle, io)?;
    process.step(Step::Started)?;
    let pid = process.pid;
    shim.events.publish(&TaskExecStarted {
        container_id: id.to_string(),
        exec_id: exec.to_string(),
        pid,
        ..Default::default()
    });
    Ok(pid)
}

fn gifts(shim: &Shim, id: &str, boot: &Boot, donated: &Donated) -> Result<Gifts> {
    let mut table = shim.table();
    let container = table.container(id)?;
    Gifts::collect(boot, &container.plan, container.procs_to_join()?, donated)
}

/// A new process and its terminal.
pub(super) fn take_process(reply: (Done, Along)) -> Result<(Handle, Option<OwnedFd>)> {
    match reply.1 {
        Along { process: Some(process), terminal } => Ok((process, terminal)),
        Along { process: None, .. } => {
            Err(Error::internal("the sandbox process made no process and does not say why"))
        }
    }
}

/// It never ran: no exit is told, but nobody shall wait for one either.
fn give_up(shim: &Shim, id: &str, exec: &str) {
    let mut table = shim.table();
    let Ok(container) = table.container(id) else { return };
    if let Ok(process) = container.process(exec)
        && process.step(Step::Exit).is_ok()
    {
        let at = std::time::SystemTime::now();
        process.exit.send_replace(Some(Exit { status: NOT_RUN, at }));
        exits::settle(container);
    }
}
