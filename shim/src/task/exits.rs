//! What happens when a process has ended, and in which order it is told:
//!
//! 1. the Start of a process before its Exit, however fast it was;
//! 2. the Exits of all execs before the init's;
//! 3. an OOM kill before the Exit that it caused;
//! 4. the last byte of output before the Exit: from a terminal it has been passed
//!    on, from a FIFO it has been read, unless nobody comes to read it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandbox_core::sandbox::Process;
use sandbox_core::types::HostPid;

use super::lifecycle::{State, Step};
use super::table::{self, Container, Exit, KILLED, Shim};
use crate::error::{Error, Result};
use crate::ready::readable;

/// How long the execs of a container may take to end after its init.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an exit waits for containerd to take the news of an OOM kill. What an
/// answer to Wait starts is done in an order of its own: CRI would call the
/// container failed, and only then out of memory.
const TOLD: Duration = Duration::from_secs(1);

/// A process has ended: boot says so, or boot itself is gone. `exec` is empty
/// for a container's init. False when there is no such process, or its end is no
/// news.
pub(super) fn ended(shim: &Arc<Shim>, id: &str, exec: &str, status: u32) -> bool {
    // The kernel has 8 bits for codes, and 7 for signals, to which 128 is added.
    let mut status = status & 0xff;
    let simple = {
        let mut table = shim.table();
        if exec.is_empty()
            && let Some(is_news) = table.ended_in_creation(id, status)
        {
            return is_news;
        }
        let Ok(container) = table.container(id) else { return false };
        let Ok(process) = container.process(exec) else { return false };
        match process.state() {
            State::Starting => return process.early_exit.replace(status).is_none(),
            State::Created if !exec.is_empty() => return false,
            State::Stopped | State::Deleting => return false,
            _ if process.ending => return false,
            _ => process.ending = true,
        }
        status = process.reports.unwrap_or(status);
        let is_read = process.io.drained().is_none() && process.io.unread().is_none();
        let last = exec.is_empty() && (*container.unsettled.borrow() > 0 || shares_pids(container));
        publish_oom(shim, container, status == KILLED);
        is_read && !last && container.oom_kills == 0
    };
    let at = SystemTime::now();
    if simple {
        conclude(shim, id, exec, Exit { status, at });
        return true;
    }
    let (shim, id, exec) = (shim.clone(), id.to_string(), exec.to_string());
    shim.untold.send_modify(|exits| *exits += 1);
    tokio::spawn(async move {
        in_order(&shim, &id, &exec, Exit { status, at }).await;
        shim.untold.send_modify(|exits| *exits -= 1);
    });
    true
}

/// Tells an exit when all that comes before it was told.
async fn in_order(shim: &Arc<Shim>, id: &str, exec: &str, exit: Exit) {
    if exec.is_empty() {
        // What is waited for now may take longer than systemd.
        if let Ok(container) = shim.table().container(id) {
            container.latch_stats();
        }
        clear(shim, id).await;
    }
    let (drained, unread, oom_kills) = match shim.table().container(id) {
        Ok(container) => {
            let oom_kills = container.oom_kills;
            let Ok(process) = container.process(exec) else { return };
            (process.io.drained(), process.io.unread(), oom_kills)
        }
        Err(_) => return,
    };
    if let Some(drained) = drained {
        drained.await;
    }
    if let Some(unread) = unread {
        unread.await;
    }
    if oom_kills > 0 {
        shim.events.delivered(TOLD).await;
    }
    conclude(shim, id, exec, exit);
}

/// Sees to it that the exit of a process that is being killed is told, even if
/// the sandbox was taken over and keeps it to itself, or never answers its Start:
/// nobody shall wait for a pod for ever.
pub(super) fn expect(shim: &Arc<Shim>, id: &str, exec: &str, process: Arc<Process>) {
    let (shim, id, exec) = (shim.clone(), id.to_string(), exec.to_string());
    tokio::spawn(async move {
        let _ = readable(process.pidfd.as_fd()).await;
        tokio::time::sleep(PATIENCE).await;
        // Told by now, as a rule, and its name may be somebody else's.
        let is_it = |p: &mut table::Process| {
            p.handle.as_ref().is_some_and(|handle| Arc::ptr_eq(handle, &process))
        };
        if !shim.table().process(&id, &exec).is_ok_and(is_it) {
            return;
        }
        ended(&shim, &id, &exec, KILLED);
        let still = shim.table().process(&id, &exec).map(|process| process.state());
        if still.is_ok_and(|state| state == State::Starting) {
            // The Start fails by it.
            conclude(&shim, &id, &exec, Exit { status: KILLED, at: SystemTime::now() });
        }
    });
}

/// Waits for boot's answer to a Start, but no longer than there is a process.
pub(super) async fn or_ended<T>(
    shim: &Shim,
    id: &str,
    exec: &str,
    answer: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut exit = shim.table().process(id, exec)?.exit.subscribe();
    tokio::select! {
        biased;
        answer = answer => answer,
        _ = exit.wait_for(Option::is_some) => {
            Err(Error::state("the process ended before the sandbox process said that it started"))
        }
    }
}

