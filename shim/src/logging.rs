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
use std::time::{SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};
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

/// Formats a time with its milliseconds.
pub(crate) fn rfc3339_millis(time: SystemTime) -> String {
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_millis();
    format!("{}.{millis:03}Z", rfc3339(time).trim_end_matches('Z'))
}

/// Formats a time. Seconds are enough for a log. The date arithmetic is the
/// inverse of days-from-civil (proleptic Gregorian, valid for all of
/// `SystemTime` after 1970).
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, of_day) = (seconds / 86400, seconds % 86400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        of_day / 3600,
        of_day % 3600 / 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_rfc3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
