//! Gives memory back that making a container has taken, once no other is made.

use std::time::Duration;

use sandbox_core::sys::memory;
use tokio::sync::Notify;
use tokio::time::timeout;

/// The time without another start after which none is expected.
const REST: Duration = Duration::from_millis(300);

/// A container has been started.
static STARTED: Notify = Notify::const_new();

/// Notes that a container has been started.
pub(super) fn container_started() {
    STARTED.notify_one();
}

/// Gives memory back after each time that containers were started, as long as the shim lives.
pub(crate) async fn give_memory_back() {
    loop {
        STARTED.notified().await;
        while timeout(REST, STARTED.notified()).await.is_ok() {}
        memory::give_back();
    }
}
