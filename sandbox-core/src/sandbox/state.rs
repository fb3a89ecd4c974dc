//! A sandbox's state on disk, for `delete` and for people, if the shim is gone:
//! `<state root>/<namespace>/<sandbox>/`.
//!
//! `state.json` holds the facts that never change and is written once. `counters` is what the
//! shim counts (`counters.rs`). Each container has one file below `containers/`, so that whatever
//! is made is on record before it is made, and until it is gone:
//!
//! | `<id>.` | the container |
//! |---|---|
//! | `new` | is being made: its cgroup may be there |
//! | `json` | is made, up to its init |
//! | `old` | is deleted, and its cgroup is there still: boot is in it, or it could not be removed |
//!
//! An ID range is on record by its link, which names its owner (`users.rs`).

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

use super::counters::Counters;
use crate::cgroup::SavedCgroup;
use crate::directories::{self, Lock, make_below};
use crate::error::{Context, Error, FailureKind, Result};
use crate::types::HostPid;

/// The mode of a directory for root only.
pub(super) const PRIVATE: u32 = 0o700;

/// The layout of the files below. A file of another version is refused.
const VERSION: u32 = 1;

/// The immutable facts of one sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Layout version.
    pub version: u32,
    /// The sandbox's ID.
    pub id: String,
    /// boot's identity.
    pub boot: Identity,
    /// The `oom_score_adj` that the shim had when it made boot.
    pub original_oom_score_adj: i32,
    /// The link that marks the sandbox's ID range as taken.
    pub id_range: Option<PathBuf>,
    /// boot's own user on the host, if it has one.
    #[serde(default)]
    pub own_id: Option<u32>,
    /// The shim's identity. Shims of versions before wrote none.
    #[serde(default)]
    pub shim: Option<Identity>,
    /// The address at which the shim serves, as `unix:///run/containerd/s/…`.
    #[serde(default)]
    pub address: String,
}

impl State {
    /// Makes the state of a sandbox with no IDs of its own, whose shim cannot be reached.
    pub fn new(id: &str, boot: Identity, original_oom_score_adj: i32) -> Self {
        Self {
            version: VERSION,
            id: id.to_owned(),
            boot,
            original_oom_score_adj,
            id_range: None,
            own_id: None,
            shim: None,
            address: String::new(),
        }
    }
}

/// The identity of a process, which distinguishes it from a later one with the same PID.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// Host PID.
    pub pid: i32,
    /// Inode number of its pidfd. It is unique while the machine runs if the kernel has
    /// pidfs (Linux 6.9), and the same for all processes before.
    pub pidfd_inode: u64,
}

/// The state of one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerState {
    /// Layout version.
    version: u32,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its cgroup.
    pub cgroup: SavedCgroup,
}

/// What the file of a container is called after its ID, as the table above says.
const NEW: &str = "new";
const RECORD: &str = "json";
const OLD: &str = "old";

impl ContainerState {
    fn encode(bundle: &Path, cgroup: &SavedCgroup) -> Result<Vec<u8>> {
        let (bundle, cgroup) = (bundle.to_owned(), cgroup.clone());
        let state = ContainerState { version: VERSION, bundle, cgroup };
        serde_json::to_vec(&state).context(|| "encode the state of a container")
    }
}

impl Identity {
    /// Reads the identity from a pidfd.
    pub fn of(pid: HostPid, pidfd: impl AsFd) -> Result<Self> {
        let stat =
            rustix::fs::fstat(pidfd).context(|| format!("fstat of the pidfd of {}", pid.0))?;
        Ok(Self { pid: pid.0, pidfd_inode: stat.st_ino })
    }

    /// Reads the identity of the process that calls this.
    pub fn of_this_process() -> Result<Self> {
        let pid = rustix::process::getpid();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context(|| "pidfd_open of itself")?;
        Self::of(HostPid(pid.as_raw_nonzero().get()), pidfd)
    }

    /// Opens the process if it is still the same.
    pub fn open(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        let stat = rustix::fs::fstat(&pidfd).ok()?;
        (stat.st_ino == self.pidfd_inode).then_some(pidfd)
    }
}

/// A sandbox's directory.
#[derive(Clone, Debug)]
pub struct StateDirectory(PathBuf);

