//! Carries out `delete` if the shim is gone.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use super::state::{Identity, State, StateDirectory};
use super::users;
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::types::HostPid;

/// Time in which boot must exit. containerd allows five seconds for `delete` altogether.
const BOOT_EXIT_TIMEOUT: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };

/// Cleans up after a shim that died: kills the sandbox if it lives, removes its cgroups,
/// gives its ID range back and removes its state. Idempotent. Needs only the state on
/// disk. Returns boot's PID if it is known.
///
/// All steps are tried, and the first error is returned.
pub fn clean_up(state_root: &Path, namespace: &str, id: &str) -> Result<Option<HostPid>> {
    match Claim::of(state_root, namespace, id)? {
        Some(claim) => claim.clean_up(),
        None => Ok(None),
    }
}

/// The state of a sandbox that nobody else cleans up meanwhile. As long as it is held, its
/// directory stays, so that no new sandbox can have the same ID.
#[derive(Debug)]
pub struct Claim {
    directory: StateDirectory,
    /// `<namespace>/<id>`: the owner of an ID range.
    owner: String,
    _lock: OwnedFd,
}

impl Claim {
    /// Claims the state of a sandbox. `None` if there is none.
    ///
    /// # Errors
    /// Fails if another process does not finish with it in time.
    pub fn of(state_root: &Path, namespace: &str, id: &str) -> Result<Option<Self>> {
        let directory = StateDirectory::locate(state_root, namespace, id)?;
        let owner = format!("{namespace}/{id}");
        Ok(directory.lock()?.map(|lock| Self { directory, owner, _lock: lock }))
    }

    /// Reads what the shim has recorded. `None` if the sandbox was not made to the end.
    pub fn state(&self) -> Result<Option<State>> {
        self.directory.read()
    }

    /// Cleans up, as [`clean_up`] does.
    pub fn clean_up(self) -> Result<Option<HostPid>> {
        let directory = &self.directory;
        let state = directory.read()?;
        let mut cgroups = Vec::new();
        let mut first_error = Ok(());
        for (_, container) in directory.containers()? {
            match Cgroup::open(container.cgroup) {
                Ok(cgroup) => cgroups.push(cgroup),
                Err(error) => first_error = first_error.and(Err(error)),
            }
        }
        // On cgroup v1 a frozen process does not die.
        for cgroup in &cgroups {
            first_error = first_error.and(cgroup.thaw_if_there());
        }
        if let Some(state) = &state {
            first_error = first_error.and(kill(state.boot));
        }
        for cgroup in &cgroups {
            // With the host's PIDs, containers outlive boot.
            first_error = first_error.and(cgroup.kill_all()).and(cgroup.remove());
            if let Some(own) = state.as_ref().and_then(|state| state.own_id) {
                first_error = first_error.and(cgroup.forbid_births(own));
            }
        }
        if let Some(link) = state.as_ref().and_then(|s| s.id_range.as_ref()) {
            first_error = first_error.and(users::release(link, &self.owner));
        }
        first_error?;
        directory.remove()?;
        Ok(state.map(|s| HostPid(s.boot.pid)))
    }
}

/// Kills boot, if the process with that PID is still boot, and waits until the kernel has
/// killed everything in its PID namespace.
fn kill(boot: Identity) -> Result<()> {
    let Some(pidfd) = boot.open() else {
        return Ok(());
    };
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&BOOT_EXIT_TIMEOUT)) {
        Ok(1..) => Ok(()),
        _ => Err(Error::internal(format!(
            "the sandbox process {} did not end within {} seconds of SIGKILL",
            boot.pid, BOOT_EXIT_TIMEOUT.tv_sec
        ))),
    }
}
