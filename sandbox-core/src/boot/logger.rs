//! boot's log: one line for each record into the pipe that the shim relays, and the panic
//! message into a file that outlives boot.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::io::{pwrite, write};

use super::descriptors::Descriptors;
use crate::error::{Context, Result};

/// The number of the request to which the work of this moment belongs; zero for none. boot has
/// one thread.
static REQUEST: AtomicU64 = AtomicU64::new(0);

/// Has debug records name a request from now on; with zero, none.
pub(super) fn belongs_to(request: u64) {
    REQUEST.store(request, Ordering::Relaxed);
}

struct Logger(Arc<OwnedFd>);

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut line = Vec::with_capacity(128);
        let _ = write!(line, "{} ", record.level());
        let request = REQUEST.load(Ordering::Relaxed);
        if record.level() >= Level::Debug && request != 0 {
            let _ = write!(line, "request {request}: ");
        }
        let _ = writeln!(line, "{}", record.args());
        // The pod must go on with a full pipe or a dead shim.
        let _ = write(&self.0, &line);
    }

    fn flush(&self) {}
}

/// Sets the logger and the panic hook. Returns the descriptor that the logger writes to.
pub(super) fn start(descriptors: &Descriptors, debug: bool) -> Result<Arc<OwnedFd>> {
    let log = Arc::new(descriptors.log.try_clone().context(|| "dup of --log-fd")?);
    rustix::io::ioctl_fionbio(&log, true).context(|| "make the log nonblocking")?;
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    // Fails only for a second boot in this process.
    let _ = log::set_boxed_logger(Box::new(Logger(Arc::clone(&log))));
    let panic_log = descriptors.panic_log.try_clone().context(|| "dup of --panic-log-fd")?;
    std::panic::set_hook(Box::new(move |panic| {
        let _ = pwrite(&panic_log, format!("palisade-sandbox boot: {panic}\n").as_bytes(), 0);
    }));
    Ok(log)
}
