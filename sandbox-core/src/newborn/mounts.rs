//! The newborn's part of its mounts: those that need the newborn's own namespaces. First
//! come proc of its own PID namespace, its view of the cgroups, and the mounts below
//! those.
//!
//! Then the newborn enters its own user namespace with one more copy of the mounts, in
//! which all these are locked: a user namespace below boot's can neither remount nor
//! uncover it. Last come the message queues of its own IPC namespace, which it owns.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::container::steps::attach::{Ready, attach};
use crate::container::steps::container_root::AsContainerRoot;
use crate::container::steps::destination::open_root;
use crate::container::steps::masks::cover;
use crate::container::steps::phase::{MountPhase, phase_of};
use crate::container::tree::Tree;
use crate::error::{Context, Result};
use crate::spec::plan::ContainerPlan;

/// Adds the mounts that need the newborn's PID and cgroup namespaces. The newborn is still in
/// boot's user namespace. Returns the root to pivot into.
pub(super) fn complete(tree: &Tree, plan: &ContainerPlan) -> Result<OwnedFd> {
    let _as_root = AsContainerRoot::begin();
    let root = open_root(tree.path())?;
    attach_deferred(tree, root.as_fd(), plan, MountPhase::Newborn)?;
    Ok(root)
}

/// Adds the remaining mounts. The newborn is in its own user namespace and root.
pub(super) fn finish(tree: &Tree, plan: &ContainerPlan) -> Result<()> {
    attach_deferred(tree, open_root("/")?.as_fd(), plan, MountPhase::Own)
}

fn attach_deferred(
    tree: &Tree,
    root: BorrowedFd<'_>,
    plan: &ContainerPlan,
    now: MountPhase,
) -> Result<()> {
    for (index, delivered) in tree.deferred() {
        let mount = &plan.mounts[*index];
        if phase_of(plan, &mount.destination) != now {
            continue;
        }
        let dup = |(fd, is_file): &(OwnedFd, bool)| -> Result<_> {
            Ok((fd.try_clone().context(|| "dup of a mount")?, *is_file))
        };
        let delivered = delivered.as_ref().map(dup).transpose()?;
        attach(root, Ready { plan: mount, delivered })?;
    }
    cover(root, plan, now)
}
