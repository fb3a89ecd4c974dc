//! What `delete` does when the shim is gone.

use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use super::state::StateDirectory;
use super::users;
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::types::HostPid;

/// containerd gives `delete` five seconds in all.
const PATIENCE: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };

/// Cleans up after a shim that died: kills the sandbox if it lives, removes
/// its cgroups, gives its ID range back, removes its state. Idempotent; needs
/// nothing but the state on disk. Returns boot's PID when it is known.
///
/// Everything is tried; the first thing that went wrong is told.
pub fn clean_up(state_root: &Path, namespace: &str, id: &str) -> Result<Option<HostPid>> {
    let directory = StateDirectory::locate(state_root, namespace, id)?;
    let state = directory.read()?;
    let mut cgroups = Vec::new();
    let mut first_error = Ok(());
    for container in directory.containers()? {
        match Cgroup::open(container.cgroup) {
            Ok(cgroup) => cgroups.push(cgroup),
            Err(error) => first_error = first_error.and(Err(error)),
        }
    }
    // On cgroup v1 what is frozen does not die.
    for cgroup in &cgroups {
        first_error = first_error.and(cgroup.thaw_if_there());
    }
    if let Some(state) = &state {
        first_error = first_error.and(kill(state.boot));
    }
    for cgroup in &cgroups {
        first_error = first_error.and(cgroup.remove());
    }
    if let Some(link) = state.as_ref().and_then(|s| s.id_range.as_ref()) {
        first_error = first_error.and(users::release(link, &format!("{namespace}/{id}")));
    }
    first_error?;
    directory.remove()?;
    Ok(state.map(|s| HostPid(s.boot.pid)))
}

/// Kills boot, if the process of that number still is boot, and waits for the
/// kernel to have taken everything in its PID namespace along.
fn kill(boot: super::state::Identity) -> Result<()> {
    let Some(pidfd) = boot.open() else {
        return Ok(());
    };
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&PATIENCE)) {
        Ok(1..) => Ok(()),
        _ => Err(Error::internal(format!(
            "the sandbox process {} did not end within {} seconds of SIGKILL",
            boot.pid, PATIENCE.tv_sec
        ))),
    }
}
