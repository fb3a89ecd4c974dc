//! Has what the shim lets go closed by children of its own, one after another
//! (`sandbox-core/src/sys/let_go.rs`).

use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use sandbox_core::sys::let_go;
pub(super) use sandbox_core::sys::let_go::ever_let_go;
use tokio::io::Interest;
use tokio::sync::{Notify, watch};

use crate::descriptors::Descriptors;
use crate::ready::{readable, register};

/// The time that a close leaves to the requests that follow an exit, and in which more may be
/// let go.
const PAUSE: Duration = Duration::from_millis(100);

/// How many descriptors are closed.
static CLOSED: LazyLock<watch::Sender<u64>> = LazyLock::new(watch::Sender::default);

/// Somebody waits.
static NOW: Notify = Notify::const_new();

/// Closes what is let go, as long as the shim lives.
pub(crate) async fn close_what_is_let_go(descriptors: Arc<Descriptors>) {
    let Some(due) = let_go::due() else { return };
    let due = match register(due, Interest::READABLE) {
        Ok(due) => due,
        Err(error) => return log::error!("mounts are closed at the end alone: {error}"),
    };
    loop {
        tokio::select! {
            // What may wait for the next is not due, but may be waited for.
            () = NOW.notified() => {}
            () = descriptors.are_short.notified() => {}
            ready = due.readable() => {
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
                drop(tokio::time::timeout(PAUSE, NOW.notified()).await);
            }
        }
        close_all().await;
    }
}

async fn close_all() {
    loop {
        match let_go::close_some() {
            Ok(Some(closing)) => {
                // Fails only if the child cannot be watched; then this thread waits for it.
                let _ = readable(closing.as_fd()).await;
                closing.finish();
            }
            Ok(None) => return,
            Err(error) => log::warn!("mounts were not closed by a child: {error}"),
        }
        CLOSED.send_replace(let_go::ever_closed());
    }
}

/// Waits until as many descriptors are closed as were let go so far.
pub(super) async fn wait(so_far: u64) {
    let mut closed = CLOSED.subscribe();
    if *closed.borrow() < so_far {
        NOW.notify_one();
        let _ = closed.wait_for(|closed| *closed >= so_far).await;
    }
}
