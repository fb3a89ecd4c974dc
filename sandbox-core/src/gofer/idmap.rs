//! Idmapped mounts: files show the owners that they have on disk, shifted into
//! the sandbox's user namespace (mount_setattr(2), `MOUNT_ATTR_IDMAP`).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use crate::error::{Context, Result};
use crate::gofer::cloned_tree::{Change, ClonedTree, ROOTFS_REMEDY};
use crate::gofer::unmappable;
use crate::sys::mount::{AttrChange, Depth, PropagationKind};

/// Maps the owners and sets the propagation of all mounts of a tree in one call. If the
/// tree cannot be mapped as a whole, each of its mounts is mapped or left as it is.
pub(super) fn change(clone: ClonedTree<'_>, change: Change<'_>) -> Result<OwnedFd> {
    let Change { idmap, idmap_depth, propagation } = change;
    let Some(namespace) = idmap else { return clone.keep_owners(propagation) };
    let both = AttrChange { idmap, propagation, ..AttrChange::default() };
    if idmap_depth != clone.depth {
        let plain = AttrChange { idmap: None, ..both };
        clone.set(clone.depth, plain).context(|| clone.what())?;
    }
    match clone.set(idmap_depth, both) {
        Ok(()) => Ok(clone.mount),
        Err(error) => unmappable::settle(clone, namespace, change, &error),
    }
}

/// Clones a path for the root file system, private and with its owners mapped.
pub(super) fn mapped_clone(
    path: &Path,
    depth: Depth,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd> {
    let propagation = Some(PropagationKind::Private);
    let clone = ClonedTree::open(path, depth, ROOTFS_REMEDY)?;
    change(clone, Change { idmap, idmap_depth: depth, propagation })
}
