//! The process of a hook, whoever runs it: how it is executed, and how it ends.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::error::{Context, Error, Result};
use crate::spec::plan::HookPlan;
use crate::sys;

/// The end of a hook's process.
pub(crate) enum Ending {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
    /// It was killed after its timeout.
    TimedOut,
}

/// Executes a hook with its own environment. Returns only on failure.
pub(crate) fn execute(hook: &HookPlan) -> io::Result<Infallible> {
    let path = CString::new(hook.path.as_os_str().as_bytes())?;
    let strings = |list: &[String]| -> io::Result<Vec<CString>> {
        list.iter().map(|s| Ok(CString::new(s.as_str())?)).collect()
    };
    sys::process::execute(&path, &strings(&hook.args)?, &strings(&hook.env)?)
}

/// Waits for a hook, and kills it after its timeout.
pub(crate) fn wait(pidfd: &OwnedFd, timeout: Option<Duration>) -> Result<Ending> {
    let limit = timeout.and_then(|t| Timespec::try_from(t).ok());
    let ended = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], limit.as_ref())
        .context(|| "wait for the hook")?;
    if ended == 0 {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    let status =
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).context(|| "reap the hook")?;
    let status = status.ok_or_else(|| Error::internal("vanished"))?;
    Ok(match (ended, status.exit_status()) {
        (0, _) => Ending::TimedOut,
        (_, Some(code)) => Ending::Exited(code),
        (_, None) => Ending::Signalled(status.terminating_signal().unwrap_or(0)),
    })
}
