//! The shim's log: lines in the `log` FIFO of its bundle, which containerd
//! copies into its own log.
//!
//! The FIFO is opened for reading and writing, and nonblocking. So the shim
//! never waits for containerd and never gets SIGPIPE. What it writes while
//! containerd restarts stays in the FIFO until containerd is back. If the FIFO
//! is full, lines are lost, and the next line that fits has their number.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};
use operator_api::time::rfc3339;
use rustix::fs::OFlags;

struct FifoLog {
    fifo: File,
    id: String,
    lost: AtomicU32,
}

/// Starts logging for the sandbox `id` into the FIFO at `path`. Fails without
/// one, as in a shim that was started by hand.
pub(crate) fn init(path: &Path, id: &str, debug: bool) -> io::Result<()> {
    let fifo = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let logger = FifoLog { fifo, id: id.to_string(), lost: AtomicU32::new(0) };
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)?;
    std::panic::set_hook(Box::new(|info| log::error!("the shim panicked: {info}")));
    Ok(())
}

impl FifoLog {
    /// Formats a line as logrus does, so that containerd's log stays uniform.
    fn line(&self, record: &Record<'_>) -> String {
        let mut line = String::with_capacity(160);
        let level = match record.level() {
            log::Level::Warn => "warning",
            log::Level::Error => "error",
            log::Level::Info => "info",
            log::Level::Debug | log::Level::Trace => "debug",
        };
        let message = serde_json::to_string(&format_args!("{}", record.args())).unwrap_or_default();
        let _ = write!(line, "time=\"{}\" level={level} msg={message}", rfc3339(SystemTime::now()));
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = write!(line, " lost={lost}");
        }
        let _ = writeln!(line, " runtime={} sandbox={}", crate::RUNTIME, self.id);
        line
    }
}

impl Log for FifoLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The ttrpc crate logs every broken connection as an error. containerd
        // breaks one with each task that it forgets.
        metadata.level() <= log::max_level()
            && (metadata.target().starts_with("containerd_shim_palisade")
                || metadata.target().starts_with("sandbox_core"))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // One write, since up to PIPE_BUF bytes are never mixed with those of
        // another writer.
        if (&self.fifo).write_all(self.line(record).as_bytes()).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}
