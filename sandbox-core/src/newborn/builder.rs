//! The steps of the newborn that builds what criu restores a container into, in order.
//!
//! criu makes the container's processes and their PID namespace, but no mount. So this newborn
//! does what an init does between its clone and its gate, with two differences: it stays among
//! the pod's processes, since its ID would be one of the container's; and it clones the process
//! that becomes criu (`restorer.rs`) as soon as the container's tree is there. Once criu has made
//! the container's first process, it adds the mounts that show its namespaces, and enters the
//! container's user namespace, with a copy of the mounts that are locked there. The first process
//! joins that copy, and this newborn ends.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{UnmountFlags, unmount};

use super::init::{
    Newborn, enter_pods_users, enter_root, own_mount_namespace, set_root_propagation,
};
use super::process::{OwnProcFiles, set_limits};
use super::restorer::{self, Restorer, Restoring};
use super::{Birth, donated, keyring, mounts, work};
use crate::checkpoint::{open_regular, tmpfs};
use crate::container::delivered::DeliveredMounts;
use crate::container::namespaces::early_namespaces;
use crate::container::outside_ids::OutsideIds;
use crate::container::paths::{CONTAINER, PROC};
use crate::container::steps::container_root::AsContainerRoot;
use crate::container::steps::file_system::file_system;
use crate::container::steps::views::Views;
use crate::container::terminal;
use crate::container::tree::Tree;
use crate::control::encoding::Message;
use crate::control::newborn::{self, AtGate, NewbornMessage, wait_for_root_task};
use crate::control::packet::{Received, pair, receive_packet, send_packet};
use crate::error::{Context, Error, Failure, Result};
use crate::places::open_root;
use crate::sys::child::Child;
use crate::sys::clone::{Cloned, clone_sibling};
use crate::sys::mount::attach_at;
use crate::sys::process::{exit_now, set_dumpable};
use crate::types::PodPid;

/// The place of the container's proc, over which lies another one while criu makes its own.
pub(super) const CONTAINER_PROC: &str = "/proc";

/// Runs the builder. Never returns into boot's code, of which it is a copy.
pub(crate) fn run(restoring: Restoring<'_>, mounts: DeliveredMounts, birth: Birth) -> ! {
    match build(restoring, mounts, birth) {
        Ok(()) => exit_now(0),
        Err(error) => {
            restoring.newborn.channel.report(error);
            exit_now(1)
        }
    }
}

fn build(restoring: Restoring<'_>, mut mounts: DeliveredMounts, birth: Birth) -> Result<()> {
    let Newborn { plan, process, root, channel, .. } = restoring.newborn;
    keyring::join(process, &plan.id)?;
    let own_files = OwnProcFiles::open(process)?;
    set_limits(process, restoring.newborn.limits)?;
    let images = mounts.images.take().ok_or_else(|| undelivered("images"))?;
    let programs = mounts.programs.take().ok_or_else(|| undelivered("criu"))?;
    let hooks_mount = !mounts.of_hooks.is_empty();
    let views = restoring.newborn.views.map(|which| Views::open(which, hooks_mount)).transpose()?;
    let mut tree = Tree::build(plan, mounts, root, views)?;
    fill_tmpfs(restoring, &tree, &images)?;
    let terminal = terminal::make(process, tree.terminals(), restoring.newborn.ids)?;
    if let Some(terminal) = &terminal {
        tree.place_console(terminal)?;
    }
    tree.seal(plan)?;
    donated::join_cgroups(restoring.newborn.donated, birth)?;
    if early_namespaces(plan).contains(CloneFlags::CLONE_NEWCGROUP) {
        unshare(CloneFlags::CLONE_NEWCGROUP).context(|| "unshare the cgroup namespace")?;
    }
    donated::leave_for_own_cgroup(restoring.newborn.donated)?;
    let work = work::make(&images, root, restoring.newborn.filter)?;
    let restorer =
        Restorer { restoring, work: &work, images, programs, terminal: terminal.as_ref() };
    clone_restorer(restorer)?;

    let first = wait_for_root_task(channel.boot)?;
    let [pids, ipc] = ["pid", "ipc"].map(|kind| open_namespace(first, kind));
    let (pids, ipc) = (pids?, ipc?);
    let first_mounts = own_mount_namespace()?;
    let uncovered = complete_among(restoring, &pids, &mut tree)?;
    enter_root(&tree, open_root(CONTAINER)?)?;
    restoring.newborn.users.map_or(Ok(()), enter_pods_users)?;
    if plan.namespaces.ipc {
        setns(&ipc, CloneFlags::CLONE_NEWIPC).context(|| "enter the container's IPC namespace")?;
    }
    unshare(CloneFlags::CLONE_NEWNS).context(|| "unshare the mount namespace")?;
    mounts::finish(&mut tree, plan)?;
    set_root_propagation(plan)?;
    attach_at(&uncovered, CONTAINER_PROC).context(|| "attach a proc that nothing covers")?;
    work.show_mounts_of(rustix::process::getpid())?;
    let devpts = tree.take_terminals();
    let terminal = terminal.map(|terminal| terminal.master);
    let handed_over = AtGate { devpts, terminal, mounts: Some(first_mounts) };
    donated::give_up_others(channel, &own_files, &handed_over)?;
    // The container's first process, which is criu yet, opens this one's mount namespace.
    set_dumpable(true).context(|| "prctl PR_SET_DUMPABLE")?;
    channel.wait_at_gate(handed_over)?;
    unmount(CONTAINER_PROC, UnmountFlags::DETACH).context(|| "take that proc off again")
}

