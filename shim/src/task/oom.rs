//! Publishes out-of-memory kills: each once, and before the exit that it
//! caused.
//!
//! The kernel counts the kills in the cgroup; [`publish`] takes the new ones.
//! It is called when the kernel reports a kill ([`watch`]), before the shim
//! itself kills with SIGKILL (`kill.rs`), so that the two cannot be mistaken
//! for each other, and when a process has ended (`exits.rs`).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task::TaskOOM;
use sandbox_core::cgroup::{Cgroup, OomWatch};
use tokio::io::Interest;
use tokio::sync::watch::Receiver;

use super::container::Container;
use super::shim::Shim;
use crate::exit::Exit;
use crate::ready::register;

/// The times after which to read the count again: cgroup v1 reports before it
/// kills.
const AGAIN: [Duration; 3] =
    [Duration::from_millis(5), Duration::from_millis(50), Duration::from_millis(500)];

/// Begins to count a cgroup's kills, before there is a process, so that none is
/// missed. A host without a memory cgroup counts none.
pub(super) fn count(id: &str, cgroup: &Cgroup) -> Option<OomWatch> {
    match cgroup.oom_watch() {
        Ok(watch) => Some(watch),
        Err(error) => {
            log::info!("container {id}: {error}");
            None
        }
    }
}

/// Publishes the kills since the last call. `killed`: whether SIGKILL has ended
/// a process.
pub(super) fn publish(shim: &Shim, container: &mut Container, killed: bool) -> Found {
    let new = match container.oom.as_mut().map(|watch| watch.take(killed)) {
        Some(Ok(new)) => new,
        Some(Err(error)) => {
            log::debug!("container {}: {error}", container.id);
            0
        }
        None => 0,
    };
    if new == 0 {
        return Found::Nothing;
    }
    container.oom_kills += new;
    shim.events.publish(&TaskOOM { container_id: container.id.clone(), ..Default::default() });
    Found::Kills
}

/// The result of a look for kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Kills,
    /// The container's exit is published, and its last kills before that.
    Ended,
}

/// What [`watch`] waits for: kills, and the end of the container.
pub(super) struct Watched {
    kills: OwnedFd,
    exit: Receiver<Option<Exit>>,
}

/// Returns what [`watch`] waits for.
pub(super) fn watched(container: &Container) -> Option<Watched> {
    match container.oom.as_ref()?.as_fd().try_clone_to_owned() {
        Ok(kills) => Some(Watched { kills, exit: container.init.exit.subscribe() }),
        Err(error) => {
            log::warn!("container {}: OOM kills come with exits only: {error}", container.id);
            None
        }
    }
}

/// Publishes kills as they happen, until the container's exit is published.
pub(super) async fn watch(shim: Arc<Shim>, id: String, watched: Watched) {
    let Watched { kills, mut exit } = watched;
    let Ok(event) = register(kills, Interest::READABLE) else { return };
    loop {
        let mut ready = tokio::select! {
            // Also ends if the container is deleted without an exit.
            _ = exit.wait_for(Option::is_some) => return,
            ready = event.readable() => match ready {
                Ok(ready) => ready,
                Err(_) => return,
            },
        };
        let mut found = look(&shim, &id);
        ready.clear_ready();
        for pause in AGAIN {
            if found != Found::Nothing {
                break;
            }
            tokio::time::sleep(pause).await;
            found = look(&shim, &id);
        }
        if found == Found::Ended {
            return;
        }
    }
}

fn look(shim: &Shim, id: &str) -> Found {
    let mut table = shim.table();
    match table.container(id) {
        Ok(container) if !container.init.state.is_exit_published() => {
            publish(shim, container, false)
        }
        _ => Found::Ended,
    }
}