/// Tells an exit whose Start was not told when it came.
pub(super) fn catch_up(shim: &Arc<Shim>, id: &str, exec: &str) {
    let early = shim.table().process(id, exec).ok().and_then(|process| process.early_exit.take());
    if let Some(status) = early {
        ended(shim, id, exec, status);
    }
}

/// Nothing of a container lives longer than its init. Where the init is not
/// PID 1 of a namespace of its own, the kernel leaves that to us.
async fn clear(shim: &Arc<Shim>, id: &str) {
    let cleared = async {
        end_rest(shim, id).await;
        let unsettled = shim.table().container(id).ok().map(|c| c.unsettled.subscribe());
        if let Some(mut unsettled) = unsettled {
            let _ = unsettled.wait_for(|execs| *execs == 0).await;
        }
    };
    if tokio::time::timeout(PATIENCE, cleared).await.is_ok() {
        return;
    }
    log::warn!("container {id}: processes are left {PATIENCE:?} after its init has ended");
    let execs: Vec<_> = match shim.table().container(id) {
        Ok(container) => container.execs.keys().cloned().collect(),
        Err(_) => return,
    };
    for exec in execs {
        let alive = shim.table().process(id, &exec).is_ok_and(|process| process.state().is_alive());
        if alive {
            conclude(shim, id, &exec, Exit { status: KILLED, at: SystemTime::now() });
        }
    }
}

/// Kills what is left in the cgroup of a container that shares its PIDs, and
/// waits for it, until there is nothing: a process may fork while it is killed.
async fn end_rest(shim: &Arc<Shim>, id: &str) {
    loop {
        let left = match shim.table().container(id) {
            Ok(container) if shares_pids(container) => kill_rest(container),
            _ => return,
        };
        if left.is_empty() {
            return;
        }
        for pidfd in left {
            let _ = readable(pidfd.as_fd()).await;
        }
    }
}

/// Whether the kernel does not kill the rest along with the init.
fn shares_pids(container: &Container) -> bool {
    !container.plan.container.namespaces.pid && !container.is_pause()
}

/// SIGKILL to what is left in a container's cgroup, but not to boot. Returns
/// those that had not ended yet.
fn kill_rest(container: &Container) -> Vec<OwnedFd> {
    if !container.is_root()
        && let Err(error) = container.cgroup.kill_at_once()
    {
        log::warn!("container {}: {error}", container.id);
    }
    let boot = container.boot.handle.pid();
    let pids = container.cgroup.pids().unwrap_or_default();
    let others = pids.into_iter().filter(|pid| *pid != boot);
    others.filter_map(|pid| signal_member(container, pid, Signal::KILL)).collect()
}

/// Sends a signal to one process of a container's cgroup and returns its
/// pidfd; `None` when it is not there any more. The number is looked at once
/// more when the pidfd holds on to it: it could have become somebody else's.
pub(super) fn signal_member(
    container: &Container,
    pid: HostPid,
    signal: Signal,
) -> Option<OwnedFd> {
    let pidfd = pidfd_open(rustix::process::Pid::from_raw(pid.0)?, PidfdFlags::empty()).ok()?;
    let there = container.cgroup.pids().is_ok_and(|pids| pids.contains(&pid));
    (there && pidfd_send_signal(&pidfd, signal).is_ok()).then_some(pidfd)
}

/// Tells the exit.
pub(super) fn conclude(shim: &Arc<Shim>, id: &str, exec: &str, exit: Exit) {
    let mut table = shim.table();
    let Ok(container) = table.container(id) else { return };
    publish_oom(shim, container, exit.status == KILLED);
    if exec.is_empty() {
        container.latch_stats();
    }
    let Ok(process) = container.process(exec) else { return };
    let was_alive = process.state().is_alive();
    if process.step(Step::Exit).is_err() {
        return;
    }
    shim.events.publish(&TaskExit {
        container_id: id.to_string(),
        id: if exec.is_empty() { id } else { exec }.to_string(),
        pid: process.pid,
        exit_status: exit.status,
        exited_at: MessageField::some(Timestamp::from(exit.at)),
        ..Default::default()
    });
    process.exit.send_replace(Some(exit));
    process.io.release();
    process.handle = None;
    if !exec.is_empty() && was_alive {
        settle(container);
    }
}

/// One exec less whose end the init's exit waits for.
pub(super) fn settle(container: &Container) {
    container.unsettled.send_modify(|execs| *execs = execs.saturating_sub(1));
}

/// Tells OOM kills since the last time. `killed`: SIGKILL has ended a process.
pub(super) fn publish_oom(shim: &Shim, container: &mut Container, killed: bool) -> bool {
    let new = match container.oom.as_mut().map(|watch| watch.take(killed)) {
        Some(Ok(new)) => new,
        Some(Err(error)) => {
            log::debug!("container {}: {error}", container.id);
            0
        }
        None => 0,
    };
    if new > 0 {
        container.oom_kills += new;
        shim.events.publish(&TaskOOM { container_id: container.id.clone(), ..Default::default() });
    }
    new > 0
}
