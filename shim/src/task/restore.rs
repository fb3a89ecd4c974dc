//! Restore: makes a container from a checkpoint.
//!
//! As with runc, Create makes all but the processes, and Start restores those: containerd may
//! unpack the container's own files in between.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task::TaskStart;
use sandbox_core::cgroup::Cgroup;
use sandbox_core::control::message::Request;
use sandbox_core::types::ProcessId;

use super::boot::{BootClient, ExtraFds};
use super::container::MadeProcess;
use super::create_plan::CreatePlan;
use super::make::{Prepared, prepare, settle};
use super::shim::Shim;
use super::{exits, hooks};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::spans::step;

/// The time that criu has. It reads a GiB in less than a second, but a disk may be slow.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Restores the processes of a container. Returns the init's PID.
pub(super) async fn start(shim: &Arc<Shim>, id: &ProcessId, plan: Arc<CreatePlan>) -> Result<u32> {
    let (boot, cgroup) = {
        let mut table = shim.table();
        let container = table.container(&id.container)?;
        container.init.state.start_exec()?;
        (container.boot.clone(), container.cgroup.clone())
    };
    let made = exits::unless_exited(shim, id, make(shim, &plan, &boot, &cgroup)).await;
    let started = made.and_then(|made| started(shim, id, made));
    let early_exit = match started {
        Ok(early_exit) => early_exit,
        Err(error) => {
            let explained = boot.explain(error);
            exits::conclude(shim, id, Exit::not_run());
            return Err(explained);
        }
    };
    let pid = shim.table().container(&id.container)?.init.pid;
    if let Some(status) = early_exit {
        exits::report(shim, id, status);
    }
    let host = &plan.plan.host.hooks;
    for (hooks, status) in [(&host.create_runtime, "created"), (&host.poststart, "running")] {
        let state =
            hooks::State { id: &plan.id, pid, status, bundle: &plan.bundle, plan: &plan.plan };
        for hook in hooks {
            // The tasks run already.
            if let Err(error) = hooks::run(hook, &state).await {
                log::warn!("container {}: {error}", plan.id);
            }
        }
    }
    Ok(pid)
}

/// Lets the gofer open what is needed, and boot have criu restore the processes.
async fn make(
    shim: &Shim,
    plan: &Arc<CreatePlan>,
    boot: &BootClient,
    cgroup: &Arc<Cgroup>,
) -> Result<MadeProcess> {
    let checkpoint = plan.checkpoint.as_ref();
    let checkpoint = checkpoint.ok_or_else(|| Error::internal("nothing was saved"))?;
    boot.sandbox.check_ids(&plan.plan, &checkpoint.manifest)?;
    let span = step("open mounts");
    let delivered = boot.deliver_mounts(&plan.plan, plan.rootfs.clone(), None);
    let (found, prepared) = tokio::try_join!(delivered, prepare(shim, plan, boot, cgroup))?;
    settle(shim, plan, &found)?;
    drop(span);
    let Prepared { io, donated, cgroups } = prepared;
    if let Some(process) = &plan.plan.container.process {
        boot.sandbox.raise_limits(process)?;
    }
    boot.let_programs_run().await?;
    let _span = step("restore the processes");
    let capacity = cgroup.capacity(plan.capacity_policy())?;
    let extra = ExtraFds::collect(cgroups, boot.sandbox.seccomp(&plan.plan)?, &donated)?;
    let request = Request::Restore {
        plan: Box::new(plan.plan.container.clone()),
        donations: extra.donations,
        capacity,
        saved: Box::new(checkpoint.saved.clone()),
    };
    let descriptors = extra.descriptors(&donated);
    let reply = shim.ask(boot, request, &descriptors);
    let reply = match tokio::time::timeout(TIMEOUT, reply).await {
        Ok(reply) => reply?,
        Err(_) => {
            cancel(boot, &plan.id);
            return Err(Error::state(format!(
                "criu does not end within {TIMEOUT:?}: an image may be cut off, or a process \
                 outside hold a lock that was saved"
            )));
        }
    };
    cgroup.settled();
    MadeProcess::take(reply, io)
}

/// Cancels a restore that is under way. boot ends all processes that it has made, and the Start
/// fails.
pub(super) fn cancel(boot: &BootClient, id: &str) {
    boot.send(Request::Delete { container: id.to_owned() });
}

/// Attaches the restored init, and publishes its start. Returns the status of an early exit.
fn started(shim: &Shim, id: &ProcessId, mut made: MadeProcess) -> Result<Option<u32>> {
    let mounts = std::mem::take(&mut made.mounts);
    let mounts = mounts.and_those_of(made.process.pidfd.as_fd(), made.process.pid);
    let mut table = shim.table();
    let container = table.container(&id.container)?;
    let early_exit = container.init.attach(made)?;
    container.mounts = mounts;
    container.restore = None;
    let (container_id, pid) = (id.container.clone(), container.init.pid);
    shim.events.publish(&TaskStart { container_id, pid, ..Default::default() });
    Ok(early_exit)
}