impl StateDirectory {
    /// Returns the directory of a sandbox.
    pub fn locate(root: &Path, namespace: &str, id: &str) -> Result<Self> {
        for (what, name) in [("namespace", namespace), ("sandbox ID", id)] {
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
                return Err(Error::invalid(format!(
                    "{what} {name:?} cannot be a directory's name; use letters, digits, '-', '_' and '.'"
                )));
            }
        }
        Ok(Self(root.join(namespace).join(id)))
    }

    /// Makes the directory, which also makes the sandbox's ID unique.
    pub fn create(&self) -> Result<()> {
        let namespace = self.0.parent().unwrap_or(&self.0);
        // The last sandbox of a namespace takes the namespace's directory along.
        let make = || DirBuilder::new().mode(PRIVATE).create(&self.0);
        match make_below(namespace, PRIVATE, make) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(Error::new(
                FailureKind::Exists,
                format!("a sandbox has its state in {} already", self.0.display()),
            )),
            other => other.context(|| format!("mkdir {}", self.0.display())),
        }?;
        let containers = self.0.join("containers");
        fs::create_dir(&containers).context(|| format!("mkdir {}", containers.display()))
    }

    /// Takes the lock of those who clean up. `None` if there is no directory.
    pub fn lock(&self) -> Result<Option<OwnedFd>> {
        let what = || format!("lock {}", self.0.display());
        match directories::lock(&self.0).context(what)? {
            Lock::Taken(lock) => Ok(Some(lock)),
            Lock::NoDirectory => Ok(None),
            Lock::OfAnother | Lock::OfARemoved => {
                Err(Error::internal(format!("{}: another process cleans up there", what())))
            }
        }
    }

    /// As [`StateDirectory::lock`], but does not wait: `None` as well if another process has it.
    pub(super) fn try_lock(&self) -> Result<Option<OwnedFd>> {
        let tried = directories::try_lock(&self.0);
        match tried.context(|| format!("lock {}", self.0.display()))? {
            Lock::Taken(lock) => Ok(Some(lock)),
            Lock::NoDirectory | Lock::OfAnother | Lock::OfARemoved => Ok(None),
        }
    }

    /// Writes the immutable facts.
    pub fn write(&self, state: &State) -> Result<()> {
        let json = serde_json::to_vec(state).context(|| "encode state.json")?;
        self.write_file("state.json", &json)
    }

    /// Reads the immutable facts. `None` if there are none.
    pub fn read(&self) -> Result<Option<State>> {
        let state: Option<State> = read_file(&self.0.join("state.json"))?;
        match state {
            Some(s) if s.version != VERSION => Err(self.wrong_version("state.json", s.version)),
            other => Ok(other),
        }
    }

    /// Makes the counters of a new sandbox.
    pub(super) fn make_counters(&self) -> Result<Counters> {
        Counters::create(&self.0.join("counters"))
    }

    /// Opens the counters to read them.
    ///
    /// # Errors
    /// The error says that there are none, or that another version of Palisade wrote them.
    pub fn counters(&self) -> Result<Counters> {
        Counters::open(&self.0.join("counters"))
    }

    /// Writes down a container that is about to be made, with the cgroup that it will have. A
    /// file that is torn, since this was cut off, stands for nothing that was made.
    pub fn plan_container(&self, id: &str, bundle: &Path, cgroup: &SavedCgroup) -> Result<()> {
        let path = self.0.join(container_file(id, NEW));
        fs::write(&path, ContainerState::encode(bundle, cgroup)?)
            .context(|| format!("write {}", path.display()))
    }

    /// Writes down that its cgroup came to be another than planned.
    pub fn correct_container(&self, id: &str, bundle: &Path, cgroup: &SavedCgroup) -> Result<()> {
        self.write_file(&container_file(id, NEW), &ContainerState::encode(bundle, cgroup)?)
    }

    /// Records a container that was written down.
    pub fn add_container(&self, id: &str) -> Result<()> {
        let [from, to] = [NEW, RECORD].map(|stage| self.0.join(container_file(id, stage)));
        fs::rename(&from, &to).context(|| format!("rename {} to {}", from.display(), to.display()))
    }

    /// Ends the record of a container that is deleted, but not that of its cgroup. Idempotent.
    pub fn retire_container(&self, id: &str) -> Result<()> {
        let [from, to] = [RECORD, OLD].map(|stage| self.0.join(container_file(id, stage)));
        match fs::rename(&from, &to) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other.context(|| format!("rename {} to {}", from.display(), to.display())),
        }
    }

    /// Removes the record of a container whose cgroup is gone. Idempotent.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        self.remove_file(&container_file(id, RECORD))
    }

    /// Removes what was written down of a container that could not be made, once its cgroup is
    /// gone. Idempotent.
    pub fn forget_plan(&self, id: &str) -> Result<()> {
        self.remove_file(&container_file(id, NEW))?;
        self.remove_container(id)
    }

    fn remove_file(&self, name: &str) -> Result<()> {
        let path = self.0.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Reads the cgroups of all containers, also of those that are being made, or deleted.
    pub(super) fn cgroups(&self) -> Result<Vec<SavedCgroup>> {
        let mut found = Vec::new();
        for path in entries(&self.0.join("containers"))? {
            let stage = path.extension().and_then(|stage| stage.to_str()).unwrap_or_default();
            let state: Option<ContainerState> = match stage {
                // Cut off before anything was made.
                NEW => read_file(&path).unwrap_or_default(),
                RECORD | OLD => read_file(&path)?,
                _ => None,
            };
            found.extend(state.map(|state| state.cgroup));
        }
        Ok(found)
    }

    /// Reads the recorded containers, with their IDs, in no order. Leaves out what is removed
    /// meanwhile.
    ///
    /// # Errors
    /// The error names a file that cannot be read, or is none of Palisade's.
    pub fn containers(&self) -> Result<Vec<(String, ContainerState)>> {
        let mut found = Vec::new();
        for id in self.container_ids()? {
            if let Some(state) = self.container(&id)? {
                found.push((id, state));
            }
        }
        Ok(found)
    }

    /// Returns the IDs of the recorded containers, in no order.
    ///
    /// # Errors
    /// The error names a directory that cannot be read.
    pub fn container_ids(&self) -> Result<Vec<String>> {
        let paths = entries(&self.0.join("containers"))?;
        let id = |path: &PathBuf| {
            let is_record = path.extension().is_some_and(|stage| stage == RECORD);
            Some(path.file_stem().filter(|_| is_record)?.to_str()?.to_owned())
        };
        Ok(paths.iter().filter_map(id).collect())
    }

    /// Reads the record of one container. `None` if there is none.
    ///
    /// # Errors
    /// The error names a file that cannot be read, or is none of Palisade's.
    pub fn container(&self, id: &str) -> Result<Option<ContainerState>> {
        read_file(&self.0.join(container_file(id, RECORD)))
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes everything. Idempotent.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).context(|| format!("remove {}", self.0.display()))
            }
            _ => {
                // After the last sandbox, remove the namespace's directory as well.
                let _ = self.0.parent().map(fs::remove_dir);
                Ok(())
            }
        }
    }

    fn write_file(&self, name: &str, json: &[u8]) -> Result<()> {
        let path = self.0.join(name);
        let temporary = path.with_extension("tmp");
        File::create(&temporary)
            .and_then(|mut file| file.write_all(json))
            .and_then(|()| fs::rename(&temporary, &path))
            .context(|| format!("write {}", path.display()))
    }

    fn wrong_version(&self, name: &str, version: u32) -> Error {
        Error::internal(format!(
            "{} is of layout {version}, this program reads {VERSION}; another version of Palisade wrote it",
            self.0.join(name).display()
        ))
    }
}

