//! The steps of a newborn that use the descriptors that it was donated.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::stdio;

use super::Channel;
use super::process::OwnProcFiles;
use crate::container::donated::Donated;
use crate::container::paths::DEV_NULL;
use crate::container::terminal::Terminal;
use crate::control::newborn::AtGate;
use crate::error::{Context, Result};
use crate::sys::descriptor;

/// Moves this process into the container's cgroup, unless it was born there: "0" names the
/// process that writes.
pub(super) fn join_cgroups(donated: &Donated, birth: Birth) -> Result<()> {
    if birth == Birth::InCgroup {
        return Ok(());
    }
    donated.cgroup_procs.iter().try_for_each(join)
}

/// Where a newborn was born.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Birth {
    /// In boot's cgroup.
    BesideBoot,
    /// In that of its container.
    InCgroup,
}

/// Moves the init into its own cgroup below the container's, which the container can then
/// divide. Its cgroup namespace stays that of the container's cgroup.
pub(super) fn leave_for_own_cgroup(donated: &Donated) -> Result<()> {
    donated.init_procs.iter().try_for_each(join)
}

fn join(procs: &OwnedFd) -> Result<()> {
    rustix::io::write(procs, b"0").map(drop).context(|| "join the container's cgroup")
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

/// Closes what this process has of boot, but for its streams and what its last steps need.
/// execve would close it too late: the process has the program's memory by then, into which a
/// container's CAP_SYS_PTRACE reaches, and the links in `/proc/PID/fd` ask for no more.
///
/// Must be called before a profile is loaded, which may refuse it, and by a process that has
/// dropped what it owns but for that.
pub(super) fn give_up_others(
    channel: Channel<'_>,
    own_files: &OwnProcFiles,
    handed_over: &AtGate,
) -> Result<()> {
    let AtGate { devpts, terminal, mounts } = handed_over;
    let handed_over = [devpts, terminal, mounts].into_iter().flatten().map(AsFd::as_fd);
    let streams = [stdio::stdin(), stdio::stdout(), stdio::stderr()];
    let kept: Vec<_> = streams
        .into_iter()
        .chain([channel.boot, channel.log])
        .chain(own_files.descriptors())
        .chain(handed_over)
        .collect();
    descriptor::close_others(&kept).context(|| "close boot's descriptors")
}
