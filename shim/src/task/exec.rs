//! Exec: adds a process to a container. It is checked and planned here, and
//! started by containerd's Start.

use std::sync::Arc;

use containerd_shim_protos::api::{Empty, ExecProcessRequest};
use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted};
use sandbox_core::control::message::Request;
use sandbox_core::spec::plan::ProcessPlan;
use sandbox_core::spec::{ProcessDefaults, load_process, plan_process};
use sandbox_core::types::ProcessId;

use super::boot::{BootClient, ExtraFds};
use super::container::{Container, MadeProcess, Process};
use super::exits;
use super::lifecycle::State;
use super::shim::Shim;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::rootless;
use crate::spans::step;
use crate::stdio::{self, CutAt, Donated, Owner, Stdio};

pub(super) fn exec(shim: &Shim, request: ExecProcessRequest) -> Result<Empty> {
    shim.events.has_room()?;
    shim.descriptors.admit()?;
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
    if rootless::of_this_process().is_some() {
        // Create has named what is lost.
        plan.oom_score_adj = plan.oom_score_adj.filter(|score| rootless::may_have_score(*score));
    }
    // The request's flag counts, as with runc.
    plan.terminal = request.terminal.then(|| plan.terminal.unwrap_or_default());
    let stdio = Stdio {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
    };
    container.execs.insert(request.exec_id.clone(), Process::planned(stdio, plan));
    shim.events.publish(&TaskExecAdded {
        container_id: request.id,
        exec_id: request.exec_id,
        ..Default::default()
    });
    Ok(Empty::default())
}

/// Refuses an exec that could never start. It may be planned before its
/// container is started.
fn can_exec(container: &Container) -> Result<()> {
    if container.is_pause() {
        return Err(Error::state(format!(
            "container {} is a sandbox without a process; exec into one of its containers",
            container.id
        )));
    }
    match &container.init.state {
        State::Paused(_) => Err(Error::state(format!("container {} is paused", container.id))),
        state if state.has_ended() => Err(container.not_running()),
        _ => Ok(()),
    }
}

/// An exec between Start and boot's reply.
struct Begun {
    boot: Arc<BootClient>,
    plan: Box<ProcessPlan>,
    stdio: Stdio,
    owner: (u32, u32),
}

/// Starts an exec. Returns its PID.
pub(super) async fn start(shim: &Arc<Shim>, id: &ProcessId) -> Result<u32> {
    shim.descriptors.admit()?;
    let begun = begin(shim, id)?;
    let boot = begun.boot.clone();
    match run(shim, id, begun).await {
        Ok(Started { pid, early_exit }) => {
            if let Some(status) = early_exit {
                exits::report(shim, id, status);
            }
            Ok(pid)
        }
        Err(error) => {
            if error.is_for_want_of_descriptors() {
                shim.descriptors.run_out();
                // There may be one that the shim could not take.
                boot.send(Request::Kill { process: id.clone() });
            }
            let explained = match shim.table().container(&id.container) {
                Ok(container) => container.explain(error),
                Err(_) => error,
            };
            end_unstarted(shim, id);
            Err(shim.descriptors.explain(explained))
        }
    }
}

fn begin(shim: &Shim, id: &ProcessId) -> Result<Begun> {
    let mut table = shim.table();
    let container = table.container(&id.container)?;
    can_exec(container)?;
    // As under runc, the init may still be at its gate: its namespaces and its root are made.
    let joinable = matches!(
        container.init.state,
        State::Created(_) | State::Starting { .. } | State::Running(_)
    );
    if !joinable {
        return Err(container.not_running());
    }
    let (boot, container_plan) = (container.boot.clone(), container.plan.clone());
    let process = container.process(id.exec.as_deref())?;
    let plan = process.state.start_exec()?;
    let owner = boot.sandbox.host_ids(&container_plan, plan.uid, plan.gid);
    let stdio = process.stdio.clone();
    container.unfinished_execs.send_modify(|execs| *execs += 1);
    Ok(Begun { boot, plan, stdio, owner })
}

/// An exec whose start is published.
struct Started {
    pid: u32,
    /// The status of an exit that was reported before the start was published.
    early_exit: Option<u32>,
}

async fn run(shim: &Arc<Shim>, id: &ProcessId, begun: Begun) -> Result<Started> {
    let Begun { boot, plan, stdio, owner: (uid, gid) } = begun;
    let owner = Owner { uid, gid, namespace: &shim.namespace, container: &id.container };
    boot.let_programs_run().await?;
    boot.sandbox.raise_limits(&plan)?;
    let (io, donated) = stdio::open(&stdio, owner, CutAt::Delete).await?;
    let extra = extra_fds(shim, id, &donated)?;
    let request = Request::Exec {
        container: id.container.clone(),
        exec: id.exec_id().to_string(),
        process: plan,
        donations: extra.donations,
    };
    let descriptors = extra.descriptors(&donated);
    let span = step("create the process");
    let reply = shim.ask(&boot, request, &descriptors);
    let reply = exits::unless_exited(shim, id, reply).await?;
    drop(span);
    let made = MadeProcess::take(reply, io)?;
    shim.descriptors.took(&made.process.pidfd);
    let mut table = shim.table();
    let process = table.process(id)?;
    let early_exit = process.attach(made)?;
    let pid = process.pid;
    shim.events.publish(&TaskExecStarted {
        container_id: id.container.clone(),
        exec_id: id.exec_id().to_string(),
        pid,
        ..Default::default()
    });
    Ok(Started { pid, early_exit })
}

fn extra_fds(shim: &Shim, id: &ProcessId, donated: &Donated) -> Result<ExtraFds> {
    let mut table = shim.table();
    let container = table.container(&id.container)?;
    ExtraFds::collect(container.cgroups_to_join()?, None, donated)
}

/// Ends an exec that was never started. Its exit is not published, but clients
/// that wait for it receive one.
fn end_unstarted(shim: &Shim, id: &ProcessId) {
    let mut table = shim.table();
    let Ok(container) = table.container(&id.container) else { return };
    if let Ok(process) = container.process(id.exec.as_deref())
        && let Ok(exit) = process.state.exit(Exit::not_run())
    {
        process.exit.send_replace(Some(exit));
        container.finish_exec();
    }
}
