//! Every ending, one word each.
//!
//! | word | what it ends |
//! |---|---|
//! | cancel | a Create whose client has gone, a StartSandbox that StopSandbox overtakes |
//! | roll back | what a failed or cancelled Create had made (`rollback.rs`) |
//! | forget | a container, in boot and in the sandbox's state |
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

use std::sync::Arc;
use std::time::Duration;

use sandbox_core::control::message::Request;
use tokio::time::Instant;

use super::boot::BootClient;
use super::pod::PodState;
use super::shim::{End, Shim};
use super::table::{Sandbox, Table};
use crate::error::{Error, Result};
use crate::ready::readable;

/// How long a Delete waits for a Create that it has cancelled: containerd waits no
/// more than three seconds for a shim that it gives up.
const ROLL_BACK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long boot may take to die of SIGKILL.
const BOOT_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long boot may take to forget a container.
const FORGET_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a StartSandbox that is cancelled may hold up the StopSandbox.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long all exits of a sandbox that was torn down may take to be reported.
const EXITS_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last events may take: containerd waits three seconds for a shim
/// to go.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(2);

/// Cancels a Create that is under way, and waits until it is rolled back. The
/// client of a Create has gone when a Delete comes for it: containerd tells no one
/// else (`TaskManager.Create`, core/runtime/v2/task_manager.go).
pub(super) async fn cancel_create(shim: &Shim, id: &str) {
    let rolled_back = shim.table().cancel(id);
    if let Some(rolled_back) = rolled_back
        && tokio::time::timeout(ROLL_BACK_TIMEOUT, rolled_back).await.is_err()
    {
        log::warn!("container {id}: its Create was cancelled and is still being rolled back");
    }
}

/// Has boot forget a container, and kill it if it is still at its gate. A dead
/// boot has forgotten everything; a hostile one may pretend not to hear.
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
        Err(_) => log::warn!("container {id}: the sandbox does not answer"),
    }
    remove_state(boot, id);
}

/// Has boot forget a container that has ended, of which boot keeps nothing that a
/// client would have to wait for; or by a boot that cannot be waited for.
pub(super) fn forget_ended(boot: &BootClient, id: &str) {
    boot.send(Request::Delete { container: id.to_string() });
    remove_state(boot, id);
}

fn remove_state(boot: &BootClient, id: &str) {
    if let Err(error) = boot.sandbox.remove_container(id) {
        log::warn!("container {id}: {error}");
    }
}

/// Tears a sandbox down: takes boot, the root container's cgroup and the sandbox's
/// state away.
pub(super) async fn tear_down(boot: &BootClient) {
    let root = &boot.root;
    let warn = |what: &str, outcome: std::result::Result<(), sandbox_core::Error>| {
        if let Err(error) = outcome {
            log::warn!("{what} of sandbox {root}: {error}");
        }
    };
    warn("the end", boot.sandbox.kill());
    let ended = tokio::time::timeout(BOOT_EXIT_TIMEOUT, readable(boot.sandbox.pidfd())).await;
    if !matches!(ended, Ok(Ok(()))) {
        // The state stays: `delete` finds the sandbox by it.
        return log::error!("sandbox {root} does not end {BOOT_EXIT_TIMEOUT:?} after SIGKILL");
    }
    // The cgroup first: its directory shows whether something is left.
    warn("removal of the cgroup", boot.cgroup.remove());
    warn("removal of the state", boot.sandbox.destroy());
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

/// Begins to tear a sandbox down, if nothing is left in the table. Shutdown waits
/// for its end.
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

/// Ends the pod's sandbox process, cancels a start that is under way, and tears the
/// sandbox down if no container is left. Idempotent.
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
            // A start has its turn until it is over: one without has crashed.
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

/// Thaws what is paused: frozen processes do not die, on cgroup v1.
fn resume_all(shim: &Shim) {
    let table = shim.table();
    for container in table.containers().filter(|c| c.init.state.is_frozen()) {
        if let Err(error) = container.cgroup.thaw_if_there() {
            log::warn!("container {}: {error}", container.id);
        }
    }
}

/// Tears the sandbox down with all that is left in it, at the node's request or
/// the Sandbox service's rather than container by container.
async fn tear_down_all(shim: &Shim) {
    let (boot, cgroups) = {
        let table = shim.table();
        let Sandbox::Made(boot) = &table.sandbox else { return };
        let others = table.containers().filter(|c| !c.is_root());
        (boot.clone(), others.map(|c| c.cgroup.clone()).collect::<Vec<_>>())
    };
    tear_down(&boot).await;
    // By then the listening task has reported all exits.
    let _ = tokio::time::timeout(EXITS_TIMEOUT, boot.ended()).await;
    for cgroup in cgroups {
        let _ = cgroup.remove();
    }
}

/// Shuts the shim down, once its sandbox is torn down and its events are
/// published.
pub(super) async fn shut_down(shim: &Shim, end: End) {
    finish_tear_down(shim).await;
    publish_rest(shim, LAST_EVENTS_TIMEOUT).await;
    shim.end.send_replace(end);
}

/// Shuts the shim down, if that was asked for while containers were left and none
/// is left now.
pub(super) fn shut_down_if_pending(shim: &Arc<Shim>) {
    let now = {
        let table = shim.table();
        table.shutdown_pending && table.is_empty()
    };
    if now {
        let shim = shim.clone();
        tokio::spawn(async move { shut_down(&shim, End::Now).await });
    }
}

/// Shuts the shim down with its pod and whatever is left. The pod may never have
/// been created: containerd wants the shim gone all the same.
pub(crate) async fn shut_down_pod(shim: &Arc<Shim>, id: &str) {
    if let Err(error) = stop_pod(shim, id).await {
        log::debug!("shutdown: {error}");
    }
    tear_down_all(shim).await;
    shut_down(shim, End::OnceAlone).await;
}

/// Tears everything down because a signal ends the shim, as when the node shuts
/// down: the pod ends in an orderly way.
pub(crate) async fn end_by_signal(shim: &Shim) {
    log::info!("ended by a signal");
    tear_down_all(shim).await;
    publish_rest(shim, LAST_EVENTS_TIMEOUT).await;
}

/// Publishes what is left to be published, but does not try for ever.
async fn publish_rest(shim: &Shim, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    let mut pending = shim.pending_exits.subscribe();
    let none = pending.wait_for(|exits| *exits == 0);
    let _ = tokio::time::timeout_at(deadline, none).await;
    shim.events.flush(deadline.saturating_duration_since(Instant::now())).await;
}
