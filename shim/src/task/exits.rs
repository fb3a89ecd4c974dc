//! Handles the end of a process. The order of the events is:
//!
//! 1. the Start of a process comes before its Exit, however short it ran;
//! 2. the Exits of all execs come before the init's;
//! 3. an OOM kill comes before the Exit that it caused;
//! 4. all output comes before the Exit: output of a terminal is passed on by then,
//!    and output in a FIFO is read, unless no client reads it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task::TaskExit;
use rustix::process::{PidfdFlags, Signal, pidfd_open};
use sandbox_core::sandbox::Process;
use sandbox_core::sys::pidfd::send_signal;
use sandbox_core::types::{HostPid, ProcessId};

use super::boot::Relevance;
use super::container::{self, Container};
use super::lifecycle::Reported;
use super::shim::Shim;
use super::{oom, user_log};
use crate::error::{Error, Result};
use crate::exit::{Exit, KILLED, timestamp};
use crate::ready::{is_readable, readable};

/// The time that the execs of a container have to end after its init.
const EXECS_EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that boot has to report the exit of a process that is being killed.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// The time after which the shim looks for the first time whether a process that is being killed
/// has ended.
const FIRST_LOOK: Duration = Duration::from_millis(250);

/// The time that an exit waits until containerd has received the event of an
/// OOM kill. containerd does not handle a reply to Wait and an event in order:
/// CRI would report the container as failed, and only then as out of memory.
const OOM_DELIVERY_TIMEOUT: Duration = Duration::from_secs(1);

/// Records the end of a process, which boot reported, or which follows from
/// boot's own end.
pub(super) fn report(shim: &Arc<Shim>, id: &ProcessId, status: u32) -> Relevance {
    // The kernel has 8 bits for codes, and 7 for signals, to which 128 is added.
    let status = status & 0xff;
    let mut table = shim.table();
    if id.exec.is_none()
        && let Some(relevance) = table.report_early_exit(&id.container, status)
    {
        return relevance;
    }
    let Ok(container) = table.container(&id.container) else { return Relevance::Stray };
    let Ok(process) = container.process(id.exec.as_deref()) else { return Relevance::Stray };
    let exit = match process.state.report_exit(status) {
        Reported::Stray => return Relevance::Stray,
        Reported::Kept => return Relevance::Known,
        Reported::Ending(exit) => exit,
    };
    if id.exec.is_none() {
        thaw_ended(container);
    }
    oom::publish(shim, container, exit.is_kill());
    let boot = container.boot.clone();
    drop(table);
    user_log::ended(shim, &boot, id, status);
    let at_once = shim.table().container(&id.container).is_ok_and(|its| comes_first(its, id));
    if at_once {
        conclude(shim, id, exit);
    } else {
        tokio::spawn(in_order(shim.clone(), id.clone(), exit, pending(shim)));
    }
    Relevance::Known
}

/// Thaws the container whose init has ended, as runc's shim does: a client cannot resume it once
/// its exit is published, and what is left of it, boot too, would not die on cgroup version 1.
fn thaw_ended(container: &mut Container) {
    if !container.init.state.is_frozen() {
        return;
    }
    let cgroup = container.cgroup.clone();
    if let Err(error) = container.init.state.resume(|| Ok(cgroup.thaw_if_there()?)) {
        log::warn!("container {}: {error}", container.id);
    }
}

/// Whether no other event and no output must come before this exit.
fn comes_first(container: &mut Container, id: &ProcessId) -> bool {
    let waits_for_others =
        id.exec.is_none() && (*container.unfinished_execs.borrow() > 0 || shares_pids(container));
    let is_read = |process: &mut container::Process| {
        process.io.drained().is_none() && process.io.unread().is_none()
    };
    container.process(id.exec.as_deref()).is_ok_and(is_read)
        && !waits_for_others
        && container.oom_kills == 0
}

