//! Events: sends what happens, until the client hangs up or the shim ends.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::ttrpc::asynchronous::ServerStreamSender;
use operator_api::operator::Event;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::timeout;

use crate::task::{End, Shim};

/// The time after which a client that receives nothing is sent an empty event. A client that has
/// hung up is noticed only when something is sent to it.
const ALIVE: Duration = Duration::from_secs(20);

pub(super) async fn events(shim: &Shim, client: &ServerStreamSender<Event>) {
    let mut happenings = shim.events.listeners.listen();
    let mut end = shim.end.subscribe();
    // Tells the client that it misses nothing from now on.
    let mut event = Event::default();
    while client.send(&event).await.is_ok() {
        event = Event::default();
        let next = tokio::select! {
            biased;
            next = timeout(ALIVE, happenings.recv()) => next.unwrap_or(Ok(Arc::default())),
            _ = end.wait_for(|end| *end != End::No) => match happenings.try_recv() {
                Ok(next) => Ok(next),
                Err(TryRecvError::Lagged(missed)) => Err(RecvError::Lagged(missed)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            },
        };
        match next {
            Ok(json) => event.json = json.to_string(),
            Err(RecvError::Lagged(missed)) => event.missed = missed,
            Err(RecvError::Closed) => return,
        }
    }
}
