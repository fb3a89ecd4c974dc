//! Out-of-memory kills, told as they happen.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::cgroup::OomWatch;
use tokio::io::Interest;

use super::exits::publish_oom;
use super::lifecycle::State;
use super::table::Shim;
use crate::ready::register;

/// cgroup v1 tells before it kills: when to look again.
const AGAIN: [Duration; 3] =
    [Duration::from_millis(5), Duration::from_millis(50), Duration::from_millis(500)];

/// What to wait for.
pub(super) fn descriptor(watch: &OomWatch) -> std::io::Result<OwnedFd> {
    watch.as_fd().try_clone_to_owned()
}

/// Until the container has ended: then its last kills were told with its exit.
pub(super) async fn watch(
    shim: Arc<Shim>,
    id: String,
    descriptor: Option<std::io::Result<OwnedFd>>,
) {
    let Some(Ok(descriptor)) = descriptor else { return };
    let Ok(event) = register(descriptor, Interest::READABLE) else { return };
    while let Ok(mut ready) = event.readable().await {
        let mut told = tell(&shim, &id);
        ready.clear_ready();
        for pause in AGAIN {
            if told != Some(false) {
                break;
            }
            tokio::time::sleep(pause).await;
            told = tell(&shim, &id);
        }
        if told.is_none() {
            return;
        }
    }
}

/// Whether there was something to tell; `None` when the container has ended.
fn tell(shim: &Shim, id: &str) -> Option<bool> {
    let mut table = shim.table();
    let container = table.container(id).ok()?;
    if matches!(container.init.state(), State::Stopped | State::Deleting) {
        return None;
    }
    Some(publish_oom(shim, container, false))
}