/// A count of an exit that is not published yet. Dropping it ends the count.
/// The shim does not end before that.
struct Pending(Arc<Shim>);

fn pending(shim: &Arc<Shim>) -> Pending {
    shim.pending_exits.send_modify(|exits| *exits += 1);
    Pending(shim.clone())
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending_exits.send_modify(|exits| *exits -= 1);
    }
}

/// Publishes an exit, after all that must come before it.
async fn in_order(shim: Arc<Shim>, id: ProcessId, exit: Exit, _pending: Pending) {
    if id.exec.is_none() {
        // systemd may remove the cgroup during the waits that follow.
        if let Ok(container) = shim.table().container(&id.container) {
            container.latch_stats();
        }
        end_execs(&shim, &id.container).await;
    }
    let (drained, unread, oom_kills) = {
        let mut table = shim.table();
        let Ok(container) = table.container(&id.container) else { return };
        let oom_kills = container.oom_kills;
        let Ok(process) = container.process(id.exec.as_deref()) else { return };
        (process.io.drained(), process.io.unread(), oom_kills)
    };
    if let Some(drained) = drained {
        drained.await;
    }
    if let Some(unread) = unread {
        unread.await;
    }
    if oom_kills > 0 {
        shim.events.delivered(OOM_DELIVERY_TIMEOUT).await;
    }
    conclude(&shim, &id, exit);
}

/// Waits until the exit of a process that has ended is published; not at all for one that has
/// not ended, or is ended at its gate by the caller.
pub(super) async fn published(shim: &Shim, id: &ProcessId) -> Result<()> {
    let mut exit = {
        let mut table = shim.table();
        let process = table.process(id)?;
        if !process.state.is_ending() || process.state.is_at_gate() {
            return Ok(());
        }
        process.exit.subscribe()
    };
    // If another Delete took the process away, the caller finds none.
    let _ = exit.wait_for(Option::is_some).await;
    Ok(())
}

/// Makes sure that the exit of a process that is being killed is published,
/// even if a boot that was taken over does not report it, or never replies to
/// its Start.
pub(super) fn ensure_exit_is_published(shim: &Arc<Shim>, id: ProcessId, process: &Arc<Process>) {
    let shim = shim.clone();
    // Its descriptor is closed with its exit, not with this.
    let process = Arc::downgrade(process);
    tokio::spawn(async move {
        let Ok(mut exit) = shim.table().process(&id).map(|process| process.exit.subscribe()) else {
            return;
        };
        let mut has_ended = false;
        let mut patience = FIRST_LOOK;
        while tokio::time::timeout(patience, exit.wait_for(Option::is_some)).await.is_err() {
            if has_ended {
                break;
            }
            let Some(process) = process.upgrade() else { return };
            has_ended = is_readable(&process.pidfd);
            patience = REPORT_TIMEOUT;
        }
        // As a rule it is published by now, and another process may have the ID.
        let is_it = |p: &mut container::Process| {
            p.state.process().is_some_and(|its| std::ptr::eq(Arc::as_ptr(its), process.as_ptr()))
        };
        if !shim.table().process(&id).is_ok_and(is_it) {
            return;
        }
        report(&shim, &id, KILLED);
        if shim.table().process(&id).is_ok_and(|process| process.state.is_starting()) {
            // This makes the Start fail.
            conclude(&shim, &id, Exit::killed());
        }
    });
}

/// Waits for boot's reply to a Start, but no longer than the process lives.
pub(super) async fn unless_exited<T>(
    shim: &Shim,
    id: &ProcessId,
    reply: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut exit = shim.table().process(id)?.exit.subscribe();
    tokio::select! {
        biased;
        reply = reply => reply,
        _ = exit.wait_for(Option::is_some) => {
            Err(Error::state("the process ended before the sandbox process reported its start"))
        }
    }
}

