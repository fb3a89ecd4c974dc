//! Waiting. Tests wait for events; where the kernel or containerd offers none,
//! [`until`] looks again and again, soon at first. The deadline is no part of
//! any expectation: it only bounds how long a failing test hangs.

use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// After this long something that must happen has failed to.
pub fn deadline() -> Duration {
    patience(60)
}

/// Some seconds, or more of them where `PALISADE_TEST_PATIENCE` says that the
/// machine is so many times slower (an emulated one).
pub fn patience(seconds: u32) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| match std::env::var("PALISADE_TEST_PATIENCE") {
        Err(_) => 1,
        Ok(factor) => factor.parse().expect("PALISADE_TEST_PATIENCE is a number"),
    });
    Duration::from_secs((seconds * factor).into())
}

/// Calls `look` until it finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + deadline();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < give_up, "waited {:?} in vain for: {what}", deadline());
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether a descriptor becomes readable in time. A pidfd does when its
/// process ends.
pub fn readable(descriptor: impl AsFd, within: Duration) -> bool {
    let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(within).expect("a time-out that poll(2) can hold");
    matches!(poll(&mut polled, timeout), Ok(1))
}
