//! Counts the connections to this shim.

use std::os::unix::net::UnixListener;

use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use futures_util::stream;
use tokio_util::io::InspectReader;

use crate::error::{Context, Result};
use crate::tally::Tally;

/// Accepts connections, each counted until it is closed.
pub(crate) fn accept(listener: UnixListener, connections: &Tally) -> Result<Listener> {
    let listener = tokio::net::UnixListener::from_std(listener).context(|| "listen")?;
    let connections = connections.clone();
    let accepted = stream::unfold((listener, connections), async |(listener, connections)| {
        let accepted = listener.accept().await;
        let counted = accepted.map(|(stream, _)| {
            let one = connections.add();
            // Nothing is inspected. The closure lives as long as the stream.
            InspectReader::new(stream, move |_| one.lives())
        });
        Some((counted, (listener, connections)))
    });
    Ok(Listener::new(accepted))
}
