//! Work that takes as long as it was asked to, or until somebody ends the command: what was
//! collected by then counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Works in a thread, which is told to stop by Ctrl-C, SIGTERM, or a terminal that goes.
pub(super) async fn until_stopped<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
) -> Result<T> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (done, mut outcome) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = done.send(work(&stopped));
    });
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            outcome = &mut outcome => {
                return outcome.map_err(|_| anyhow!("the recording ended without an answer"))?;
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        stop.store(true, Ordering::Relaxed);
    }
}
