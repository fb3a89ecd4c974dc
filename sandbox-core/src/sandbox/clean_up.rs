//! Carries out `delete` if the shim is gone, and what an earlier one has left.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use super::state::{Identity, State, StateDirectory};
use super::unfinished::{Note, noted};
use super::users;
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::types::HostPid;

/// Time in which boot must exit, and again its cgroups must become empty. containerd allows
/// five seconds for `delete` altogether.
const PATIENCE: Duration = Duration::from_secs(3);

/// The same for a shim that finishes what another process has begun: requests wait for it.
const SHORT_PATIENCE: Duration = Duration::from_millis(100);

/// A sandbox whose clean-up was begun before.
#[derive(Debug)]
pub struct Finished {
    /// Its ID.
    pub id: String,
    /// What it had left.
    pub left: String,
    /// The address at which its shim served, if it is known.
    pub address: Option<String>,
    /// Whether that is gone now.
    pub outcome: Result<()>,
}

/// Finishes what clean-ups in a namespace have begun and could not finish, without much of a
/// wait. Costs one system call where there is nothing, as is the rule.
pub fn finish(state_root: &Path, namespace: &str) -> Vec<Finished> {
    let finish_one = |id: String| {
        let claim = match Claim::try_of(state_root, namespace, &id) {
            Ok(claim) => claim?,
            Err(error) => {
                let (left, address) = (String::from("a note"), None);
                return Some(Finished { id, left, address, outcome: Err(error) });
            }
        };
        let left = claim.describe();
        let address = claim.state().ok().flatten().map(|state| state.address);
        let outcome = claim.clean_up_within(SHORT_PATIENCE).map(drop);
        Some(Finished { id, left, address, outcome })
    };
    noted(state_root, namespace).into_iter().filter_map(finish_one).collect()
}

/// Notes for [`finish`] that something of a sandbox could not be removed.
pub fn leave_unfinished(directory: &StateDirectory) -> Result<()> {
    let name = |path: Option<&Path>| path?.file_name()?.to_str().map(str::to_owned);
    let path = directory.path();
    let namespace = path.parent();
    match (namespace.and_then(Path::parent), name(namespace), name(Some(path))) {
        (Some(root), Some(namespace), Some(id)) => Note::of(root, &namespace, &id).make(),
        _ => Err(Error::internal(format!("{} is no sandbox's state", path.display()))),
    }
}

/// The state of a sandbox that nobody else cleans up meanwhile. As long as it is held, its
/// directory stays, so that no new sandbox can have the same ID.
#[derive(Debug)]
pub struct Claim {
    directory: StateDirectory,
    /// `<namespace>/<id>`: the owner of an ID range.
    owner: String,
    state_root: PathBuf,
    note: Note,
    _lock: OwnedFd,
}

impl Claim {
    /// Claims the state of a sandbox. `None` if there is none.
    ///
    /// # Errors
    /// Fails if another process does not finish with it in time.
    pub fn of(state_root: &Path, namespace: &str, id: &str) -> Result<Option<Self>> {
        let directory = StateDirectory::locate(state_root, namespace, id)?;
        let lock = directory.lock()?;
        Ok(Self::with(state_root, namespace, id, directory, lock))
    }

    /// Claims the state of a sandbox of which there is a note. `None` if another process has it,
    /// or if the note is of an earlier sandbox.
    fn try_of(state_root: &Path, namespace: &str, id: &str) -> Result<Option<Self>> {
        let directory = StateDirectory::locate(state_root, namespace, id)?;
        let lock = directory.try_lock()?;
        let claim = Self::with(state_root, namespace, id, directory, lock);
        let valid = claim.as_ref().is_some_and(|claim| claim.note.is_valid());
        if !valid && !state_root.join(namespace).join(id).exists() {
            Note::of(state_root, namespace, id).strike_off();
        }
        Ok(claim.filter(|_| valid))
    }

    fn with(
        state_root: &Path,
        namespace: &str,
        id: &str,
        directory: StateDirectory,
        lock: Option<OwnedFd>,
    ) -> Option<Self> {
        let owner = format!("{namespace}/{id}");
        let note = Note::of(state_root, namespace, id);
        let state_root = state_root.to_owned();
        Some(Self { directory, owner, state_root, note, _lock: lock? })
    }

    /// Reads what the shim has recorded. `None` if the sandbox was not made to the end.
    pub fn state(&self) -> Result<Option<State>> {
        self.directory.read()
    }

    /// Names what it may have left.
    fn describe(&self) -> String {
        let cgroups = self.directory.cgroups().unwrap_or_default();
        let names = cgroups.into_iter().filter_map(|saved| Some(Cgroup::open(saved).ok()?.name()));
        names
            .chain([format!("state in {}", self.directory.path().display())])
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Notes that the clean-up begins: from now on [`finish`] finds it. [`Claim::clean_up`] does
    /// so as well.
    pub fn note(&self) -> Result<()> {
        self.note.make()
    }

    /// Cleans up after a shim that died: kills the sandbox if it lives, removes its cgroups,
    /// gives its ID range back and removes its state. Idempotent. Needs only the state on
    /// disk. Returns boot's PID if it is known.
    ///
    /// All steps are tried, and the first error is returned. What is left then is found by
    /// [`finish`].
    pub fn clean_up(self) -> Result<Option<HostPid>> {
        self.clean_up_within(PATIENCE)
    }

    fn clean_up_within(self, patience: Duration) -> Result<Option<HostPid>> {
        let directory = &self.directory;
        // This process may be killed as well.
        self.note.make()?;
        let state = directory.read()?;
        let mut cgroups = Vec::new();
        let mut first_error = Ok(());
        for saved in directory.cgroups()? {
            match Cgroup::open(saved) {
                Ok(cgroup) => cgroups.push(cgroup),
                Err(error) => first_error = first_error.and(Err(error)),
            }
        }
        // On cgroup v1 a frozen process does not die.
        for cgroup in &cgroups {
            first_error = first_error.and(cgroup.thaw_if_there());
        }
        if let Some(state) = &state {
            first_error = first_error.and(kill(state.boot, patience));
        }
        for cgroup in &cgroups {
            // With the host's PIDs, containers outlive boot.
            first_error = first_error.and(cgroup.kill_all()).and(cgroup.remove_within(patience));
            if let Some(own) = state.as_ref().and_then(|state| state.own_id) {
                first_error = first_error.and(cgroup.forbid_births(own));
            }
        }
        first_error?;
        // Last, since IDs must not be given to others before their processes are gone.
        match state.as_ref().map(|state| &state.id_range) {
            Some(Some(link)) => users::release(link, &self.owner)?,
            Some(None) => {}
            None => users::release_all(&self.state_root, &self.owner)?,
        }
        directory.remove()?;
        self.note.strike_off();
        Ok(state.map(|s| HostPid(s.boot.pid)))
    }
}

/// Kills boot, if the process with that PID is still boot, and waits until the kernel has
/// killed everything in its PID namespace.
fn kill(boot: Identity, patience: Duration) -> Result<()> {
    let Some(pidfd) = boot.open() else {
        return Ok(());
    };
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    let (seconds, rest) = (patience.as_secs(), patience.subsec_nanos());
    let timeout = Timespec { tv_sec: seconds as i64, tv_nsec: rest.into() };
    match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
        Ok(1..) => Ok(()),
        _ => Err(Error::internal(format!(
            "the sandbox process {} did not end within {patience:?} of SIGKILL",
            boot.pid
        ))),
    }
}
