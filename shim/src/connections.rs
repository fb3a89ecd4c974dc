//! Counts containerd's connections to this shim, so that the shim can wait
//! until all are closed.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use futures_util::stream;
use tokio::sync::watch;
use tokio_util::io::InspectReader;

use crate::error::{Context, Result};

/// The number of connections.
#[derive(Clone)]
pub(crate) struct Connections(Arc<watch::Sender<usize>>);

impl Connections {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// Accepts connections, each counted until it is closed.
    pub(crate) fn accept(&self, listener: UnixListener) -> Result<Listener> {
        let listener = tokio::net::UnixListener::from_std(listener).context(|| "listen")?;
        let accepted = stream::unfold((listener, self.clone()), async |(listener, connections)| {
            let accepted = listener.accept().await;
            let counted = accepted.map(|(stream, _)| {
                let one = One::of(&connections);
                // Nothing is inspected. The closure lives as long as the stream.
                InspectReader::new(stream, move |_| one.lives())
            });
            Some((counted, (listener, connections)))
        });
        Ok(Listener::new(accepted))
    }

    /// Waits until there are none.
    pub(crate) async fn closed(&self) {
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// A connection, counted until it is dropped.
struct One(Connections);

impl One {
    fn of(connections: &Connections) -> Self {
        connections.0.send_modify(|count| *count += 1);
        Self(connections.clone())
    }

    fn lives(&self) {}
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
