//! What boot sends: replies and exits, received until boot is no more.
//!
//! What boot sends is hostile: numbers and names are looked up, and what is not
//! there is ignored, up to a bound.

use std::sync::Arc;

use sandbox_core::control::message::Upward;
use sandbox_core::sandbox::{Along, Heard};
use sandbox_core::types::ProcessId;
use tokio::io::Interest;

use super::boot::{BootClient, Relevance};
use super::exits;
use super::shim::Shim;
use crate::error::{Context, Result};
use crate::exit::KILLED;
use crate::ready::{readable, register};

/// How many messages of boot are taken before others get their turn.
const MESSAGES_AT_ONCE: usize = 32;

/// How many batches are read after boot has died: more than its socket can
/// buffer.
const LAST_BATCHES: usize = 64;

/// Receives what boot sends until boot is no more, and then reports the exits of
/// all that ended with it.
pub(super) async fn listen(shim: Arc<Shim>, boot: Arc<BootClient>) {
    let received = receive_until_closed(&shim, &boot).await;
    // It sends nonsense, or no more: it must not live on without an ear. When an
    // honest boot dies its channel is closed, too.
    let _ = boot.sandbox.kill();
    let _ = readable(boot.sandbox.pidfd()).await;
    let why = match received.and_then(|()| receive_rest(&shim, &boot)) {
        Ok(()) => boot.sandbox.last_words(),
        Err(error) => {
            log::warn!("the sandbox process of {} was killed: {error}", boot.root);
            format!(": it was killed, since {error}")
        }
    };
    report_end(&shim, &boot, why);
}

/// Receives until boot closes the channel or ends.
async fn receive_until_closed(shim: &Arc<Shim>, boot: &BootClient) -> Result<()> {
    let interest = Interest::READABLE;
    let control = register(boot.sandbox.control(), interest).context(|| "epoll")?;
    let pidfd = register(boot.sandbox.pidfd(), interest).context(|| "epoll")?;
    loop {
        tokio::select! {
            biased;
            ready = control.readable() => {
                let mut ready = ready.context(|| "wait for the sandbox")?;
                match receive_some(shim, boot)? {
                    ReadOutcome::Closed => return Ok(()),
                    ReadOutcome::Drained => ready.clear_ready(),
                    // A boot that never stops sending must not keep containerd
                    // from being heard.
                    ReadOutcome::MoreWaits => tokio::task::yield_now().await,
                }
            }
            _ = pidfd.readable() => return Ok(()),
        }
    }
}

/// Receives what boot sent before it died. It may have given its end of the
/// channel away, so not without bounds.
fn receive_rest(shim: &Arc<Shim>, boot: &BootClient) -> Result<()> {
    for _ in 0..LAST_BATCHES {
        if receive_some(shim, boot)? != ReadOutcome::MoreWaits {
            break;
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum ReadOutcome {
    Drained,
    MoreWaits,
    Closed,
}

/// Receives one batch.
fn receive_some(shim: &Arc<Shim>, boot: &BootClient) -> Result<ReadOutcome> {
    for _ in 0..MESSAGES_AT_ONCE {
        match boot.sandbox.receive()? {
            Heard::Message(message, along) => {
                if dispatch(shim, boot, message, along) == Relevance::Stray {
                    boot.take_stray()?;
                }
            }
            Heard::Nothing => return Ok(ReadOutcome::Drained),
            Heard::Closed => return Ok(ReadOutcome::Closed),
        }
    }
    Ok(ReadOutcome::MoreWaits)
}

fn dispatch(shim: &Arc<Shim>, boot: &BootClient, message: Upward, along: Along) -> Relevance {
    match message {
        Upward::Reply { number, outcome } => boot.take_reply(number, (outcome, along)),
        Upward::Exited { process, status } => exits::report(shim, &process, status),
    }
}

/// Reports the exits of the whole pod: the kernel has taken it along with boot.
fn report_end(shim: &Arc<Shim>, boot: &BootClient, why: String) {
    if let Err(error) = boot.sandbox.reap() {
        log::warn!("{error}");
    }
    boot.set_gone(why);
    let orphans: Vec<_> = {
        let mut table = shim.table();
        for id in table.reserved() {
            table.report_early_exit(&id, KILLED);
        }
        let of_boot = table.containers().filter(|container| container.boot.root == boot.root);
        let processes = of_boot.flat_map(|container| {
            let execs = container.execs.keys();
            let execs = execs.map(|exec| ProcessId::exec(&container.id, exec));
            execs.chain([ProcessId::init(&container.id)])
        });
        processes.collect()
    };
    for process in orphans {
        exits::report(shim, &process, KILLED);
    }
}
