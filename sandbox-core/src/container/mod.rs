//! One container, from its mounts to its execve. `init.rs` is the table of
//! contents of a container's birth, `exec.rs` of joining one.

pub(crate) mod attach;
mod cgroup_mount;
mod channel;
mod copy_up;
pub(crate) mod delivered;
mod destination;
pub(crate) mod donated;
pub(crate) mod exec;
mod hooks;
mod identity;
pub(crate) mod init;
mod lookup;
mod masks;
pub(crate) mod names;
pub(crate) mod own_id;
pub(crate) mod paths;
mod process;
mod shared_memory;
pub(crate) mod terminal;
pub(crate) mod tree;

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;

pub(crate) use channel::{Channel, Word};
use donated::Seccomp;
use tree::Tree;

use crate::spec::plan::ContainerPlan;

/// What is kept of a container for those who join it.
#[derive(Debug)]
pub(crate) struct Inside {
    namespaces: CloneFlags,
    /// Its PID namespace is below boot's.
    pids_below: bool,
    terminals: Option<OwnedFd>,
    seccomp: Option<Seccomp>,
}

impl Inside {
    /// Of a container that runs.
    pub(crate) fn new(plan: &ContainerPlan, tree: &mut Tree, seccomp: Option<Seccomp>) -> Self {
        let pids_below = plan.pids_below();
        let (namespaces, terminals) = (own_namespaces(plan), tree.take_terminals());
        Self { namespaces, pids_below, terminals, seccomp }
    }

    /// Of the pause container, which nobody joins.
    pub(crate) fn pause(plan: &ContainerPlan) -> Self {
        let namespaces = own_namespaces(plan);
        Self { namespaces, pids_below: false, terminals: None, seccomp: None }
    }

    /// The devpts that terminals are made in.
    pub(crate) fn terminals(&self) -> Option<BorrowedFd<'_>> {
        self.terminals.as_ref().map(std::os::fd::AsFd::as_fd)
    }

    /// Whether it is in a PID namespace below boot's.
    pub(crate) fn pids_below(&self) -> bool {
        self.pids_below
    }
}

/// The namespaces that are the container's and not boot's.
fn own_namespaces(plan: &ContainerPlan) -> CloneFlags {
    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWUSER, plan.user_namespace);
    flags.set(CloneFlags::CLONE_NEWPID, plan.namespaces.pid);
    flags.set(CloneFlags::CLONE_NEWIPC, plan.namespaces.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, plan.namespaces.uts);
    flags.set(CloneFlags::CLONE_NEWCGROUP, plan.namespaces.cgroup);
    flags
}

/// Those of them that are made while the newborn is in boot's user namespace,
/// so that boot's user namespace owns what is mounted of them.
fn early_namespaces(plan: &ContainerPlan) -> CloneFlags {
    let early = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWCGROUP;
    own_namespaces(plan) & early
}

/// Those that belong to the container's user namespace. Its mounts are copied
/// along, and the copy is locked.
fn late_namespaces(plan: &ContainerPlan) -> CloneFlags {
    let own = own_namespaces(plan);
    let mut late = own - early_namespaces(plan);
    late.set(CloneFlags::CLONE_NEWNS, own.contains(CloneFlags::CLONE_NEWUSER));
    late
}
