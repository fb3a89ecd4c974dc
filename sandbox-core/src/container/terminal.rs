//! Pseudo terminals of the container's own devpts, made without a path: the workload
//! controls what `/dev/ptmx` is.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, openat};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::outside_ids::OutsideIds;
use crate::error::{Context, Error, Result};
use crate::spec::plan::ProcessPlan;

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
    ids: Option<&OutsideIds>,
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
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let peer = ioctl_tiocgptpeer(&master, flags).context(|| "open the terminal")?;
    // The group stays the devpts's, as tty(1) tools expect.
    let uid = ids.map_or(Ok(process.uid), |ids| ids.uid("process.user.uid", process.uid))?;
    fchown(&peer, Some(Uid::from_raw(uid)), None::<Gid>)
        .context(|| "give the terminal to its user")?;
    let size = Winsize { ws_row: wanted.height, ws_col: wanted.width, ws_xpixel: 0, ws_ypixel: 0 };
    if size.ws_row > 0 || size.ws_col > 0 {
        tcsetwinsize(&master, size).context(|| "process.consoleSize")?;
    }
    let number = number(&master)?;
    Ok(Some(Terminal { master, peer, number }))
}

/// Returns the terminal's number: `TIOCGPTN`, ioctl_tty(2).
fn number(master: &OwnedFd) -> Result<u32> {
    let name = ptsname(master, Vec::new()).context(|| "number of the terminal")?;
    let number = name.to_str().ok().and_then(|name| name.strip_prefix("/dev/pts/")?.parse().ok());
    number.ok_or_else(|| Error::internal(format!("the terminal is called {name:?}")))
}
