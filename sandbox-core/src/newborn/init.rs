//! The steps of a container's init from its clone to its gate, in order.

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::CWD;
use rustix::process::{chdir, chroot, fchdir};

use super::process::{OwnProcFiles, Prepared};
use super::time::OwnTimeFiles;
use super::{Birth, Channel, donated, hooks, keyring, mounts, names, time};
use crate::container::delivered::DeliveredMounts;
use crate::container::donated::Donated;
use crate::container::filter::Filter;
use crate::container::namespaces::{early_namespaces, late_namespaces};
use crate::container::outside_ids::OutsideIds;
use crate::container::own_id::ContainerRoot;
use crate::container::paths::{CONTAINER, PROC};
use crate::container::steps::views::{Views, Which};
use crate::container::terminal;
use crate::container::tree::Tree;
use crate::control::newborn::AtGate;
use crate::error::{Context, Result};
use crate::spec::plan::{ContainerPlan, ProcessPlan};
use crate::sys::clone::SingleThreaded;
use crate::sys::mount::{AttrChange, Depth, attach_at, clone_mount, mount_setattr_at};
use crate::sys::process::{Rlimit, become_root, exit_now, set_dumpable};

/// The input of a container's init. The init is a copy of boot, so none of it is sent.
#[derive(Clone, Copy)]
pub(crate) struct Newborn<'a> {
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) process: &'a ProcessPlan,
    /// The limits with which boot started.
    pub(crate) limits: &'a [Rlimit],
    pub(crate) donated: &'a Donated,
    pub(crate) filter: &'a Filter,
    /// The user namespace of the pod's containers, if there is one.
    pub(crate) users: Option<&'a OwnedFd>,
    /// The init of the container whose time namespace it joins.
    pub(crate) times_of: Option<&'a OwnedFd>,
    /// The IDs of the container's users in boot's user namespace, if they differ.
    pub(crate) ids: Option<&'a OutsideIds>,
    /// The IDs of their root there.
    pub(crate) root: ContainerRoot,
    pub(crate) views: Option<Which>,
    pub(crate) channel: Channel<'a>,
    /// A copy of a process with one thread has one thread as well.
    pub(crate) alone: &'a SingleThreaded,
}

/// Runs the init. Never returns into boot's code, of which it is a copy.
pub(crate) fn run(newborn: Newborn<'_>, mounts: DeliveredMounts, birth: Birth) -> ! {
    let error = match to_gate(newborn, mounts, birth) {
        Ok((prepared, handed_over)) => match pass_gate(newborn, handed_over) {
            Ok(()) => prepared.execute(),
            Err(error) => error,
        },
        Err(error) => error,
    };
    newborn.channel.report(error);
    exit_now(1)
}

fn to_gate(
    newborn: Newborn<'_>,
    mounts: DeliveredMounts,
    birth: Birth,
) -> Result<(Prepared<'_>, AtGate)> {
    let Newborn { plan, process, root, .. } = newborn;
    keyring::join(process, &plan.id)?;
    let own_files = OwnProcFiles::open(process)?;
    let own_time = OwnTimeFiles::open(plan)?;
    newborn.times_of.map_or(Ok(()), time::join)?;
    let hooks_mount = !mounts.of_hooks.is_empty();
    let views = newborn.views.map(|which| Views::open(which, hooks_mount)).transpose()?;
    let mut tree = Tree::build(plan, mounts, root, views)?;
    let terminal = terminal::make(process, tree.terminals(), newborn.ids)?;
    if let Some(terminal) = &terminal {
        tree.place_console(terminal)?;
    }
    tree.seal(plan)?;
    donated::join_cgroups(newborn.donated, birth)?;
    if early_namespaces(plan).contains(CloneFlags::CLONE_NEWCGROUP) {
        unshare(CloneFlags::CLONE_NEWCGROUP).context(|| "unshare the cgroup namespace")?;
    }
    donated::leave_for_own_cgroup(newborn.donated)?;
    donated::install_stdio(newborn.donated, terminal.as_ref())?;
    let sysctls = names::own_sysctls(plan)?;
    let first_mounts = own_mount_namespace()?;
    let top = mounts::complete(&mut tree, plan, root)?;
    enter_root(&tree, top)?;
    enter_late_namespaces(newborn)?;
    own_time.map_or(Ok(()), |files| files.enter(&plan.time_offsets))?;
    mounts::finish(&mut tree, plan)?;
    terminal.as_ref().map_or(Ok(()), super::terminal::name)?;
    set_root_propagation(plan)?;
    names::set_own(plan, sysctls)?;
    let devpts = tree.take_terminals();
    let terminal = terminal.map(|terminal| terminal.master);
    // If this process has left the first, nobody else is in it, and the kernel takes long to
    // destroy it: the shim has that done.
    let has_left = late_namespaces(plan).contains(CloneFlags::CLONE_NEWNS);
    let mounts = has_left.then_some(first_mounts);
    let handed_over = AtGate { devpts, terminal, mounts };
    drop(tree);
    let Newborn { limits, channel, filter, .. } = newborn;
    donated::give_up_others(channel, &own_files, &handed_over)?;
    let has_terminal = handed_over.terminal.is_some();
    let prepared = Prepared::new(process, limits, filter, has_terminal, own_files, channel)?;
    Ok((prepared, handed_over))
}

