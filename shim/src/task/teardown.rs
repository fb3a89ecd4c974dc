//! All endings, with one word for each.
//!
//! | word | ends |
//! |---|---|
//! | cancel | a Create whose client has gone, a StartSandbox that StopSandbox overtakes |
//! | roll back | what a failed or cancelled Create had made (`rollback.rs`) |
//! | forget | a container, in boot and in the shim; its record on disk goes after its cgroup |
//! | tear down | a sandbox: boot, the root container's cgroup, the state |
//! | shut down | the shim |
//!
//! ```text
//!   the client of a Create is gone      Delete      boot ends, StopSandbox
//!               │ cancel                  │                   │
//!               ▼                         │ forget            │ the pod's end
//!            roll back                    │                   │
//!               │                         │                   │
//!               └────────────┬────────────┴───────────────────┘
//!                            ▼
//!           no container, no Create and no pod is left? ──no──► the sandbox stays
//!                            │ yes
//!                            ▼
//!                       tear down ◄───────────────┐
//!                            │ waited for         │ with all that is left
//!                            ▼                    │
//!   Shutdown ──────────► shut down ◄── ShutdownSandbox, SIGTERM
//! ```
//!
//! A Shutdown ends its own container first, if that is still there (`shutdown.rs`). A shim that
//! shuts down makes nothing more.

use std::sync::Arc;
use std::time::Duration;

use sandbox_core::cgroup::Cgroup;
use sandbox_core::control::message::Request;
use sandbox_core::sandbox;
use tokio::time::Instant;

use super::boot::BootClient;
use super::pod::PodState;
use super::shim::{End, Shim};
use super::table::{Sandbox, Table};
use crate::error::{Error, Result};
use crate::ready::readable;

/// The time that a Delete waits for a Create that it has cancelled. containerd
/// gives a shim three seconds at most.
const ROLL_BACK_TIMEOUT: Duration = Duration::from_secs(2);

/// The time that boot has to die of SIGKILL.
const BOOT_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The time after which a boot that was killed may be frozen.
const THAW_AFTER: Duration = Duration::from_millis(200);

/// The time that boot has to forget a container.
const FORGET_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that a cancelled StartSandbox may delay the StopSandbox.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The time for the reports of all exits of a sandbox that was torn down.
const EXITS_TIMEOUT: Duration = Duration::from_secs(5);

/// The time for the last events: containerd gives a shim three seconds to end.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(2);

/// Cancels a Create that is under way, and waits until it is rolled back. If a
/// Delete comes for it, the client of the Create has gone: containerd reports
/// this to no one else (`TaskManager.Create`, core/runtime/v2/task_manager.go).
pub(super) async fn cancel_create(shim: &Shim, id: &str) {
    let rolled_back = shim.table().cancel(id);
    if let Some(rolled_back) = rolled_back
        && tokio::time::timeout(ROLL_BACK_TIMEOUT, rolled_back).await.is_err()
    {
        log::warn!("container {id}: its Create was cancelled and is still being rolled back");
    }
}

/// Makes boot forget a container, and kill it if it is still at its gate. A
/// dead boot has forgotten everything; a hostile one may not reply.
pub(super) async fn forget(shim: &Shim, boot: &BootClient, id: &str) {
    let is_frozen = shim.table().is_frozen(boot);
    if is_frozen {
        // boot reads it when it is resumed.
        return forget_ended(boot, id);
    }
    let request = Request::Delete { container: id.to_string() };
    match tokio::time::timeout(FORGET_TIMEOUT, shim.ask(boot, request, &[])).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => log::debug!("container {id}: {error}"),
        Err(_) => log::warn!("container {id}: the sandbox does not reply"),
    }
    drop_rest(boot, id);
}

/// Makes boot forget a container that has ended, without a wait: boot keeps
/// nothing of it that a client would have to wait for, or boot is frozen.
pub(super) fn forget_ended(boot: &BootClient, id: &str) {
    boot.send(Request::Delete { container: id.to_string() });
    drop_rest(boot, id);
}

fn drop_rest(boot: &BootClient, id: &str) {
    boot.forget_agent(id);
    boot.take_viewed(id);
    boot.forbid_raw_sockets(id);
    boot.user_logs.forget(id);
}

/// Takes away the cgroup of a container that boot has forgotten, and then its record on disk. The
/// root's stays as long as boot is in it.
pub(super) fn take_cgroup_away(boot: &BootClient, id: &str, cgroup: &Arc<Cgroup>) {
    let state = boot.sandbox.directory();
    let done = match boot.root == id {
        true => state.retire_container(id),
        false => match cgroup.remove() {
            Ok(()) => state.remove_container(id),
            Err(error) => {
                boot.leave(id, cgroup.clone());
                Err(error)
            }
        },
    };
    if let Err(error) = done {
        log::warn!("container {id}: {error}");
    }
}

