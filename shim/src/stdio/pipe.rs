//! Pipes between a process and the shim. The kernel moves the pages from one
//! pipe to the other: the shim copies no byte.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use super::Owner;
use crate::error::{Context, Result};

/// Bytes of one move at most, so that other tasks have their turn.
const MOVE: usize = 1 << 20;

/// An anonymous pipe that belongs to a process's user, who can open it again by
/// `/proc/self/fd`.
pub(super) struct Pipe {
    pub(super) read_end: OwnedFd,
    pub(super) write_end: OwnedFd,
}

impl Pipe {
    pub(super) fn new(owner: &Owner<'_>) -> Result<Self> {
        let (read_end, write_end) =
            pipe_with(PipeFlags::CLOEXEC).context(|| "pipe for standard input or output")?;
        owner.chown(&read_end).context(|| "chown of a pipe")?;
        Ok(Self { read_end, write_end })
    }
}

/// Makes this end nonblocking. The other end stays as programs expect it: each
/// has an open file of its own.
pub(super) fn nonblocking(fd: &OwnedFd) -> Result<()> {
    ioctl_fionbio(fd, true).context(|| "FIONBIO")
}

/// Moves up to `length` bytes. `None`: there is nothing to move, or no room for
/// it. `Some(0)`: the source has ended.
pub(super) fn shift(
    from: &OwnedFd,
    to: &OwnedFd,
    length: usize,
) -> rustix::io::Result<Option<usize>> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    loop {
        return match splice(from, None, to, None, length.min(MOVE), flags) {
            Ok(moved) => Ok(Some(moved)),
            Err(Errno::AGAIN) => Ok(None),
            Err(Errno::INTR) => continue,
            Err(error) => Err(error),
        };
    }
}

/// Returns the number of bytes that wait in a pipe.
pub(super) fn waiting(pipe: impl AsFd) -> u64 {
    rustix::io::ioctl_fionread(pipe).unwrap_or(0)
}

/// Whether there is something to read.
pub(super) fn has_input(fd: impl AsFd) -> bool {
    has(fd, PollFlags::IN)
}

/// Whether a pipe takes more.
pub(super) fn has_room(pipe: impl AsFd) -> bool {
    has(pipe, PollFlags::OUT)
}

fn has(fd: impl AsFd, wanted: PollFlags) -> bool {
    let mut asked = [PollFd::new(&fd, wanted)];
    let polled = poll(&mut asked, Some(&Timespec::default()));
    polled.is_ok() && asked[0].revents().contains(wanted)
}