/// Ends the remaining processes of a container whose init has ended, and waits
/// until the exits of its execs are published. If the init is not PID 1 of a
/// namespace of its own, the kernel leaves this to the shim.
pub(super) async fn end_execs(shim: &Arc<Shim>, id: &str) {
    let ended = async {
        kill_rest(shim, id).await;
        let unfinished = shim.table().container(id).ok().map(|c| c.unfinished_execs.subscribe());
        if let Some(mut unfinished) = unfinished {
            let _ = unfinished.wait_for(|execs| *execs == 0).await;
        }
    };
    if tokio::time::timeout(EXECS_EXIT_TIMEOUT, ended).await.is_ok() {
        return;
    }
    log::warn!(
        "container {id}: processes are left {EXECS_EXIT_TIMEOUT:?} after its init has ended"
    );
    let alive: Vec<_> = match shim.table().container(id) {
        Ok(container) => {
            let alive = container.execs.iter().filter(|(_, exec)| exec.state.is_alive());
            alive.map(|(exec, _)| ProcessId::exec(id, exec)).collect()
        }
        Err(_) => return,
    };
    for exec in alive {
        conclude(shim, &exec, Exit::killed());
    }
}

/// Kills the processes in the cgroup of a container that shares its PIDs, and
/// waits for their end, until there are none: a process may fork while it is
/// killed.
async fn kill_rest(shim: &Arc<Shim>, id: &str) {
    loop {
        let left = match shim.table().container(id) {
            Ok(container) if shares_pids(container) => kill_members(container),
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

/// Whether the container's processes survive its init, since they are not in a
/// PID namespace of their own.
fn shares_pids(container: &Container) -> bool {
    !container.plan.container.namespaces.pid && !container.is_pause()
}

/// Sends SIGKILL to the processes in a container's cgroup, but not to boot.
/// Returns the pidfds of those that had not ended yet.
fn kill_members(container: &Container) -> Vec<OwnedFd> {
    if !container.is_root()
        && let Err(error) = container.cgroup.kill_at_once()
    {
        log::warn!("container {}: {error}", container.id);
    }
    let boot = container.boot.sandbox.pid();
    let pids = container.cgroup.pids().unwrap_or_default();
    let others = pids.into_iter().filter(|pid| *pid != boot);
    others.filter_map(|pid| signal_member(container, pid, Signal::KILL.as_raw())).collect()
}

/// Sends a signal to one process of a container and returns its pidfd;
/// `None` if it is no longer there. Lists them again once it has the
/// pidfd, since the PID could have been reused before.
pub(super) fn signal_member(container: &Container, pid: HostPid, signal: i32) -> Option<OwnedFd> {
    let pidfd = pidfd_open(rustix::process::Pid::from_raw(pid.0)?, PidfdFlags::empty()).ok()?;
    let there = container.members().is_ok_and(|pids| pids.contains(&pid));
    (there && send_signal(&pidfd, signal).is_ok()).then_some(pidfd)
}

/// Publishes the exit, unless it is published already. An exit that was
/// reported counts, not `assumed`.
pub(super) fn conclude(shim: &Arc<Shim>, id: &ProcessId, assumed: Exit) {
    let mut table = shim.table();
    let Ok(container) = table.container(&id.container) else { return };
    let Ok(process) = container.process(id.exec.as_deref()) else { return };
    let Ok(exit) = process.state.exit(assumed) else { return };
    oom::publish(shim, container, exit.is_kill());
    match id.exec {
        None => {
            container.latch_stats();
            drop(std::mem::take(&mut container.mounts));
        }
        Some(_) => container.finish_exec(),
    }
    let Ok(process) = container.process(id.exec.as_deref()) else { return };
    shim.events.publish(&TaskExit {
        container_id: id.container.clone(),
        id: id.exec.as_ref().unwrap_or(&id.container).clone(),
        pid: process.pid,
        exit_status: exit.status,
        exited_at: timestamp(exit.at),
        ..Default::default()
    });
    process.exit.send_replace(Some(exit));
    process.io.release();
}