/// Tears a sandbox down: takes boot, the root container's cgroup and the sandbox's
/// state away.
pub(super) async fn tear_down(boot: &BootClient) {
    if end_boot(boot).await {
        take_rest_away(boot, Vec::new());
    }
}

/// Kills boot. Returns whether it has ended.
async fn end_boot(boot: &BootClient) -> bool {
    let root = &boot.root;
    warn(boot, "the end", boot.sandbox.kill());
    let mut ended = ends(boot, THAW_AFTER).await;
    if !ended {
        // On cgroup version 1, frozen processes do not die.
        warn(boot, "thawing", boot.cgroup.thaw_if_there());
        ended = ends(boot, BOOT_EXIT_TIMEOUT).await;
    }
    if !ended {
        // The state stays: `delete` finds the sandbox by it.
        log::error!("sandbox {root} does not end {BOOT_EXIT_TIMEOUT:?} after SIGKILL");
        let directory = boot.sandbox.directory();
        warn(boot, "a note of that", sandbox::leave_unfinished(directory));
    }
    ended
}

/// Takes away all that a sandbox has left: the cgroups of these containers, of deleted ones that
/// were busy then, and of the root, and then the state, by which they are found.
fn take_rest_away(boot: &BootClient, others: Vec<Arc<Cgroup>>) {
    if boot.sandbox.has_host_pids() {
        warn(boot, "the end of the processes", boot.cgroup.kill_all());
    }
    let mut all_gone = true;
    for cgroup in others.iter().chain(&boot.take_left()).chain([&boot.cgroup]) {
        all_gone &= warn(boot, "removal of the cgroup", cgroup.remove());
    }
    warn(boot, "the cgroup above", boot.sandbox.forbid_births(&boot.cgroup));
    if all_gone {
        warn(boot, "removal of the state", boot.sandbox.tear_down());
        return;
    }
    log::error!(
        "sandbox {} is left for the next shim of this namespace, or for \
         palisade doctor --fix-leftovers: its state is in {}",
        boot.root,
        boot.sandbox.directory().path().display()
    );
    warn(boot, "a note of that", boot.sandbox.leave_unfinished());
}

/// Logs a step that failed. Returns whether it succeeded.
fn warn(boot: &BootClient, what: &str, outcome: sandbox_core::Result<()>) -> bool {
    if let Err(error) = &outcome {
        log::warn!("{what} of sandbox {}: {error}", boot.root);
    }
    outcome.is_ok()
}

/// Whether boot ends within a time.
async fn ends(boot: &BootClient, timeout: Duration) -> bool {
    let ended = tokio::time::timeout(timeout, readable(boot.sandbox.pidfd())).await;
    matches!(ended, Ok(Ok(())))
}

/// Kills boot, and waits until all that ended with it was reported.
async fn kill_boot(boot: &BootClient) -> Result<()> {
    boot.sandbox.kill()?;
    let ended = tokio::time::timeout(BOOT_EXIT_TIMEOUT, boot.ended()).await;
    ended.map_err(|_| {
        let root = &boot.root;
        Error::internal(format!("sandbox {root} does not end {BOOT_EXIT_TIMEOUT:?} after SIGKILL"))
    })
}

/// Begins to tear the sandbox down, if nothing is left that needs it. As long as
/// containers are left, that is up to the last one's Delete.
pub(crate) fn tear_down_if_unused(shim: &Shim, boot: &Arc<BootClient>) {
    let mut table = shim.table();
    if table.has_sandbox(boot) {
        tear_down_if_empty(&mut table, boot);
    }
}

/// Begins to tear a sandbox down, if the table is empty. Shutdown waits for the
/// end of this.
pub(super) fn tear_down_if_empty(table: &mut Table, boot: &Arc<BootClient>) {
    if !table.is_empty() {
        return;
    }
    table.take_sandbox();
    let before = table.tear_down.take();
    let boot = boot.clone();
    table.tear_down = Some(tokio::spawn(async move {
        if let Some(before) = before {
            let _ = before.await;
        }
        tear_down(&boot).await;
    }));
}

/// Waits for the end of a teardown that has begun.
async fn finish_tear_down(shim: &Shim) {
    let tear_down = shim.table().tear_down.take();
    if let Some(tear_down) = tear_down {
        let _ = tear_down.await;
    }
}

