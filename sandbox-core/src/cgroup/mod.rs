//! Control groups: creates, limits, watches and removes them, and derives a
//! container's capacity from them.
//!
//! Supports version 1 and 2, and cgroups made by ourselves or by systemd as a
//! transient unit:
//!
//! | file | content |
//! |---|---|
//! | `hierarchy.rs` | the hierarchies of the host |
//! | `path.rs` | the meaning of `linux.cgroupsPath` |
//! | `undelegated.rs` | makes a cgroup where that was delegated to the shim's user |
//! | `planned.rs` | a cgroup before it is made |
//! | `create.rs`, `systemd.rs` | make a cgroup, all or nothing |
//! | `resources/` | write `linux.resources` into it |
//! | `derive.rs` | derive its capacity: CPUs and memory |
//! | `delegate.rs` | let the container divide it |
//! | `births.rs` | let boot clone processes into it |
//! | `freeze.rs`, `processes.rs`, `oom.rs`, `stats/` | act on it and watch it |
//! | `remove.rs` | remove it, in bounded time |
//! | `resctrl.rs` | the container's shares of caches and bandwidth, which go with it |
//! | `tree.rs` | go through the cgroups below it |
//! | `view_sources.rs` | open what its views are made from |
//!
//! # The choice of libraries
//! The controllers of **cgroups-rs 0.5** write limits. **rustbus** calls
//! systemd. We compared the candidates on version 1 with nine hierarchies
//! (medians of 100; cpu, cpuset, memory and pids limited):
//!
//! | | ms |
//! |---|---|
//! | the bare mkdirs; writes; rmdirs | 0.41; 0.10; 0.24 |
//! | cgroups-rs, its controllers given our directories | 0.11 |
//! | cgroups-rs, `FsManager`: find the mounts; write | 0.24; 0.12 |
//! | libcgroups 0.7, `v1::Manager`: find the mounts; write | 2.1; 0.30 |
//!
//! - libcgroups looks every mount up again for each of twelve controllers and
//!   each container and cannot be given the directories. It re-adds its default
//!   devices at every update, ignores `rdma`, and on version 1 ignores `unified`
//!   and a `burst` without other CPU limits.
//! - The managers of both libraries would hide which field of the spec was
//!   refused. We set single values, so the error can name the field. Values for
//!   which cgroups-rs has no setter (`cpu.idle`, burst, bfq weights, reserved
//!   huge pages, `unified`) are written directly.
//! - systemd: cgroups-rs uses zbus, which starts threads (three at the first
//!   connection), but the shim must stay single-threaded because it clones.
//!   libcgroups' own client is blocking and starts none, but it never closes its
//!   socket, does not mark it close-on-exec (a sandbox would inherit a root
//!   connection to systemd), resets the CPU quota at an update that does not
//!   mention it, and cannot be used on version 1. rustbus is a plain blocking
//!   client and closes what it opened.
//!
//! containerd-shim links cgroups-rs in any case.
//!
//! # The hierarchies that a container joins
//! A container joins every hierarchy with controllers and, as with runc,
//! `name=systemd`, so that the host's tools show whose processes they are. It
//! does not join a version 2 mount beside version 1 (hybrid).

mod bandwidth;
mod births;
mod create;
mod delegate;
mod derive;
mod file;
mod freeze;
mod hierarchy;
mod in_force;
mod oom;
mod path;
mod planned;
mod processes;
mod properties;
mod remove;
mod resctrl;
mod resources;
pub mod stats;
mod systemd;
#[cfg(test)]
mod tests;
mod tree;
mod undelegated;
mod view_sources;

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use oci_spec::runtime::LinuxResources;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::spec::plan::{Powerless, UnitProperty};
use crate::sys::child::Child;

pub use derive::CapacityPolicy;
pub use hierarchy::Mode;
pub use in_force::ResourcesInForce;
pub use oom::OomWatch;
pub use path::Driver;
pub use planned::Planned;
use planned::Way;
pub use view_sources::OpenedSources;