/// Brings back what was in each tmpfs, before it may become read-only.
fn fill_tmpfs(restoring: Restoring<'_>, tree: &Tree, images: &OwnedFd) -> Result<()> {
    let Newborn { plan, root, ids, .. } = restoring.newborn;
    let _as_root = AsContainerRoot::begin(root);
    let outside = |(uid, gid)| match ids {
        None => Some((uid, gid)),
        Some(OutsideIds(mappings)) => {
            Some((mappings.uid_outside(uid)?, mappings.gid_outside(gid)?))
        }
    };
    for (archive, index) in &restoring.saved.tmpfs {
        let mount = plan.mounts.get(*index);
        let mount = mount.ok_or_else(|| Error::invalid("the checkpoint has one tmpfs too many"))?;
        let place = tree.open(&mount.destination)?;
        let archive = open_regular(images.as_fd(), archive)?;
        tmpfs::unpack(archive, place.as_fd(), &outside)?;
    }
    Ok(())
}

fn undelivered(what: &str) -> Error {
    Error::internal(format!("the gofer delivered no {what} for a restore"))
}

/// Clones the process that becomes criu, with a copy of the mounts. It is a child of boot's:
/// criu would take the end of a child for that of a container's process.
fn clone_restorer(restorer: Restorer<'_>) -> Result<()> {
    let Newborn { alone, channel, .. } = restorer.restoring.newborn;
    let cloned = clone_sibling(alone, CloneFlags::CLONE_NEWNS).context(|| "clone3 for criu")?;
    let Cloned::Parent { pidfd, .. } = cloned else { restorer::run(restorer) };
    let work = restorer.work.directory()?;
    NewbornMessage::Restorer(newborn::Restorer { pidfd, work }).send(channel.boot)
}

/// Opens a namespace of a process of the pod.
fn open_namespace(process: PodPid, kind: &str) -> Result<OwnedFd> {
    let path = format!("{PROC}/{}/ns/{kind}", process.0);
    File::open(&path).map(OwnedFd::from).context(|| format!("open {path}"))
}

/// Adds the mounts that show the container's processes, in a child that is one of them: only for
/// those is a proc theirs. Returns one more proc, detached. The child is gone before criu goes on,
/// which may need its ID.
fn complete_among(restoring: Restoring<'_>, pids: &OwnedFd, tree: &mut Tree) -> Result<OwnedFd> {
    let Newborn { plan, root, alone, .. } = restoring.newborn;
    let (ours, theirs) = pair().context(|| "socketpair")?;
    setns(pids, CloneFlags::CLONE_NEWPID).context(|| "enter the container's PID namespace")?;
    let child = Child::run(alone, CloneFlags::empty(), || {
        let made = mounts::complete(tree, plan, root).and_then(|_| file_system("proc", &[]));
        // The parent may be gone.
        let _ = match made {
            Ok(proc) => send_packet(&theirs, &[], &[proc.as_fd()]),
            Err(error) => {
                send_packet(&theirs, &Failure::from(error).encode().unwrap_or_default(), &[])
            }
        };
    });
    setns(restoring.own_pids, CloneFlags::CLONE_NEWPID)
        .context(|| "return from the container's PID namespace")?;
    let child = child.context(|| "clone3 into the container's PID namespace")?;
    drop(theirs);
    let received = receive_packet(&ours, 64 * 1024, 1).context(|| "receive from a child")?;
    drop(child);
    match received {
        Received::Packet { bytes, fds, .. } if bytes.is_empty() => {
            fds.take().pop().ok_or_else(|| Error::internal("a child of the builder sent no proc"))
        }
        Received::Packet { bytes, .. } => Err(Failure::decode(&bytes)?.into()),
        _ => Err(Error::internal("a child of the builder died without a report")),
    }
}
