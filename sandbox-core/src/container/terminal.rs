//! Pseudo terminals of the container's own devpts, made without a path: the workload
//! controls what `/dev/ptmx` is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, openat};
use rustix::pty::unlockpt;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::{Context, Error, Result};
use crate::spec::plan::ProcessPlan;
use crate::sys::process::{open_terminal_peer, terminal_number};

/// A new terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// The shim's side.
    pub(crate) master: OwnedFd,
    /// The process's side.
    pub(crate) peer: OwnedFd,
    /// Its name in the devpts.
    pub(crate) number: u32,
}

/// Makes one if the process wants one, owned by the process's user.
pub(crate) fn make(
    process: &ProcessPlan,
    devpts: Option<BorrowedFd<'_>>,
) -> Result<Option<Terminal>> {
    let Some(wanted) = process.terminal else {
        return Ok(None);
    };
    let devpts = devpts.ok_or_else(|| {
        Error::invalid("process.terminal: the spec has no devpts mount to make a terminal in")
    })?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master =
        openat(devpts, "ptmx", flags, Mode::empty()).context(|| "open ptmx in the devpts")?;
    unlockpt(&master).context(|| "unlock the terminal")?;
    let peer = open_terminal_peer(master.as_fd()).context(|| "open the terminal")?;
    // The group stays the devpts's, as tty(1) tools expect.
    fchown(&peer, Some(Uid::from_raw(process.uid)), None::<Gid>)
        .context(|| "give the terminal to its user")?;
    let size = Winsize { ws_row: wanted.height, ws_col: wanted.width, ws_xpixel: 0, ws_ypixel: 0 };
    if size.ws_row > 0 || size.ws_col > 0 {
        tcsetwinsize(&master, size).context(|| "process.consoleSize")?;
    }
    let number = terminal_number(&master).context(|| "number of the terminal")?;
    Ok(Some(Terminal { master, peer, number }))
}