/// Opens the mount namespace that this process was born in.
pub(super) fn own_mount_namespace() -> Result<OwnedFd> {
    let path = format!("{PROC}/self/ns/mnt");
    std::fs::File::open(&path).map(OwnedFd::from).context(|| format!("open {path}"))
}

/// Changes from boot's root to the container's, which lies over it from here on. boot's is
/// out of reach below, and nothing is unmounted, which would take a grace period of the
/// kernel. Whoever enters the namespace comes to the topmost root (setns(2)), and `..` of
/// that leads nowhere.
pub(super) fn enter_root(tree: &Tree, top: OwnedFd) -> Result<()> {
    tree.lay_over_root()?;
    hide_sandbox_proc()?;
    fchdir(top.as_fd()).context(|| "enter the container's root")?;
    chroot(".").context(|| "chroot into the container")?;
    chdir("/").context(|| "chdir /")
}

/// Covers boot's proc. A user namespace may mount proc anew if an uncovered one is anywhere
/// in its mount namespace (`mount_too_revealing` in the kernel): the new one would have none
/// of the container's masks.
fn hide_sandbox_proc() -> Result<()> {
    let empty = clone_mount(CWD, CONTAINER, Depth::Top).context(|| "open an empty directory")?;
    attach_at(&empty, PROC).context(|| "cover the sandbox's proc")
}

/// Enters the user namespace of the pod's containers. From here on this process has no
/// privilege over boot's namespaces, and its copy of the mounts is locked.
fn enter_late_namespaces(newborn: Newborn<'_>) -> Result<()> {
    match (newborn.users, &newborn.plan.mappings) {
        (None, _) => {}
        (Some(users), None) => enter_pods_users(users)?,
        (Some(_), Some(_)) => enter_own_user_namespace(newborn.channel)?,
    }
    let late = late_namespaces(newborn.plan);
    if !late.is_empty() {
        unshare(late).context(|| format!("unshare {late:?}"))?;
    }
    Ok(())
}

/// Enters the user namespace of the pod's containers, as its root.
pub(super) fn enter_pods_users(users: &OwnedFd) -> Result<()> {
    setns(users, CloneFlags::CLONE_NEWUSER)
        .context(|| "enter the user namespace of the pod's containers")?;
    become_root().context(|| "become root of the pod's user namespace")
}

/// Enters a user namespace beside that of the pod's other containers.
fn enter_own_user_namespace(channel: Channel<'_>) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER).context(|| "unshare the user namespace")?;
    // boot can write the maps only while they do not belong to the host's root. No
    // container may trace this process meanwhile: that takes CAP_SYS_PTRACE in the new
    // user namespace or boot's.
    set_dumpable(true).context(|| "prctl PR_SET_DUMPABLE")?;
    let mapped = channel.get_mapped();
    set_dumpable(false).context(|| "prctl PR_SET_DUMPABLE")?;
    mapped?;
    become_root().context(|| "become root of the container's user namespace")
}

pub(super) fn set_root_propagation(plan: &ContainerPlan) -> Result<()> {
    // Applied to the whole tree, `rprivate` would take away what single mounts asked for.
    let Some(propagation) = plan.root_propagation else { return Ok(()) };
    let change = AttrChange { propagation: Some(propagation.kind), ..AttrChange::default() };
    mount_setattr_at("/", propagation.recursive.into(), change)
        .context(|| "linux.rootfsPropagation")
}

/// Waits at the gate until Start opens it, then runs the hooks.
fn pass_gate(newborn: Newborn<'_>, handed_over: AtGate) -> Result<()> {
    newborn.channel.wait_at_gate(handed_over)?;
    hooks::run(newborn.plan, newborn.alone)
}
