//! Lets a container divide its cgroup, but not raise its limits (runtime-spec,
//! config-linux.md, "Cgroup ownership"; cgroup-v2.rst, "Delegation"): the whole of
//! version 2, and of version 1 the hierarchy without controllers.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::hierarchy::Hierarchies;
use super::{Cgroup, file};
use crate::error::{Context, Error, Result};
use crate::spec::plan::{ContainerPlan, MountSource, Powerless};
use crate::types::HostPid;

/// The cgroup of boot below a root container's that the container divides: a
/// cgroup that holds processes itself cannot enable controllers for those
/// below.
const BOOT: &str = "palisade";

/// The cgroup below a container's own in which its init starts, for the same reason.
/// systemd as init takes this name for its own place, and what is above for the root
/// of all its units (`manager_setup_cgroup`).
const INIT: &str = "init.scope";

/// The files that belong to a delegatee, if the kernel does not list them.
const DELEGATED: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n";

/// The same of a hierarchy of version 1 without controllers.
const NAMED: [&str; 2] = ["cgroup.procs", "tasks"];

/// The hierarchy of version 1 that has no controllers, only names.
const SYSTEMD: &str = "name=systemd";

impl Cgroup {
    /// Whether the container may make cgroups below its own and enable controllers for
    /// them: it has a cgroup namespace and a writable mount of it. Controllers of version 1
    /// cannot be delegated.
    pub fn is_divided_by(&self, plan: &ContainerPlan) -> bool {
        self.saved.v2 && is_writable(plan)
    }

    /// Lets a user of the host divide the cgroup, if the container may, and makes the cgroup
    /// of its init.
    pub fn delegate(&self, plan: &ContainerPlan, uid: u32, gid: u32) -> Result<()> {
        if self.is_divided_by(plan) {
            return self.delegate_v2(uid, gid);
        }
        match self.named_of(plan)? {
            Some(dir) => own_all(dir, &NAMED, uid, gid),
            None => Ok(()),
        }
    }

    fn delegate_v2(&self, uid: u32, gid: u32) -> Result<()> {
        let known = fs::read_to_string("/sys/kernel/cgroup/delegate");
        let known: Vec<&str> = known.as_deref().unwrap_or(DELEGATED).lines().collect();
        let dir = &self.saved.dirs[0].path;
        let init = dir.join(INIT);
        make(&init)?;
        own_all(dir, &known, uid, gid)?;
        own_all(&init, &known, uid, gid)
    }

    /// Returns the directory of version 1 that the container may divide: that of the
    /// hierarchy in which systemd names its units. docs/decisions.md argues why that is safe.
    /// As host's root, a container needs no leave.
    fn named_of(&self, plan: &ContainerPlan) -> Result<Option<&Path>> {
        if self.saved.v2 || !plan.user_namespace || !is_writable(plan) {
            return Ok(None);
        }
        let Some(dir) = self.entry(SYSTEMD) else { return Ok(None) };
        // The kernel executes a release agent as the host's root for each cgroup that
        // becomes empty, at the container's will. Where the hierarchy's root cannot be seen,
        // there may be one.
        let agent = file::read_if_any(&dir.mount.join("release_agent"))?;
        Ok(agent.is_some_and(|agent| agent.trim().is_empty()).then_some(&dir.path))
    }

    /// Lists what was not delegated to the shim, and what a writable mount of cgroups cannot
    /// give.
    pub fn powerless(&self, plan: &ContainerPlan) -> Result<Vec<Powerless>> {
        let mut found = self.lacking.clone();
        if self.saved.v2 || !plan.user_namespace || !is_writable(plan) {
            return Ok(found);
        }
        let lost = match self.named_of(plan)? {
            Some(_) => {
                "of cgroup version 1 only name=systemd can be written; the limits are the host's"
            }
            None => "the cgroups of version 1 are the host's and cannot be written",
        };
        found.push(Powerless {
            field: "mounts (cgroup without the option ro)".into(),
            lost: lost.into(),
            instead: "use a node with cgroup version 2, or run the pod without a user namespace \
                      (option or annotation userns)"
                .into(),
            by_default: false,
        });
        Ok(found)
    }

