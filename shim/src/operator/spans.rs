//! Spans: sends those that are kept, and then each that ends, until the client hangs up or the
//! shim ends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::ttrpc::asynchronous::ServerStreamSender;
use operator_api::operator;
use tokio::time::timeout;

use crate::error::{Code, Error, Result};
use crate::spans::Span;
use crate::task::{End, Shim};

/// As in `events.rs`: the time after which a client that hung up is noticed.
const ALIVE: Duration = Duration::from_secs(20);

/// Sends spans.
///
/// # Errors
/// Fails if the node's option `spans` is off.
pub(super) async fn spans(shim: &Shim, client: &ServerStreamSender<operator::Span>) -> Result<()> {
    if !shim.spans.are_kept() {
        return Err(Error::new(
            Code::FAILED_PRECONDITION,
            "no spans are kept; set spans = true in /etc/palisade/config.toml, for pods that start then",
        ));
    }
    let mut end = shim.end.subscribe();
    let mut seen = 0;
    loop {
        let (found, ever, mut missed) = shim.spans.after(seen);
        let none = found.is_empty().then(operator::Span::default);
        for mut span in found.iter().map(message).chain(none) {
            span.missed = std::mem::take(&mut missed);
            if client.send(&span).await.is_err() {
                return Ok(());
            }
        }
        seen = ever;
        let ended = *end.borrow_and_update() != End::No;
        if ended && shim.spans.after(seen).0.is_empty() {
            return Ok(());
        }
        let more = async {
            tokio::select! {
                () = shim.spans.more_than(seen) => {}
                _ = end.changed(), if !ended => {}
            }
        };
        let _ = timeout(ALIVE, more).await;
    }
}

fn message(span: &Span) -> operator::Span {
    operator::Span {
        trace: span.trace.to_vec(),
        id: span.id.to_vec(),
        parent: if span.parent == [0; 8] { Vec::new() } else { span.parent.to_vec() },
        name: span.name.to_owned(),
        container: span.container.clone(),
        begun: nanoseconds(span.begun),
        ended: nanoseconds(span.ended),
        error: span.error.clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
