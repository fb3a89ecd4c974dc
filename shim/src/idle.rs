//! Ends a shim that nobody needs: containerd kills `start` when its client has gone, and then does
//! not know of the shim that `start` has cloned.
//!
//! A shim that has something, or to which a client is connected, has no timer here and is not woken
//! up: it waits until that changes, which takes a client that connects.

use std::time::Duration;

use crate::socket::Own;
use crate::tally::Tally;
use crate::task::Shim;

/// The time without a client after which none is expected. containerd connects at once, and asks
/// for a sandbox over the same connection.
const EXPECTED: Duration = Duration::from_secs(30);

/// Waits until the shim has nothing, and no client has been connected for a while. Its socket is
/// removed then.
pub(crate) async fn unneeded(shim: &Shim, connections: &Tally, socket: &Own) {
    loop {
        connections.none().await;
        // A request goes on when its client has gone.
        shim.requests.none().await;
        shim.events.all_delivered().await;
        let is_in_use = || connections.count() + shim.requests.count() > 0;
        if is_in_use() {
            continue;
        }
        if !shim.has_nothing() {
            connections.some().await;
            continue;
        }
        tokio::select! {
            () = connections.some() => continue,
            () = tokio::time::sleep(EXPECTED) => {}
        }
        match socket.remove_if_unused() {
            Ok(true) if !is_in_use() => break,
            Ok(_) => {}
            // It is tried again after as long a time.
            Err(error) => log::warn!("{error}"),
        }
    }
    log::info!("this shim has nothing, and no client has been connected for {EXPECTED:?}: it ends");
}
