//! Control groups: create, limit, watch, remove; and derive from them the CPUs
//! and the memory that a sandbox is told.
//!
//! Version 1 and 2, made by ourselves or as a transient unit of systemd:
//!
//! | file | what |
//! |---|---|
//! | `hierarchy.rs` | which hierarchies the host has |
//! | `path.rs` | what `linux.cgroupsPath` means |
//! | `create.rs`, `systemd.rs` | make it, all or nothing |
//! | `resources/` | write `linux.resources` into it |
//! | `derive.rs` | the CPUs and memory to tell the sandbox |
//! | `delegate.rs` | let the container divide it |
//! | `freeze.rs`, `processes.rs`, `oom.rs`, `stats/` | act on it and watch it |
//! | `remove.rs` | take it away, in bounded time |
//!
//! # The libraries, and why these
//! Limits are written by the controllers of **cgroups-rs 0.5**; systemd is
//! spoken to with **rustbus**. Tried side by side on version 1 with nine
//! hierarchies (medians of 100; cpu, cpuset, memory and pids limited):
//!
//! | | ms |
//! |---|---|
//! | the bare mkdirs; writes; rmdirs | 0.41; 0.10; 0.24 |
//! | cgroups-rs, its controllers given our directories | 0.11 |
//! | cgroups-rs, `FsManager`: find the mounts; write | 0.24; 0.12 |
//! | libcgroups 0.7, `v1::Manager`: find the mounts; write | 2.1; 0.30 |
//!
//! - libcgroups looks every mount up again for each of twelve controllers and
//!   each container, has no way to be told the directories, re-adds its default
//!   devices at every update, ignores `rdma`, and on version 1 ignores
//!   `unified` and a `burst` that comes alone.
//! - The managers of both would hide which field of the spec was refused;
//!   single values let the error name it. What cgroups-rs has no setter for
//!   (`cpu.idle`, burst, bfq weights, reserved huge pages, `unified`) is
//!   written beside it.
//! - systemd: cgroups-rs uses zbus, which starts threads (three at the first
//!   connection); the shim must stay single-threaded because it clones.
//!   libcgroups' own client blocks and starts none, but never closes its
//!   socket, does not mark it close-on-exec (a sandbox would inherit a root
//!   connection to systemd), resets the CPU quota at an update that does not
//!   mention it, and cannot be used on version 1. rustbus is a plain blocking
//!   client, and closes what it opened.
//!
//! cgroups-rs is linked by containerd-shim in any case.
//!
//! # What is joined
//! Every hierarchy with controllers and, as runc does, `name=systemd`, so that
//! the host's tools show whose processes they are. A version 2 mount beside
//! version 1 (hybrid) is left alone.

mod create;
mod delegate;
mod derive;
mod file;
mod freeze;
mod hierarchy;
mod in_force;
mod oom;
mod path;
mod processes;
mod properties;
mod remove;
mod resources;
pub mod stats;
mod systemd;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::LinuxResources;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::spec::plan::UnitProperty;
use crate::sys;

pub use derive::{Limits, LimitsPolicy};
pub use hierarchy::Mode;
pub use in_force::LimitsInForce;
pub use oom::OomWatch;
pub use path::Driver;

/// One container's cgroup: a directory in each hierarchy of version 1, or a
/// single one in version 2.
///
/// Dropping it removes nothing; see [`Cgroup::remove`].
#[derive(Debug)]
pub struct Cgroup {
    saved: SavedCgroup,
    /// Keeps a unit of systemd alive until the container's first process is in.
    holder: Mutex<Option<sys::cgroup::Holder>>,
}

/// All that is needed to find a cgroup again, for the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCgroup {
    v2: bool,
    dirs: Vec<Dir>,
    unit: Option<String>,
}

