//! Kill: a signal for one process, or for all of a container.

use std::sync::Arc;

use containerd_shim_protos::api::{Empty, KillRequest};
use rustix::process::Signal;

use super::exits;
use super::lifecycle::{State, Step};
use super::table::{Container, Shim};
use crate::error::{Error, Result};

pub(super) fn kill(shim: &Arc<Shim>, request: &KillRequest) -> Result<Empty> {
    let signal = i32::try_from(request.signal).ok().filter(|signal| (1..=64).contains(signal));
    let signal = signal
        .ok_or_else(|| Error::invalid(format!("{} is no signal; use 1 to 64", request.signal)))?;
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    let process = container.process(&request.exec_id)?;
    if process.ending || matches!(process.state(), State::Stopped | State::Deleting) {
        return Err(Error::not_found("process already finished"));
    }
    if signal == Signal::KILL.as_raw() {
        // Told apart from what this does.
        exits::publish_oom(shim, container, false);
    }
    if request.exec_id.is_empty() && container.is_pause() {
        kill_pause(container, signal)?;
    } else if request.all && request.exec_id.is_empty() && !dies_with_init(container, signal) {
        kill_all(container, signal)?;
    } else {
        let handle = container.process(&request.exec_id)?.handle.clone();
        let handle = handle.ok_or_else(|| Error::state("process not created"))?;
        if signal == Signal::KILL.as_raw() {
            exits::expect(shim, &request.id, &request.exec_id, handle.clone());
        }
        handle.signal(signal)?;
    }
    // An exec is killed at once on version 2, and on version 1 when the container
    // resumes.
    if signal == Signal::KILL.as_raw() && request.exec_id.is_empty() {
        thaw(container)?;
    }
    Ok(Empty::default())
}

/// The kernel kills a PID namespace with its init.
fn dies_with_init(container: &Container, signal: i32) -> bool {
    signal == Signal::KILL.as_raw() && container.plan.container.namespaces.pid
}

/// Every process of the container's cgroup but boot.
fn kill_all(container: &Container, number: i32) -> Result<()> {
    let signal = Signal::from_named_raw(number).ok_or_else(|| {
        Error::invalid(format!("signal {number} is for one process, not for all"))
    })?;
    let boot = container.boot.handle.pid();
    for pid in container.cgroup.pids()? {
        if pid != boot {
            exits::signal_member(container, pid, signal);
        }
    }
    Ok(())
}

/// What the pause program does: it ends, well on SIGINT and SIGTERM, and takes
/// no notice of what else may be ignored by a PID 1. boot stands in for it, so
/// this is the end of the sandbox.
fn kill_pause(container: &mut Container, signal: i32) -> Result<()> {
    const ENDS_WELL: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::QUIT];
    if ENDS_WELL.iter().any(|s| s.as_raw() == signal) {
        container.init.reports = Some(0);
    } else if signal != Signal::KILL.as_raw() {
        return Ok(());
    }
    Ok(container.boot.handle.kill()?)
}

/// Frozen processes do not die, on cgroup v1. On version 2 they do, and systemd
/// may have removed their cgroup by now.
fn thaw(container: &mut Container) -> Result<()> {
    if container.init.state() == State::Paused {
        container.cgroup.thaw_if_there()?;
        container.init.step(Step::Resume)?;
    }
    Ok(())
}
