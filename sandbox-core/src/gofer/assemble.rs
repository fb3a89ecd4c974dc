//! Assembles detached mounts into one tree.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Result};
use crate::gofer::child::made_in_child;
use crate::sys::mount::{
    AttrChange, Depth, PropagationKind, attach_at, attach_to, clone_mount, mount_setattr_at,
    open_in_root, open_plain_beneath,
};

/// How the place of a part is found.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// Symlinks of the tree lead inside it.
    InTree,
    /// Without symlinks.
    Plain,
}

/// Mounts `parts` at their places below a root, in order, and returns the whole
/// tree. Before Linux 6.15 mounts can only be put onto an attached mount, so
/// this happens in a mount namespace that ends with a child.
pub(super) fn assemble(root: &OwnedFd, parts: &[(&Path, OwnedFd)], way: Way) -> Result<OwnedFd> {
    made_in_child(CloneFlags::CLONE_NEWNS, || {
        isolate_mounts()?;
        attach_at(root, c"/").context(|| "move_mount onto /")?;
        for (target, part) in parts {
            let what = || format!("mounting at {}", target.display());
            let place = match way {
                Way::InTree => open_in_root(root, target, OFlags::PATH, Mode::empty()),
                Way::Plain => open_plain_beneath(root, target, OFlags::PATH),
            };
            let place = place.map_err(|e| Error::invalid(format!("{}: {e}", what())))?;
            attach_to(part, &place).context(what)?;
        }
        clone_mount(root, c"", Depth::Tree).context(|| "open_tree of the tree")
    })
}

/// Hides the changes in a new mount namespace from the host.
pub(super) fn isolate_mounts() -> Result<()> {
    let propagation = Some(PropagationKind::Private);
    mount_setattr_at(c"/", Depth::Tree, AttrChange { propagation, ..AttrChange::default() })
        .context(|| "making / private")
}