/// The cgroup in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Dir {
    /// As in `/proc/PID/cgroup`; none for version 2.
    controllers: Vec<String>,
    /// Where the hierarchy is mounted: the root, as far as we can see.
    mount: PathBuf,
    /// The cgroup's directory, below `mount`.
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup of container `id` and limits it. On an error nothing
    /// is left.
    ///
    /// A cgroup that is there already is used when it is empty and not frozen,
    /// as runc does since 1.1.
    ///
    /// `properties` are for the unit, if systemd makes it, and prevail over our
    /// own.
    pub fn create(
        id: &str,
        cgroups_path: &str,
        driver: Driver,
        resources: &LinuxResources,
        properties: &[UnitProperty],
    ) -> Result<Cgroup> {
        create::create(id, cgroups_path, driver, resources, properties)
    }

    /// Finds a cgroup again that [`Cgroup::saved`] described, in whatever
    /// process. It need not exist any more.
    pub fn open(saved: SavedCgroup) -> Result<Cgroup> {
        for dir in &saved.dirs {
            let below =
                dir.path.strip_prefix(&dir.mount).ok().filter(|b| !b.as_os_str().is_empty());
            let plain = |p: &Path| !p.components().any(|c| c == Component::ParentDir);
            if !dir.mount.is_absolute() || !plain(&dir.path) || below.is_none() {
                return Err(Error::invalid(format!(
                    "saved cgroup {}: expected a directory below the mount {}",
                    dir.path.display(),
                    dir.mount.display()
                )));
            }
        }
        if saved.dirs.is_empty() {
            return Err(Error::invalid("saved cgroup: expected at least one directory"));
        }
        Ok(Cgroup { saved, holder: Mutex::default() })
    }

    /// Whether it is a unit of systemd's, which removes it when it is empty.
    pub fn is_of_systemd(&self) -> bool {
        self.saved.unit.is_some()
    }

    /// What [`Cgroup::open`] needs.
    pub fn saved(&self) -> &SavedCgroup {
        &self.saved
    }

    /// Its directories: one a hierarchy, or a single one on version 2.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.saved.dirs.iter().map(|d| d.path.as_path())
    }

    /// Whether it is still there, in any hierarchy.
    pub fn exists(&self) -> bool {
        self.paths().any(Path::exists)
    }

    /// Writes new limits; what `resources` does not mention stays as it is. When
    /// the kernel refuses one, others are written already: see [`LimitsInForce`].
    /// Access to devices does in any case: CRI sends the spec's rules along
    /// whatever the change is about, and to set them again would take away what
    /// hooks have added, and on version 1 all for a moment.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        self.write(&self.check(resources)?)
    }

    /// What an update is to write, before the first limit is set by systemd or
    /// by us.
    fn check(&self, resources: &LinuxResources) -> Result<LinuxResources> {
        resources::check_usage(self, resources)?;
        let whole = resources::completed(self, resources)?;
        resources::check(self.saved.v2, &whole)?;
        Ok(whole)
    }

    fn write(&self, resources: &LinuxResources) -> Result<()> {
        if let Some(unit) = &self.saved.unit {
            systemd::update(unit, self, resources)?;
        }
        resources::apply(self, resources)
    }

    /// Open files, one a hierarchy (one on v2), for a process **of one thread**:
    /// when it has written "0" into each, it has joined. The descriptors are
    /// close-on-exec.
    ///
    /// On version 1 they are `tasks` files. What a thread writes there about
    /// itself spares the kernel the lock that keeps whole processes together,
    /// and taking that lock waits for all CPUs: 5 to 15 ms when nobody did so
    /// just before (`cgroup_procs_write_start` in the kernel).
    pub fn procs(&self) -> Result<Vec<OwnedFd>> {
        let name = if self.saved.v2 { "cgroup.procs" } else { "tasks" };
        let open = |dir: &Path| {
            let procs = dir.join(name);
            file::open(&procs, OFlags::WRONLY).context(|| format!("open {}", procs.display()))
        };
        self.paths().map(open).collect()
    }

    /// The directory, for `CLONE_INTO_CGROUP` (clone(2)). Only version 2 knows
    /// that flag.
    pub fn dir_fd(&self) -> Result<Option<OwnedFd>> {
        if !self.saved.v2 {
            return Ok(None);
        }
        file::open_dir(&self.saved.dirs[0].path).map(Some)
    }

    /// Says that a process of the container is in the cgroup, which from now
    /// on keeps it alive. Needed by the systemd driver only (systemd removes
    /// an empty scope, so that a process of ours waits in it until then);
    /// harmless otherwise.
    pub fn settled(&self) {
        drop(self.holder().take());
    }

    fn holder(&self) -> MutexGuard<'_, Option<sys::cgroup::Holder>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory of the hierarchy with this controller.
    fn dir(&self, controller: &str) -> Option<&Path> {
        self.entry(controller).map(|d| d.path.as_path())
    }

    fn entry(&self, controller: &str) -> Option<&Dir> {
        let has = |d: &&Dir| self.saved.v2 || d.controllers.iter().any(|c| c == controller);
        self.saved.dirs.iter().find(has)
    }

    /// The directory to ask for the processes: all hierarchies hold the same.
    fn any_dir(&self) -> &Path {
        self.dir("pids").unwrap_or(&self.saved.dirs[0].path)
    }

    /// For messages.
    fn name(&self) -> String {
        format!("cgroup {}", self.any_dir().display())
    }
}