/// Returns the directories of all sandboxes below a state root, with their namespaces, in the
/// order of their names. One whose `state.json` is not there yet, or no longer, is among them.
///
/// # Errors
/// The error names a directory that cannot be read. There may be no state root.
pub fn sandboxes(root: &Path) -> Result<Vec<(String, StateDirectory)>> {
    let mut found = Vec::new();
    for namespace in entries(root)? {
        let Some(name) = namespace.file_name().and_then(|name| name.to_str()) else { continue };
        // What Palisade keeps beside the namespaces has no `containers` below it.
        let below =
            entries(&namespace)?.into_iter().filter(|path| path.join("containers").is_dir());
        found.extend(below.map(|path| (name.to_owned(), StateDirectory(path))));
    }
    found.sort_by(|a, b| (&a.0, a.1.path()).cmp(&(&b.0, b.1.path())));
    Ok(found)
}

/// Returns what is in a directory: nothing, if that is gone or is none.
fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        other => {
            let found = other.context(|| format!("read {}", directory.display()))?;
            Ok(found.flatten().map(|entry| entry.path()).collect())
        }
    }
}

fn container_file(id: &str, stage: &str) -> String {
    format!("containers/{id}.{stage}")
}

fn read_file<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.context(|| format!("read {}", path.display()))?,
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::internal(format!("{} is torn or not Palisade's: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_sandbox_with_the_same_id_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDirectory::locate(root.path(), "k8s.io", "a").unwrap();
        directory.create().unwrap();
        assert_eq!(directory.create().unwrap_err().kind, FailureKind::Exists);
        directory.remove().unwrap();
        directory.remove().unwrap();
        assert!(!root.path().join("k8s.io").exists());
    }

    /// The last sandbox of a namespace takes its directory along, in the moment in which another
    /// comes.
    #[test]
    fn the_directory_of_a_namespace_may_be_taken_away() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDirectory::locate(root.path(), "ns", "a").unwrap();
        std::thread::scope(|scope| {
            let comes_and_goes = scope.spawn(|| {
                for _ in 0..300 {
                    directory.create().unwrap();
                    directory.remove().unwrap();
                }
            });
            while !comes_and_goes.is_finished() {
                let _ = fs::remove_dir(root.path().join("ns"));
            }
        });
    }

    #[test]
    fn a_torn_state_file_is_a_clear_error() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDirectory::locate(root.path(), "ns", "a").unwrap();
        directory.create().unwrap();
        fs::write(directory.path().join("state.json"), "{\"version\":1,").unwrap();
        let error = directory.read().unwrap_err().to_string();
        assert!(error.contains("torn or not Palisade's"), "{error}");
    }

    #[test]
    fn an_id_cannot_climb_out_of_the_state_root() {
        for id in ["..", "a/b", "", ".hidden"] {
            assert!(StateDirectory::locate(Path::new("/run/x"), "ns", id).is_err(), "{id:?}");
        }
    }
}
