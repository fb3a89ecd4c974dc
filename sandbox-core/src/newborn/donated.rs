//! The steps of a newborn that use the descriptors that it was donated.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};

use crate::container::donated::Donated;
use crate::container::paths::DEV_NULL;
use crate::container::terminal::Terminal;
use crate::error::{Context, Result};
use crate::sys::descriptor;

/// Moves this process into the container's cgroup: "0" names the process that writes.
pub(super) fn join_cgroups(donated: &Donated) -> Result<()> {
    for procs in &donated.cgroup_procs {
        rustix::io::write(procs, b"0").context(|| "join the container's cgroup")?;
    }
    Ok(())
}

/// Installs stdio, with `/dev/null` for a stream that was not donated. Must be called in
/// boot's root.
pub(super) fn install_stdio(donated: &Donated, terminal: Option<&Terminal>) -> Result<()> {
    let null = rustix::fs::open(DEV_NULL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("open the sandbox's {DEV_NULL}"))?;
    for (place, given) in (0..).zip(&donated.stdio) {
        let fd: BorrowedFd<'_> = match (terminal, given) {
            (Some(terminal), _) => terminal.peer.as_fd(),
            (None, Some(given)) => given.as_fd(),
            (None, None) => null.as_fd(),
        };
        descriptor::install_stdio(fd, place).context(|| format!("install descriptor {place}"))?;
    }
    Ok(())
}
