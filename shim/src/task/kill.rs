//! Kill: sends a signal to one process, or to all of a container.

use std::sync::Arc;

use containerd_shim_protos::api::{Empty, KillRequest};
use rustix::process::Signal;
use sandbox_core::sys::pidfd::LAST_SIGNAL;

use super::container::{Container, process_id};
use super::lifecycle::State;
use super::shim::Shim;
use super::{exits, oom, restore};
use crate::error::{Error, Result};

pub(super) fn kill(shim: &Arc<Shim>, request: &KillRequest) -> Result<Empty> {
    let signal =
        i32::try_from(request.signal).ok().filter(|signal| (0..=LAST_SIGNAL).contains(signal));
    let signal = signal
        .ok_or_else(|| Error::invalid(format!("{} is no signal; use 0 to 64", request.signal)))?;
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    let id = process_id(&request.id, &request.exec_id);
    let is_init = id.exec.is_none();
    if is_init && container.restore.is_some() && container.init.state.is_starting() {
        // criu has no use for any other.
        if signal == Signal::KILL.as_raw() {
            restore::cancel(&container.boot, &container.id);
            return Ok(Empty::default());
        }
        return Err(Error::state("the container is being restored; SIGKILL ends that"));
    }
    if container.process(id.exec.as_deref())?.state.has_ended() {
        return Err(Error::not_found("process already finished"));
    }
    if signal == Signal::KILL.as_raw() {
        // Published first, so that this SIGKILL is not mistaken for an OOM kill.
        oom::publish(shim, container, false);
    }
    let process = container.process(id.exec.as_deref())?.state.process().cloned();
    if signal == Signal::KILL.as_raw()
        && let Some(process) = &process
    {
        exits::ensure_exit_is_published(shim, id, process);
    }
    if is_init && container.is_pause() {
        kill_pause(container, signal)?;
    } else if request.all && is_init && !dies_with_init(container, signal) {
        shim.descriptors.must_work();
        kill_all(container, signal)?;
    } else {
        process.ok_or_else(|| Error::state("process not created"))?.signal(signal)?;
    }
    // A frozen exec dies at once on version 2, and on version 1 once the
    // container is resumed.
    if signal == Signal::KILL.as_raw() && is_init && container.init.state.is_frozen() {
        shim.descriptors.must_work();
        thaw(container)?;
    }
    Ok(Empty::default())
}

/// Whether the kernel kills the container's PID namespace with its init.
fn dies_with_init(container: &Container, signal: i32) -> bool {
    signal == Signal::KILL.as_raw() && container.plan.container.namespaces.pid
}

/// Sends a signal to every process of the container except boot.
fn kill_all(container: &Container, signal: i32) -> Result<()> {
    let boot = container.boot.sandbox.pid();
    for pid in container.members()? {
        if pid != boot {
            exits::signal_member(container, pid, signal);
        }
    }
    Ok(())
}

/// Acts as the pause program: it ends with status 0 on SIGINT and SIGTERM, and
/// ignores signals that PID 1 may ignore. boot stands in for it, so this ends
/// the sandbox.
fn kill_pause(container: &mut Container, signal: i32) -> Result<()> {
    const ENDS_WELL: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::QUIT];
    if ENDS_WELL.iter().any(|s| s.as_raw() == signal) {
        container.init.state.end_pause_with(0);
    } else if signal != Signal::KILL.as_raw() {
        return Ok(());
    }
    Ok(container.boot.sandbox.kill()?)
}

/// Thaws the container. On cgroup v1, frozen processes do not die. On version 2
/// they do, and systemd may have removed their cgroup by now.
fn thaw(container: &mut Container) -> Result<()> {
    if !matches!(container.init.state, State::Paused(_)) {
        return Ok(());
    }
    container.init.state.resume(|| Ok(container.cgroup.thaw_if_there()?))
}
