//! The information that boot keeps of a container for the processes that join it.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;

use super::filter::Filter;
use super::home::Home;
use super::namespaces::own_namespaces;
use super::outside_ids::OutsideIds;
use crate::spec::plan::ContainerPlan;
use crate::types::{Limited, PodPid};

/// The information with which an exec'd process joins a container.
#[derive(Debug)]
pub(crate) struct JoinInfo {
    /// The container's ID.
    pub(crate) id: String,
    /// The container's namespaces that are not boot's.
    pub(crate) namespaces: CloneFlags,
    /// Whether its PID namespace is below boot's.
    pids_below: bool,
    /// Set once the init is at its gate.
    terminals: OnceCell<OwnedFd>,
    /// The seccomp program of its processes.
    pub(crate) filter: Filter,
    /// Its namespaces, once its init is at its gate: no program of the container has run before,
    /// so that no other can be taken for these.
    home: OnceCell<Home>,
    /// The IDs of its users outside, if it is in a user namespace.
    pub(crate) ids: Option<OutsideIds>,
}

impl JoinInfo {
    /// Collects the information of a container that has a process.
    pub(crate) fn new(plan: &ContainerPlan, filter: Filter, ids: Option<OutsideIds>) -> Self {
        Self {
            id: plan.id.clone(),
            namespaces: own_namespaces(plan),
            pids_below: plan.pids_below(),
            terminals: OnceCell::new(),
            filter,
            home: OnceCell::new(),
            ids,
        }
    }

    /// Collects the information of the pause container, which no process joins.
    pub(crate) fn pause(plan: &ContainerPlan) -> Self {
        Self {
            pids_below: false,
            ..Self::new(plan, Filter::new(&[], None, None, Limited::default()), None)
        }
    }

    /// Returns the devpts in which terminals are made.
    pub(crate) fn terminals(&self) -> Option<BorrowedFd<'_>> {
        self.terminals.get().map(AsFd::as_fd)
    }

    /// Takes the devpts that the init has mounted.
    pub(crate) fn set_terminals(&self, devpts: OwnedFd) {
        // An init reaches its gate once.
        let _ = self.terminals.set(devpts);
    }

    /// Returns its namespaces, if raw sockets are made for it.
    pub(crate) fn home(&self) -> Option<Home> {
        self.home.get().copied()
    }

    /// Takes the namespaces of its init, at the gate, if they count.
    pub(crate) fn set_home(&self, init: PodPid) {
        if self.filter.makes_raw_sockets()
            && let Some(home) = Home::of(init)
        {
            // An init reaches its gate once.
            let _ = self.home.set(home);
        }
    }

    /// Whether the container is in a PID namespace below boot's.
    pub(crate) fn pids_below(&self) -> bool {
        self.pids_below
    }
}