/// Ends the pod's sandbox process, cancels a start that is under way, and tears
/// the sandbox down if there is no container. Idempotent.
pub(crate) async fn stop_pod(shim: &Arc<Shim>, id: &str) -> Result<()> {
    let turn = {
        let mut table = shim.table();
        let pod = table.pod(id)?;
        pod.stop();
        pod.turn()
    };
    let turn = tokio::time::timeout(CANCEL_TIMEOUT, turn.lock()).await;
    let _ours = turn.map_err(|_| {
        Error::state(format!(
            "sandbox {id} is still being started or stopped after {CANCEL_TIMEOUT:?}"
        ))
    })?;
    let boot = {
        let mut table = shim.table();
        let pod = table.pod(id)?;
        match pod.state() {
            PodState::Ready(boot) => boot.clone(),
            // A start holds the lock until it is over: one that does not has crashed.
            PodState::Created(_) | PodState::Starting => {
                pod.end();
                return Ok(());
            }
            PodState::Ended(_) => return Ok(()),
        }
    };
    resume_all(shim);
    kill_boot(&boot).await?;
    shim.table().pod(id)?.end();
    tear_down_if_unused(shim, &boot);
    finish_tear_down(shim).await;
    Ok(())
}

/// Thaws the paused containers: on cgroup v1, frozen processes do not die.
fn resume_all(shim: &Shim) {
    let table = shim.table();
    for container in table.containers().filter(|c| c.init.state.is_frozen()) {
        if let Err(error) = container.cgroup.thaw_if_there() {
            log::warn!("container {}: {error}", container.id);
        }
    }
}

/// Tears the sandbox down with all its containers at once, for the node or the
/// Sandbox service.
async fn tear_down_all(shim: &Shim) {
    let (boot, cgroups) = {
        let table = shim.table();
        let Sandbox::Made(boot) = &table.sandbox else { return };
        let others = table.containers().filter(|c| !c.is_root());
        (boot.clone(), others.map(|c| c.cgroup.clone()).collect::<Vec<_>>())
    };
    if end_boot(&boot).await {
        // Once boot counts as ended, `listen` has reported all exits.
        let _ = tokio::time::timeout(EXITS_TIMEOUT, boot.ended()).await;
        take_rest_away(&boot, cgroups);
    }
}

/// Cancels every Create that is under way, and waits until they are rolled back.
async fn cancel_creates(shim: &Shim) {
    let reserved = shim.table().reserved();
    let cancelled = reserved.iter().map(|id| cancel_create(shim, id));
    futures_util::future::join_all(cancelled).await;
}

/// Cancels a StartSandbox that is under way, and waits until it is rolled back.
async fn cancel_start(shim: &Shim) {
    let turn = {
        let table = shim.table();
        let Some(pod) = table.pod.as_ref() else { return };
        if !matches!(pod.state(), PodState::Starting) {
            return;
        }
        pod.stop();
        pod.turn()
    };
    let _ = tokio::time::timeout(CANCEL_TIMEOUT, turn.lock()).await;
}

/// Shuts the shim down, once its sandbox is torn down and its events are
/// published. It makes nothing more from now on.
pub(super) async fn shut_down(shim: &Shim, end: End) {
    shim.table().is_ending = true;
    finish_tear_down(shim).await;
    publish_rest(shim, LAST_EVENTS_TIMEOUT).await;
    shim.end.send_replace(end);
}

/// Shuts the shim down, if a Shutdown came while there were containers and
/// there are none now.
pub(super) fn shut_down_if_pending(shim: &Arc<Shim>) {
    let now = {
        let mut table = shim.table();
        let now = table.shutdown_pending && table.is_empty();
        table.is_ending |= now;
        now
    };
    if now {
        let shim = shim.clone();
        tokio::spawn(async move { shut_down(&shim, End::Now).await });
    }
}

/// Shuts the shim down with its pod and all containers. Does so even if the pod
/// was never created, since containerd wants the shim gone.
pub(crate) async fn shut_down_pod(shim: &Arc<Shim>, id: &str) {
    shim.table().is_ending = true;
    cancel_creates(shim).await;
    if let Err(error) = stop_pod(shim, id).await {
        log::debug!("shutdown: {error}");
    }
    tear_down_all(shim).await;
    shut_down(shim, End::OnceAlone).await;
}

/// Tears everything down in order because a signal ends the shim, as when the
/// node shuts down.
pub(crate) async fn end_by_signal(shim: &Shim) {
    log::info!("ended by a signal");
    shim.table().is_ending = true;
    cancel_creates(shim).await;
    cancel_start(shim).await;
    tear_down_all(shim).await;
    // What the last Delete has begun.
    finish_tear_down(shim).await;
    publish_rest(shim, LAST_EVENTS_TIMEOUT).await;
}

/// Waits for what is still going on in a shim that has nothing and that nobody can reach.
pub(crate) async fn end_unneeded(shim: &Shim) {
    finish_tear_down(shim).await;
}

/// Publishes the events that are left, within `timeout`.
async fn publish_rest(shim: &Shim, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    let mut pending = shim.pending_exits.subscribe();
    let none = pending.wait_for(|exits| *exits == 0);
    let _ = tokio::time::timeout_at(deadline, none).await;
    shim.events.flush(deadline.saturating_duration_since(Instant::now())).await;
}
