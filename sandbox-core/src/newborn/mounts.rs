//! The mounts that need more of the newborn's own namespaces than `container/tree.rs` has.
//! First come proc, its view of the cgroups, and the mounts on those.
//!
//! Then the newborn enters its own user namespace with one more copy of the mounts, in
//! which all these are locked: a user namespace below boot's can neither remount nor
//! uncover it. Last come the message queues of its own IPC namespace, which it owns.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::container::own_id::ContainerRoot;
use crate::container::paths::CONTAINER;
use crate::container::steps::attach::{Attached, Ready, attach, attach_of_hook, seal};
use crate::container::steps::container_root::AsContainerRoot;
use crate::container::steps::masks::{Lookup, cover};
use crate::container::steps::phase::MountPhase;
use crate::container::tree::Tree;
use crate::error::Result;
use crate::places::open_root;
use crate::spec::plan::ContainerPlan;

/// Adds proc, and the mounts that need the newborn's cgroup namespace. The newborn is still in
/// boot's user namespace. Returns the root, which may lie on another.
pub(super) fn complete(
    tree: &mut Tree,
    plan: &ContainerPlan,
    container_root: ContainerRoot,
) -> Result<OwnedFd> {
    let _as_root = AsContainerRoot::begin(container_root);
    attach_deferred(tree, CONTAINER, plan, MountPhase::InCgroup)
}

/// Adds the remaining mounts. The newborn is in its own user namespace and root.
pub(super) fn finish(tree: &mut Tree, plan: &ContainerPlan) -> Result<()> {
    attach_deferred(tree, "/", plan, MountPhase::Own).map(drop)
}

/// Adds the mounts and masks of a phase. Returns the root, which is another one if something
/// was mounted there.
fn attach_deferred(
    tree: &mut Tree,
    path: &str,
    plan: &ContainerPlan,
    now: MountPhase,
) -> Result<OwnedFd> {
    let mut root = open_root(path)?;
    let mut to_seal = Vec::new();
    for (index, _, delivered) in tree.take_deferred(now) {
        let mount = &plan.mounts[index];
        let attached = attach(root.as_fd(), Ready { plan: mount, delivered })?;
        tree.hide_kernel(&mount.destination);
        match attached {
            Attached::ToSeal(mount) => to_seal.push(mount),
            Attached::Kernel(shown) => tree.add_kernel(plan, mount, shown)?,
            Attached::Done | Attached::Terminals(_) => {}
        }
        if mount.destination == Path::new("/") {
            root = open_root(path)?;
        }
    }
    for (path, phase, mount, is_file) in tree.deferred_of_hooks() {
        if *phase == now {
            attach_of_hook(root.as_fd(), path, mount, *is_file)?;
        }
    }
    // The mounts of another namespace are no places here.
    let lookup = match now {
        MountPhase::Own => Lookup { root: root.as_fd(), kernel: &[] },
        _ => tree.lookup(root.as_fd()),
    };
    cover(lookup, plan, now)?;
    seal(&to_seal)?;
    Ok(root)
}
