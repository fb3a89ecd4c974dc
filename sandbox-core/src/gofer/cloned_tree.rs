//! Clones of mounts of the host, whose owners are mapped afterwards.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::error::{Context, Error, Result};
use crate::gofer::mountinfo::Mount;
use crate::sys::mount::{
    AttrChange, Depth, OnMount, PropagationKind, clone_mount, mount_of, mount_setattr, open_place,
    open_plain_beneath,
};

/// The remedy for mounts of the spec.
pub(super) const MOUNT_REMEDY: &str = "Give the mount the option \"noidmap\" (its files then \
     belong to nobody inside), or run the pod with userns = \"never\"";

/// The remedy for the root file system.
pub(super) const ROOTFS_REMEDY: &str = "Put it onto a file system that supports idmapped mounts, \
     or run the pod with userns = \"never\"";

/// The remedy for mounts that hooks make.
pub(super) const HOOK_REMEDY: &str = "A createContainer hook mounted it: let it mount what \
     supports idmapped mounts, or run the pod with userns = \"never\"";

/// A clone of the mounts at a path of the host, still with their own owners.
pub(super) struct ClonedTree<'a> {
    pub(super) mount: OwnedFd,
    /// What was cloned, on the host. Nothing looks `path` up again: it could lead elsewhere
    /// by then.
    pub(super) place: OwnedFd,
    pub(super) depth: Depth,
    pub(super) path: &'a Path,
    /// Advice for the user, if the owners cannot be mapped.
    pub(super) remedy: &'static str,
    /// The way to mount an overlay of the tree anew. `None` refuses overlays.
    pub(super) again: Option<Again>,
}

/// Makes a detached mount of what is at a path, on a mount of the host, with its owners mapped
/// by a user namespace.
pub(super) type Again = fn(&Mount, &Path, BorrowedFd<'_>) -> Result<OwnedFd>;

/// The changes to make to a clone.
#[derive(Clone, Copy)]
pub(super) struct Change<'a> {
    /// The user namespace by which owners are mapped.
    pub(super) idmap: Option<BorrowedFd<'a>>,
    /// Whether only the top mount or the whole tree is mapped.
    pub(super) idmap_depth: Depth,
    /// The new propagation of all mounts.
    pub(super) propagation: Option<PropagationKind>,
}

impl<'a> ClonedTree<'a> {
    /// Clones with open_tree(2). Symlinks are followed as anywhere on the host.
    pub(super) fn open(path: &'a Path, depth: Depth, remedy: &'static str) -> Result<Self> {
        let place = open_place(path).map_err(|e| missing(path, &e))?;
        Self::of(place, path, depth, remedy)
    }

    /// Opens what lies on a mount of the table, below a place that is held open. No symlink
    /// may lead there, and nothing else is taken: a container may write to the directories on
    /// the way, and exchange them since the table was read.
    pub(super) fn of_mount(
        above: impl AsFd,
        below: &Path,
        mount: &'a Mount,
        remedy: &'static str,
    ) -> Result<Self> {
        let path = mount.point.as_path();
        let changed = || {
            Error::internal(format!(
                "the directories above the mount {} were changed while it was opened; try again",
                path.display()
            ))
        };
        let place = match open_plain_beneath(above, below, OFlags::PATH) {
            Ok(place) => place,
            Err(e) if is_of_change(&e) => return Err(changed()),
            Err(e) => return Err(missing(path, &e)),
        };
        match mount_of(&place).context(|| format!("statx of {}", path.display()))? {
            found if found == (OnMount { id: mount.id, at_root: true }) => {}
            _ => return Err(changed()),
        }
        Self::of(place, path, Depth::Top, remedy)
    }

    fn of(place: OwnedFd, path: &'a Path, depth: Depth, remedy: &'static str) -> Result<Self> {
        let mount = clone_mount(&place, "", depth).map_err(|e| missing(path, &e))?;
        Ok(Self { mount, place, depth, path, remedy, again: None })
    }

    /// Sets the propagation of all mounts of the tree, which keep their owners.
    pub(super) fn keep_owners(self, propagation: Option<PropagationKind>) -> Result<OwnedFd> {
        let plain = AttrChange { propagation, ..AttrChange::default() };
        self.set(self.depth, plain).context(|| self.what())?;
        Ok(self.mount)
    }

    /// Makes a change, if it is one.
    pub(super) fn set(&self, depth: Depth, change: AttrChange<'_>) -> io::Result<()> {
        if change.idmap.is_none() && change.propagation.is_none() {
            return Ok(());
        }
        mount_setattr(&self.mount, depth, change)
    }

    /// Returns the name of a change in messages.
    pub(super) fn what(&self) -> String {
        format!("mount_setattr of {}", self.path.display())
    }
}

/// Whether a path that was in the mount table leads nowhere, or through a symlink.
fn is_of_change(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::AGAIN))
}

/// Returns the error for a source that cannot be opened.
pub(super) fn missing(path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => Error::invalid(format!("the source {path} does not exist")),
        io::ErrorKind::NotADirectory => Error::invalid(format!(
            "the source {path} is no directory, or leads through something that is none"
        )),
        io::ErrorKind::InvalidInput => Error::invalid(format!(
            "the source {path} cannot be cloned: it is unbindable, or mounts below it are locked \
             and only \"rbind\" may take it"
        )),
        _ => Error::internal(format!("opening the source {path}: {error}")),
    }
}

/// Sets attributes of a detached mount, such as read-only.
pub(super) fn restrict(mount: &OwnedFd, set: MountAttrFlags) -> Result<()> {
    if set.is_empty() {
        return Ok(());
    }
    // An access time mode replaces the others: mount_setattr(2).
    let mut clear = MountAttrFlags::empty();
    clear.set(MountAttrFlags::MOUNT_ATTR__ATIME, set.intersects(MountAttrFlags::MOUNT_ATTR__ATIME));
    mount_setattr(mount, Depth::Top, AttrChange { set, clear, ..AttrChange::default() })
        .context(|| "mount_setattr of the mount's options")
}
