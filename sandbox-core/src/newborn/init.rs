//! The steps of a container's init from its clone to its gate, in order.

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use super::process::{OwnProcFiles, Prepared};
use super::time::OwnTimeFiles;
use super::{Channel, donated, hooks, keyring, mounts, names, terminal, time};
use crate::container::donated::Donated;
use crate::container::namespaces::{early_namespaces, late_namespaces};
use crate::container::own_id::ContainerRoot;
use crate::container::terminal::Terminal;
use crate::container::tree::Tree;
use crate::error::{Context, Result};
use crate::spec::plan::{ContainerPlan, ProcessPlan};
use crate::sys::clone::SingleThreaded;
use crate::sys::mount::{AttrChange, mount_setattr_at};
use crate::sys::process::{Rlimit, become_root, exit_now, set_dumpable};

/// The input of a container's init. The init is a copy of boot, so none of it is sent.
#[derive(Clone, Copy)]
pub(crate) struct Newborn<'a> {
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) process: &'a ProcessPlan,
    /// The limits with which boot started.
    pub(crate) limits: &'a [Rlimit],
    pub(crate) tree: &'a Tree,
    pub(crate) terminal: Option<&'a Terminal>,
    pub(crate) donated: &'a Donated,
    /// The user namespace of the pod's containers, if there is one.
    pub(crate) users: Option<&'a OwnedFd>,
    /// The init of the container whose time namespace it joins.
    pub(crate) times_of: Option<&'a OwnedFd>,
    /// The IDs of their root in boot's user namespace.
    pub(crate) root: ContainerRoot,
    pub(crate) channel: Channel<'a>,
    /// A copy of a process with one thread has one thread as well.
    pub(crate) alone: &'a SingleThreaded,
}

/// Runs the init. Never returns into boot's code, of which it is a copy.
pub(crate) fn run(newborn: Newborn<'_>) -> ! {
    let error = match to_gate(newborn) {
        Ok(prepared) => match pass_gate(newborn) {
            Ok(()) => prepared.execute(),
            Err(error) => error,
        },
        Err(error) => error,
    };
    newborn.channel.report(error);
    exit_now(1)
}

fn to_gate(newborn: Newborn<'_>) -> Result<Prepared<'_>> {
    let Newborn { plan, process, tree, .. } = newborn;
    keyring::join(process, &plan.id)?;
    let own_files = OwnProcFiles::open(process)?;
    let own_time = OwnTimeFiles::open(plan)?;
    newborn.times_of.map_or(Ok(()), time::join)?;
    donated::join_cgroups(newborn.donated)?;
    if early_namespaces(plan).contains(CloneFlags::CLONE_NEWCGROUP) {
        unshare(CloneFlags::CLONE_NEWCGROUP).context(|| "unshare the cgroup namespace")?;
    }
    donated::leave_for_own_cgroup(newborn.donated)?;
    donated::install_stdio(newborn.donated, newborn.terminal)?;
    let sysctls = names::own_sysctls(plan)?;
    enter_root(mounts::complete(tree, plan, newborn.root)?)?;
    enter_late_namespaces(newborn)?;
    own_time.map_or(Ok(()), |files| files.enter(&plan.time_offsets))?;
    mounts::finish(tree, plan)?;
    newborn.terminal.map_or(Ok(()), terminal::name)?;
    set_root_propagation(plan)?;
    names::set_own(plan, sysctls)?;
    let seccomp = newborn.donated.seccomp.as_ref();
    Prepared::new(process, newborn.limits, seccomp, newborn.terminal.is_some(), own_files)
}

/// Changes from boot's root to the container's.
fn enter_root(root: OwnedFd) -> Result<()> {
    fchdir(root.as_fd()).context(|| "enter the container's root")?;
    pivot_root(".", ".").context(|| "pivot_root into the container")?;
    unmount(".", UnmountFlags::DETACH).context(|| "detach the sandbox's root")?;
    chdir("/").context(|| "chdir /")
}

/// Enters the user namespace of the pod's containers. From here on this process has no
/// privilege over boot's namespaces, and its copy of the mounts is locked.
fn enter_late_namespaces(newborn: Newborn<'_>) -> Result<()> {
    match (newborn.users, &newborn.plan.mappings) {
        (None, _) => {}
        (Some(users), None) => {
            setns(users, CloneFlags::CLONE_NEWUSER)
                .context(|| "enter the user namespace of the pod's containers")?;
            become_root().context(|| "become root of the pod's user namespace")?;
        }
        (Some(_), Some(_)) => enter_own_user_namespace(newborn.channel)?,
    }
    let late = late_namespaces(newborn.plan);
    match late.is_empty() {
        true => Ok(()),
        false => unshare(late).context(|| format!("unshare {late:?}")),
    }
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

fn set_root_propagation(plan: &ContainerPlan) -> Result<()> {
    // Applied to the whole tree, `rprivate` would take away what single mounts asked for.
    let Some(propagation) = plan.root_propagation else { return Ok(()) };
    let change = AttrChange { propagation: Some(propagation.kind), ..AttrChange::default() };
    mount_setattr_at("/", propagation.recursive.into(), change)
        .context(|| "linux.rootfsPropagation")
}

/// Waits at the gate until Start opens it, then runs the hooks.
fn pass_gate(newborn: Newborn<'_>) -> Result<()> {
    newborn.channel.wait_at_gate()?;
    hooks::run(newborn.plan, newborn.alone)
}