    /// As [`Cgroup::procs`], for the cgroup to which the init of a container that divides
    /// its own moves once it has made its cgroup namespace.
    pub fn procs_of_init(&self) -> Result<OwnedFd> {
        let procs = self.saved.dirs[0].path.join(INIT).join("cgroup.procs");
        file::open(&procs, OFlags::WRONLY).context(|| format!("open {}", procs.display()))
    }

    /// As [`Cgroup::dir_fd`], for boot's cgroup below one that the container
    /// divides.
    pub(crate) fn boot_dir_fd(&self) -> Result<Option<OwnedFd>> {
        let dir = self.saved.dirs[0].path.join(BOOT);
        make(&dir)?;
        file::open_dir(&dir).map(Some)
    }

    /// As [`Cgroup::procs`], for a process that joins the container of `init` later:
    /// where `init` is now, if the container may divide its cgroup or has done so in another
    /// way. A cgroup that enables controllers for those below takes no processes, and one
    /// that holds processes enables none.
    pub fn procs_beside(&self, init: HostPid, is_divided: bool) -> Result<Vec<OwnedFd>> {
        if !self.saved.v2 {
            return self.procs();
        }
        let handed_down = self.saved.dirs[0].path.join("cgroup.subtree_control");
        if !is_divided && file::read(&handed_down)?.trim().is_empty() {
            return self.procs();
        }
        // The container may move its init and remove the cgroup meanwhile.
        for _ in 0..16 {
            let procs = self.place_of(init)?.join("cgroup.procs");
            match file::open(&procs, OFlags::WRONLY) {
                Err(e) if file::gone(&io::Error::from(e)) => {}
                opened => {
                    return Ok(vec![opened.context(|| format!("open {}", procs.display()))?]);
                }
            }
        }
        Err(Error::internal(format!("{}: its init moves too fast to follow", self.name())))
    }

    /// Returns the cgroup of a process, or this one if that is none below it.
    fn place_of(&self, process: HostPid) -> Result<PathBuf> {
        let dir = &self.saved.dirs[0];
        let path = format!("/proc/{}/cgroup", process.0);
        let text = fs::read_to_string(&path).context(|| format!("read {path}"))?;
        let hierarchies = Hierarchies::of_host()?;
        let own = hierarchies.all.iter().find_map(|hierarchy| hierarchy.own(&text));
        let place = own.map(|own| dir.mount.join(own));
        Ok(place.filter(|place| place.starts_with(&dir.path)).unwrap_or(dir.path.clone()))
    }
}

/// Whether the container has a writable mount of its cgroups that nothing hides or makes
/// read-only.
fn is_writable(plan: &ContainerPlan) -> bool {
    let writable = plan.mounts.iter().enumerate().any(|(index, mount)| {
        let attributes = &mount.attributes;
        let below = |path: &PathBuf| mount.destination.starts_with(path);
        matches!(mount.source, MountSource::Cgroup)
            && !(attributes.set | attributes.recursive_set)
                .contains(MountAttrFlags::MOUNT_ATTR_RDONLY)
            && !plan.mounts[index + 1..].iter().any(|later| below(&later.destination))
            && !plan.readonly_paths.iter().chain(&plan.masked_paths).any(below)
    });
    plan.namespaces.cgroup && writable && plan.process.is_some()
}

/// Makes a cgroup below a container's own, unless it is there.
fn make(dir: &Path) -> Result<()> {
    match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e).context(|| format!("mkdir {}", dir.display())),
    }
}

/// Changes the owner of a cgroup and of some of its files.
fn own_all(dir: &Path, names: &[&str], uid: u32, gid: u32) -> Result<()> {
    own(dir, uid, gid)?;
    names.iter().try_for_each(|name| own(&dir.join(name), uid, gid))
}

/// Changes the owner of a file, if this kernel has it.
fn own(path: &Path, uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    match chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e).context(|| format!("chown {}", path.display())),
    }
}
