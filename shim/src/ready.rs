//! Waits for descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Context, Result};

/// Registers a descriptor with the event loop.
#[expect(
    deprecated,
    reason = "unsound for types whose as_raw_fd changes or dangles; the callers' are OwnedFd and \
              BorrowedFd, and tokio has no safe constructor for just those"
)]
pub(crate) fn register<T: AsFd + AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, interest)
}

/// Waits until a descriptor is readable. Any number of tasks may wait for the
/// same one: epoll accepts a descriptor only once, so each task waits on its
/// own duplicate.
pub(crate) async fn readable(fd: BorrowedFd<'_>) -> Result<()> {
    ready(fd, Interest::READABLE).await
}

/// Whether a descriptor is readable now.
pub(crate) fn is_readable(fd: impl AsFd) -> bool {
    let mut asked = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Waits until a descriptor is writable.
pub(crate) async fn writable(fd: BorrowedFd<'_>) -> Result<()> {
    ready(fd, Interest::WRITABLE).await
}

async fn ready(fd: BorrowedFd<'_>, interest: Interest) -> Result<()> {
    let own = fd.try_clone_to_owned().context(|| "duplicate a descriptor")?;
    let fd = register(own, interest).context(|| "register with epoll")?;
    let _ready = fd.ready(interest).await.context(|| "wait for a descriptor")?;
    Ok(())
}