/// One container's cgroup: a directory in each hierarchy of version 1, or a
/// single one in version 2.
///
/// Dropping it removes nothing; see [`Cgroup::remove`].
#[derive(Debug)]
pub struct Cgroup {
    saved: SavedCgroup,
    /// A process that keeps the systemd unit alive until the container's init
    /// has joined.
    holder: Mutex<Option<Child>>,
    /// See [`Cgroup::birthplace`].
    birthplace: OnceLock<OwnedFd>,
    /// What its spec asks for and it cannot have, since it was not delegated to the shim's user.
    lacking: Vec<Powerless>,
}

/// The description with which a cgroup can be found again, for the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCgroup {
    v2: bool,
    dirs: Vec<Dir>,
    unit: Option<String>,
    /// Its groups of the resctrl file system, if the spec wants any.
    #[serde(default)]
    resctrl: Option<resctrl::Groups>,
}

/// The cgroup in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Dir {
    /// The controllers, as in `/proc/PID/cgroup`; empty for version 2.
    controllers: Vec<String>,
    /// The hierarchy's mount point, which is the root as far as the shim can see.
    mount: PathBuf,
    /// The cgroup's directory, below `mount`.
    path: PathBuf,
}

impl Cgroup {
    /// Plans the cgroup of container `id`. Makes nothing.
    pub fn plan(id: &str, cgroups_path: &str, driver: Driver) -> Result<Planned> {
        create::plan(id, cgroups_path, driver)
    }

    /// As [`Cgroup::plan`], for a shim that is not root of the host: in the hierarchies that
    /// were delegated to its user, which may be none. What is lost is among
    /// [`Cgroup::powerless`].
    pub fn plan_where_delegated(id: &str, cgroups_path: &str, driver: Driver) -> Result<Planned> {
        undelegated::plan(id, cgroups_path, driver)
    }

    /// Makes a cgroup that was planned, and limits it. An error leaves nothing behind.
    ///
    /// A cgroup that exists already is used if it is empty and not frozen, as
    /// with runc since 1.1.
    ///
    /// `properties` are set on the systemd unit, if there is one, and take
    /// precedence over those that Palisade sets.
    pub fn make(
        planned: &Planned,
        resources: &LinuxResources,
        properties: &[UnitProperty],
    ) -> Result<Cgroup> {
        let mut cgroup = match planned.way() {
            Way::Mkdir | Way::Unit(_) => create::make_planned(planned, resources, properties),
            Way::WhereDelegated(why) => {
                undelegated::make_planned(planned.without_resctrl(), why.clone(), resources)
            }
        }?;
        if let Some((root, wanted)) = planned.resctrl() {
            match resctrl::make(root, planned.id(), wanted) {
                Ok(groups) => cgroup.saved.resctrl = Some(groups),
                Err(error) => {
                    if let Err(left) = cgroup.remove() {
                        log::warn!("container {}: {left}", planned.id());
                    }
                    return Err(error);
                }
            }
        }
        Ok(cgroup)
    }

    /// Plans a cgroup and makes it, for one that need not be written down before.
    pub fn create(
        id: &str,
        cgroups_path: &str,
        driver: Driver,
        resources: &LinuxResources,
        properties: &[UnitProperty],
    ) -> Result<Cgroup> {
        Self::make(&Self::plan(id, cgroups_path, driver)?, resources, properties)
    }

    /// Whether the container has no cgroup of its own in any hierarchy.
    pub fn is_absent(&self) -> bool {
        self.saved.dirs.is_empty()
    }

    /// Opens the files by which a process joins these groups, in the same way as
    /// [`Cgroup::procs`].
    pub fn resctrl_tasks(&self) -> Result<Vec<OwnedFd>> {
        self.saved.resctrl.as_ref().map_or(Ok(Vec::new()), resctrl::Groups::tasks)
    }

