//! Lets a container divide its cgroup of version 2, but not raise its limits
//! (runtime-spec, config-linux.md, "Cgroup ownership"; cgroup-v2.rst,
//! "Delegation").

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::hierarchy::Hierarchies;
use super::{Cgroup, file};
use crate::error::{Context, Result};
use crate::spec::plan::{ContainerPlan, MountSource};
use crate::types::HostPid;

/// The cgroup of boot below a root container's that the container divides: a
/// cgroup that holds processes itself cannot enable controllers for those
/// below.
const BOOT: &str = "palisade";

/// The files that belong to a delegatee, if the kernel does not list them.
const DELEGATED: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n";

impl Cgroup {
    /// Whether the container may make cgroups below its own: it has a cgroup
    /// namespace and a writable mount of it. Version 1 cannot be delegated.
    pub fn is_divided_by(&self, plan: &ContainerPlan) -> bool {
        let writable = plan.mounts.iter().any(|mount| {
            let attributes = &mount.attributes;
            matches!(mount.source, MountSource::Cgroup)
                && !(attributes.set | attributes.recursive_set)
                    .contains(MountAttrFlags::MOUNT_ATTR_RDONLY)
        });
        self.saved.v2 && plan.namespaces.cgroup && writable && plan.process.is_some()
    }

    /// Lets a user of the host divide the cgroup.
    pub fn delegate(&self, uid: u32, gid: u32) -> Result<()> {
        let known = fs::read_to_string("/sys/kernel/cgroup/delegate");
        let dir = &self.saved.dirs[0].path;
        own(dir, uid, gid)?;
        for name in known.as_deref().unwrap_or(DELEGATED).lines() {
            own(&dir.join(name), uid, gid)?;
        }
        Ok(())
    }

    /// As [`Cgroup::dir_fd`], for boot's cgroup below one that the container
    /// divides.
    pub(crate) fn boot_dir_fd(&self) -> Result<Option<OwnedFd>> {
        let dir = self.saved.dirs[0].path.join(BOOT);
        match rustix::fs::mkdir(&dir, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).context(|| format!("mkdir {}", dir.display())),
        }
        file::open_dir(&dir).map(Some)
    }

    /// As [`Cgroup::procs`], for a process that joins the container of `init`
    /// later. A cgroup that enables controllers for those below takes no
    /// processes any more. Then the process joins the cgroup below that `init`
    /// moved to.
    pub fn procs_beside(&self, init: HostPid) -> Result<Vec<OwnedFd>> {
        let Some(below) = self.moved_to(init)? else {
            return self.procs();
        };
        let procs = below.join("cgroup.procs");
        let opened = file::open(&procs, OFlags::WRONLY);
        Ok(vec![opened.context(|| format!("open {}", procs.display()))?])
    }

    fn moved_to(&self, init: HostPid) -> Result<Option<PathBuf>> {
        let dir = &self.saved.dirs[0];
        let handed_down = dir.path.join("cgroup.subtree_control");
        if !self.saved.v2 || file::read(&handed_down)?.trim().is_empty() {
            return Ok(None);
        }
        let path = format!("/proc/{}/cgroup", init.0);
        let text = fs::read_to_string(&path).context(|| format!("read {path}"))?;
        let hierarchies = Hierarchies::of_host()?;
        let own = hierarchies.all.iter().find_map(|hierarchy| hierarchy.own(&text));
        let place = own.map(|own| dir.mount.join(own));
        Ok(place.filter(|place| place.starts_with(&dir.path)))
    }
}

/// Changes the owner of a file, if this kernel has it.
fn own(path: &Path, uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    match chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e).context(|| format!("chown {}", path.display())),
    }
}
