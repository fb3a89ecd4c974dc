//! Waits. Tests wait for events. Where the kernel or containerd has none,
//! [`until`] looks repeatedly, soon at first. A deadline is no part of an
//! expectation: it only limits how long a failing test hangs.

use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Returns the time after which something that must happen has failed to.
pub fn deadline() -> Duration {
    patience(60)
}

/// Returns a time of so many seconds, multiplied by `PALISADE_TEST_PATIENCE` on
/// a machine that is slower by that factor (an emulated one).
pub fn patience(seconds: u32) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| match std::env::var("PALISADE_TEST_PATIENCE") {
        Err(_) => 1,
        Ok(factor) => factor.parse().expect("PALISADE_TEST_PATIENCE is a number"),
    });
    Duration::from_secs((seconds * factor).into())
}

/// Calls `look` until it returns something.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    let found = try_until(deadline(), look);
    found.unwrap_or_else(|| panic!("waited {:?} in vain for: {what}", deadline()))
}

/// Calls `look` until it returns something, for so long.
pub fn try_until<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let give_up_at = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= give_up_at {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether a descriptor becomes readable in time, as a pidfd does when its
/// process ends.
pub fn readable(descriptor: impl AsFd, within: Duration) -> bool {
    let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(within).expect("a time-out that poll(2) can hold");
    matches!(poll(&mut polled, timeout), Ok(1))
}
