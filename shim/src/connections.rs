//! Accepts the connections to this shim, and counts them.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use futures_util::stream;
use sandbox_core::error::FailureKind;
use tokio::net::UnixStream;
use tokio_util::io::InspectReader;

use crate::descriptors::Descriptors;
use crate::error::{Context, Result};
use crate::tally::Tally;

/// The time after which a connection is accepted for which there was no descriptor.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections, each counted until it is closed.
pub(crate) fn accept(
    listener: UnixListener,
    connections: &Tally,
    descriptors: Arc<Descriptors>,
) -> Result<Listener> {
    let listener = tokio::net::UnixListener::from_std(listener).context(|| "listen")?;
    let begun = (listener, connections.clone(), descriptors);
    let accepted = stream::unfold(begun, async |(listener, connections, descriptors)| {
        let accepted = accept_one(&listener, &descriptors).await;
        let counted = accepted.map(|stream| {
            let one = connections.add();
            // Nothing is inspected. The closure lives as long as the stream.
            InspectReader::new(stream, move |_| one.lives())
        });
        Some((counted, (listener, connections, descriptors)))
    });
    Ok(Listener::new(accepted))
}

/// Accepts one, with a descriptor of the reserve if there is no other.
async fn accept_one(
    listener: &tokio::net::UnixListener,
    descriptors: &Descriptors,
) -> io::Result<UnixStream> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                descriptors.took(&stream);
                return Ok(stream);
            }
            Err(error) if FailureKind::of(&error) == FailureKind::NoDescriptors => {
                descriptors.run_out();
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}
