//! The information that boot keeps of a container for the processes that join it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;

use super::donated::Seccomp;
use super::namespaces::own_namespaces;
use super::outside_ids::OutsideIds;
use super::tree::Tree;
use crate::spec::plan::ContainerPlan;

/// The information with which an exec'd process joins a container.
#[derive(Debug)]
pub(crate) struct JoinInfo {
    /// The container's ID.
    pub(crate) id: String,
    /// The container's namespaces that are not boot's.
    pub(crate) namespaces: CloneFlags,
    /// Whether its PID namespace is below boot's.
    pids_below: bool,
    terminals: Option<OwnedFd>,
    pub(crate) seccomp: Option<Seccomp>,
    /// The IDs of its users outside, if it is in a user namespace.
    pub(crate) ids: Option<OutsideIds>,
}

impl JoinInfo {
    /// Collects the information of a container that has a process.
    pub(crate) fn new(
        plan: &ContainerPlan,
        tree: &mut Tree,
        seccomp: Option<Seccomp>,
        ids: Option<OutsideIds>,
    ) -> Self {
        let pids_below = plan.pids_below();
        let (namespaces, terminals) = (own_namespaces(plan), tree.take_terminals());
        Self { id: plan.id.clone(), namespaces, pids_below, terminals, seccomp, ids }
    }

    /// Collects the information of the pause container, which no process joins.
    pub(crate) fn pause(plan: &ContainerPlan) -> Self {
        let namespaces = own_namespaces(plan);
        let id = plan.id.clone();
        Self { id, namespaces, pids_below: false, terminals: None, seccomp: None, ids: None }
    }

    /// Returns the devpts in which terminals are made.
    pub(crate) fn terminals(&self) -> Option<BorrowedFd<'_>> {
        self.terminals.as_ref().map(AsFd::as_fd)
    }

    /// Whether the container is in a PID namespace below boot's.
    pub(crate) fn pids_below(&self) -> bool {
        self.pids_below
    }
}
