//! Relays boot's log by lines into the shim's, as much as a correct boot needs.
//! A boot that was taken over must not fill the node's log, or keep the shim
//! busy.

use std::sync::Arc;
use std::time::Duration;

use sandbox_core::sandbox::printable;
use tokio::io::Interest;

use super::allowance::Allowance;
use super::boot::BootClient;
use crate::ready::register;

/// The number of a line's bytes that are relayed.
const LONGEST_LINE: usize = 1024;

/// The cost of a line beside its own bytes, for the prefixes of the shim and
/// containerd.
const LINE: u32 = 256;

/// The bytes that are relayed at once, less than the shim's own log takes
/// without a reader, and the bytes per second in the long run: less than 100 MB
/// a day. More at debug level.
const AT_ONCE: u32 = 32 << 10;
const A_SECOND: u32 = 1 << 10;
const A_SECOND_WHEN_DEBUGGING: u32 = 64 << 10;

/// The time for which the shim does not read the log of a boot that writes too
/// much.
const PAUSE: Duration = Duration::from_millis(100);

/// Relays boot's log until the pipe is closed.
pub(super) async fn relay_log(boot: Arc<BootClient>) {
    let Ok(pipe) = register(boot.sandbox.log(), Interest::READABLE) else { return };
    let mut relay = Relay::new();
    let mut buffer = vec![0; 4096];
    loop {
        let Ok(mut ready) = pipe.readable().await else { return };
        match ready.try_io(|pipe| Ok(rustix::io::read(pipe.get_ref(), &mut buffer)?)) {
            Err(_would_block) => continue,
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(length)) => relay.take(&buffer[..length]),
        }
        // The pipe may be full again already.
        match relay.silent {
            true => tokio::time::sleep(PAUSE).await,
            false => tokio::task::yield_now().await,
        }
    }
}

struct Relay {
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    allowance: Allowance,
    /// Whether the allowance is that of the debug level.
    debugs: bool,
    /// Whether the allowance is used up, which was logged.
    silent: bool,
}

impl Relay {
    fn new() -> Self {
        let debugs = debugs();
        let allowance = allowance(debugs);
        Self { line: Vec::new(), allowance, debugs, silent: false }
    }

    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LONGEST_LINE - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                if self.line.len() > 1 {
                    self.relay();
                }
                self.line.clear();
            }
        }
    }

    fn relay(&mut self) {
        let cost = LINE + u32::try_from(self.line.len()).unwrap_or(u32::MAX);
        if std::mem::replace(&mut self.debugs, debugs()) != self.debugs {
            self.allowance = allowance(self.debugs);
        }
        if self.silent && self.allowance.has_recovered() {
            self.silent = false;
        }
        if self.silent {
            return;
        }
        match self.allowance.take(cost) {
            true => log_line(&printable(&self.line)),
            false => {
                self.silent = true;
                log::warn!("the sandbox logs more than is relayed");
            }
        }
    }
}

/// Whether the shim logs at debug level now, and boot with it.
fn debugs() -> bool {
    log::max_level() >= log::LevelFilter::Debug
}

fn allowance(debugs: bool) -> Allowance {
    Allowance::new(AT_ONCE, if debugs { A_SECOND_WHEN_DEBUGGING } else { A_SECOND })
}

/// Logs one line at its level, which boot writes first.
fn log_line(line: &str) {
    let (first, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
    match first.parse::<log::Level>() {
        Ok(level) => log::log!(level, "sandbox: {rest}"),
        Err(_) => log::info!("sandbox: {}", line.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_is_kept_up_to_a_length_however_long_it_is() {
        let mut relay = Relay::new();
        for _ in 0..1000 {
            relay.take(&[b'x'; 4096]);
        }
        assert_eq!(relay.line.len(), LONGEST_LINE);
        relay.take(b"end\nnext");
        assert_eq!(relay.line, b"next");
        for _ in 0..1000 {
            relay.take(&[&[b'x'; 2000][..], b"\n"].concat());
        }
        assert!(relay.silent);
    }
}
