//! Makes a mount of the plan and attaches it at its destination.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use super::container_root::own_root_of;
use super::file_system::{file_system, set_attributes};
use super::{cgroup_mount, copy_up, shared_memory};
use crate::error::{Context, Error, Result};
use crate::places::{self, Kind};
use crate::spec::plan::{FsOption, MountPlan, MountSource};
use crate::sys::mount::{AttrChange, Depth, attach_to, mount_setattr};

/// A mount of the plan, with the mount that the gofer delivered for it.
#[derive(Debug)]
pub(crate) struct Ready<'a> {
    pub(crate) plan: &'a MountPlan,
    pub(crate) delivered: Option<(OwnedFd, bool)>,
}

/// A mount in its place, if something is left to do with it.
#[derive(Debug)]
pub(crate) enum Attached {
    /// Nothing is left.
    Done,
    /// A devpts, in which terminals are made.
    Terminals(OwnedFd),
    /// A proc or a sysfs, on which paths are masked and made read-only.
    Kernel(OwnedFd),
    /// A tmpfs that becomes read-only once all that lies on it is there, as in runc: mount
    /// points and device nodes are made on it.
    ToSeal(OwnedFd),
}

/// Attaches one mount below `root`.
pub(crate) fn attach(root: BorrowedFd<'_>, ready: Ready<'_>) -> Result<Attached> {
    let plan = ready.plan;
    let at = || format!("mount {}", plan.destination.display());
    let mut hidden = None;
    let (mount, kind) = match (&plan.source, ready.delivered) {
        // A tmpfs as well, if hooks saw it.
        (_, Some((mount, is_file))) => (mount, kind_of(is_file)),
        (MountSource::Delivered | MountSource::Sysfs, None) => {
            return Err(Error::internal(format!("{}: the gofer delivered nothing", at())));
        }
        (source, _) => {
            if matches!(source, MountSource::Tmpfs { .. }) {
                // It is like the directory that it hides, and so must lie on that one.
                hidden = places::find(root, &plan.destination)?;
            }
            (make(hidden.as_ref(), &plan.destination, source)?, Kind::Directory)
        }
    };
    let is_cgroup = matches!(plan.source, MountSource::Cgroup);
    let is_tmpfs = matches!(plan.source, MountSource::Tmpfs { .. } | MountSource::SharedMemory(_));
    let mut attributes = plan.attributes;
    let sealed = is_tmpfs && attributes.set.contains(AttrChange::READ_ONLY.set);
    if sealed {
        attributes.set.remove(AttrChange::READ_ONLY.set);
    }
    if !is_cgroup {
        set_attributes(&mount, &attributes).context(at)?;
    }
    if let Some(propagation) = plan.propagation {
        let change = AttrChange { propagation: Some(propagation.kind), ..AttrChange::default() };
        mount_setattr(&mount, propagation.recursive.into(), change).context(at)?;
    }
    let shows_kernel = kind == Kind::Directory && places::shows_the_kernel(&mount)?;
    let place = match hidden {
        Some(hidden) => hidden,
        None => places::ensure_for(root, &plan.destination, kind, shows_kernel)
            .map_err(|e| Error::new(e.kind, format!("{}: {e}", at())))?,
    };
    attach_to(&mount, &place).context(at)?;
    if is_cgroup {
        // Fill it before it may become read-only.
        cgroup_mount::fill(&mount, &plan.attributes)?;
        set_attributes(&mount, &plan.attributes).context(at)?;
    }
    Ok(match plan.source {
        MountSource::Devpts(_) => Attached::Terminals(mount),
        _ if shows_kernel => Attached::Kernel(mount),
        _ if sealed => Attached::ToSeal(mount),
        _ => Attached::Done,
    })
}

/// Attaches a mount that a hook of the host made, as it is.
pub(crate) fn attach_of_hook(
    root: BorrowedFd<'_>,
    path: &Path,
    mount: &OwnedFd,
    is_file: bool,
) -> Result<()> {
    let place = places::ensure(root, path, kind_of(is_file))?;
    attach_to(mount, &place).context(|| format!("attach a hook's mount at {}", path.display()))
}

fn kind_of(is_file: bool) -> Kind {
    if is_file { Kind::File } else { Kind::Directory }
}

/// Makes mounts read-only to which nothing is added any more.
pub(crate) fn seal(mounts: &[OwnedFd]) -> Result<()> {
    mounts.iter().try_for_each(|mount| {
        mount_setattr(mount, Depth::Top, AttrChange::READ_ONLY).context(|| "make a tmpfs read-only")
    })
}

/// Makes a file system that takes no gofer. It hides `below`.
fn make(below: Option<&OwnedFd>, destination: &Path, source: &MountSource) -> Result<OwnedFd> {
    match source {
        MountSource::Proc => file_system("proc", &[]),
        MountSource::Mqueue => file_system("mqueue", &[]),
        MountSource::Devpts(options) => {
            let mount = file_system("devpts", options)?;
            own_root_of(&mount).context(|| "give a devpts to the container's root")?;
            Ok(mount)
        }
        MountSource::Cgroup => cgroup_mount::make(),
        MountSource::Tmpfs { options, copy_up } => {
            let mount = tmpfs(options, below)?;
            if let Some(below) = below.filter(|_| *copy_up) {
                let keep_owner = options.iter().any(|(key, _)| key == "uid" || key == "gid");
                let lost = copy_up::copy(below, &mount, keep_owner)
                    .context(|| format!("tmpcopyup of {}", destination.display()))?;
                if lost.count > 0 {
                    let (at, first) = (destination.display(), lost.first);
                    log::warn!("tmpcopyup of {at}: {first} ({} such in all)", lost.count);
                }
            }
            Ok(mount)
        }
        MountSource::SharedMemory(_) => shared_memory::open(),
        MountSource::Sysfs | MountSource::Delivered => {
            Err(Error::internal("a delivered mount is not made here"))
        }
    }
}

/// Makes a tmpfs with the mode of the directory that it hides, unless the spec gives one:
/// an image's `/tmp` stays 1777.
fn tmpfs(options: &[FsOption], below: Option<&OwnedFd>) -> Result<OwnedFd> {
    let mut options = options.to_vec();
    if let (Some(below), false) = (below, options.iter().any(|(key, _)| key == "mode")) {
        let stat = rustix::fs::fstat(below).context(|| "fstat of a mount point")?;
        options.push(("mode".to_owned(), Some(format!("{:o}", stat.st_mode & 0o7777))));
    }
    file_system("tmpfs", &options)
}