    /// Finds a cgroup again from [`Cgroup::saved`], in any process. The cgroup
    /// need not exist any more.
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
        if !saved.resctrl.as_ref().is_none_or(resctrl::Groups::are_plain) {
            return Err(Error::invalid("saved cgroup: expected plain paths of resctrl groups"));
        }
        Ok(Self::of(saved))
    }

    /// Returns the cgroup with this description, which nobody holds or is born in yet.
    fn of(saved: SavedCgroup) -> Self {
        Self { saved, holder: Mutex::default(), birthplace: OnceLock::new(), lacking: Vec::new() }
    }

    /// Whether it is a unit of systemd, which removes it when it is empty.
    pub fn is_of_systemd(&self) -> bool {
        self.saved.unit.is_some()
    }

    /// Returns the description that [`Cgroup::open`] takes.
    pub fn saved(&self) -> &SavedCgroup {
        &self.saved
    }

    /// Returns its directories: one for each hierarchy, or a single one on
    /// version 2.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.saved.dirs.iter().map(|d| d.path.as_path())
    }

    /// Whether it still exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.paths().any(Path::exists)
    }

    /// Writes new limits. Limits that `resources` does not mention stay as they
    /// are. If the kernel refuses one, others have been written already: see
    /// [`ResourcesInForce`].
    ///
    /// Access to devices never changes. With any update CRI sends the spec's
    /// device rules; to apply them again would remove what hooks have added,
    /// and on version 1 would deny everything for a moment.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        self.write(&self.check(resources)?)
    }

    /// Checks an update and returns what is to be written, before systemd or we
    /// set the first limit.
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

    /// Whether it is a cgroup of version 2.
    pub(crate) fn is_v2(&self) -> bool {
        self.saved.v2
    }

    /// Opens one file for each hierarchy (a single one on version 2) for a
    /// process **with one thread**, which joins by writing "0" into each. The
    /// descriptors are close-on-exec.
    ///
    /// On version 1 they are `tasks` files. When a thread writes about itself
    /// there, the kernel need not take the lock that keeps whole processes
    /// together. Taking that lock waits for all CPUs: 5 to 15 ms if it was not
    /// taken shortly before (`cgroup_procs_write_start` in the kernel).
    pub fn procs(&self) -> Result<Vec<OwnedFd>> {
        let name = if self.saved.v2 { "cgroup.procs" } else { "tasks" };
        let open = |dir: &Path| {
            let procs = dir.join(name);
            file::open(&procs, OFlags::WRONLY).context(|| format!("open {}", procs.display()))
        };
        self.paths().map(open).collect()
    }

    /// Opens the directory for `CLONE_INTO_CGROUP` (clone(2)), a flag that only
    /// version 2 supports. Not to be passed on: `..` leads to the host's root.
    pub fn dir_fd(&self) -> Result<Option<OwnedFd>> {
        if !self.saved.v2 {
            return Ok(None);
        }
        file::open_dir(&self.saved.dirs[0].path).map(Some)
    }

    /// Ends the process that keeps the systemd unit alive: from now on a
    /// process of the container is in the cgroup. Only the systemd driver needs
    /// this, since systemd removes an empty scope. It does nothing otherwise.
    pub fn settled(&self) {
        drop(self.holder().take());
    }

    fn holder(&self) -> MutexGuard<'_, Option<Child>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the directory in the hierarchy with this controller, as in `perf_event`; on version
    /// 2 the only one.
    pub fn directory(&self, controller: &str) -> Option<&Path> {
        self.dir(controller)
    }

    /// Returns the directory in the hierarchy with this controller.
    fn dir(&self, controller: &str) -> Option<&Path> {
        self.entry(controller).map(|d| d.path.as_path())
    }

    fn entry(&self, controller: &str) -> Option<&Dir> {
        let has = |d: &&Dir| self.saved.v2 || d.controllers.iter().any(|c| c == controller);
        self.saved.dirs.iter().find(has)
    }

    /// Returns the directory from which processes are listed: all hierarchies
    /// hold the same.
    fn any_dir(&self) -> Option<&Path> {
        let first = || self.saved.dirs.first().map(|dir| dir.path.as_path());
        self.dir("pids").or_else(first)
    }

    /// Returns a name for messages.
    pub fn name(&self) -> String {
        match self.any_dir() {
            Some(dir) => format!("cgroup {}", dir.display()),
            None => "the container's cgroup, which it has not".into(),
        }
    }
}
