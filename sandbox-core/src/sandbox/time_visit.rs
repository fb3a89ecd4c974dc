//! The time namespace that a new sandbox joins.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::setns;

use crate::error::{Context, Result};
use crate::sys::namespace::NEW_TIME;

/// A stay of this process in another time namespace, which ends on drop. A child that is
/// cloned meanwhile is in it: a process in a user namespace of its own could not enter one
/// that belongs to the host.
#[derive(Debug)]
pub(super) struct TimeVisit {
    home: OwnedFd,
}

impl TimeVisit {
    /// Enters the namespace that `path` names. Takes a process with one thread.
    pub(super) fn enter(path: &Path) -> Result<Self> {
        let what = || format!("linux.namespaces: join the time namespace {}", path.display());
        let home = File::open("/proc/self/ns/time").context(|| "open /proc/self/ns/time")?;
        let there = File::open(path).context(what)?;
        setns(there.as_fd(), NEW_TIME).context(what)?;
        Ok(Self { home: home.into() })
    }
}

impl Drop for TimeVisit {
    fn drop(&mut self) {
        // A shim that stayed would have the wrong time from now on.
        if setns(self.home.as_fd(), NEW_TIME).is_err() {
            crate::sys::process::exit_now(1);
        }
    }
}
