//! Waiting. Tests wait for events; where the kernel or containerd offers none,
//! [`until`] looks again and again, soon at first. The deadline is no part of
//! any expectation: it only bounds how long a failing test hangs.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// After this long something that must happen has failed to.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Calls `look` until it finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + DEADLINE;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < give_up, "waited {DEADLINE:?} in vain for: {what}");
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
