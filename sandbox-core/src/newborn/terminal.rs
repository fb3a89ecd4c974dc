//! The name of a process's terminal.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fcntl_setfl, fstat, openat2};

use crate::container::terminal::Terminal;
use crate::error::{Context, Result};
use crate::sys::descriptor::install_stdio;

/// Opens the terminal again by its name in the container, and makes that 0, 1 and 2. boot
/// opened it in a devpts that is mounted nowhere, and ttyname(3) of some C libraries
/// believes the link in /proc/self/fd alone.
///
/// The process must be in the container's root. Whatever else the container has by that
/// name is left alone.
pub(super) fn name(terminal: &Terminal) -> Result<()> {
    let Some(named) = open_named(terminal) else { return Ok(()) };
    for place in 0..3 {
        install_stdio(&named, place).context(|| format!("install descriptor {place}"))?;
    }
    Ok(())
}

/// Opens the name if it stands for this terminal. Never blocks on something else.
fn open_named(terminal: &Terminal) -> Option<OwnedFd> {
    let path = format!("/dev/pts/{}", terminal.number);
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let named = openat2(CWD, path, flags, Mode::empty(), resolve).ok()?;
    let identity = |fd: &OwnedFd| fstat(fd.as_fd()).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let same = identity(&named)? == identity(&terminal.peer)?;
    (same && fcntl_setfl(&named, OFlags::RDWR).is_ok()).then_some(named)
}
