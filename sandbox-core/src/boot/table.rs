//! The containers and processes that boot knows.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::pending::{Pending, Stage};
use crate::container::channel::Channel;
use crate::container::join_info::JoinInfo;
use crate::error::{Context, Error, FailureKind, Result};
use crate::types::{PodPid, ProcessId};

/// All containers, and whose process is whose.
#[derive(Default)]
pub(super) struct Table {
    containers: HashMap<String, Container>,
    processes: HashMap<PodPid, ProcessId>,
    /// Processes that have not said yet whether they came up, by the number
    /// that the event loop knows them by.
    pub(super) pending: HashMap<u64, Pending>,
    next_token: u64,
}

/// One container.
pub(super) struct Container {
    /// Its init; `None` for the pause container.
    pub(super) init: Option<Init>,
    /// What processes need to know to join it.
    pub(super) join_info: Rc<JoinInfo>,
}

/// A container's first process.
pub(super) struct Init {
    pub(super) pid: PodPid,
    pub(super) pidfd: OwnedFd,
    /// The channel to a process that waits at its gate.
    pub(super) gate: Option<Channel>,
    pub(super) running: bool,
    /// Keeps its mounts until its end was told: the kernel takes a mount
    /// namespace down in the middle of the exit of the last process in it.
    pub(super) mounts: Option<OwnedFd>,
}

impl Table {
    /// Refuses an ID that is taken.
    pub(super) fn check_free(&self, id: &str) -> Result<()> {
        match self.containers.contains_key(id) {
            true => Err(Error::new(FailureKind::Exists, format!("container {id} already exists"))),
            false => Ok(()),
        }
    }

    pub(super) fn insert(&mut self, id: String, container: Container) {
        if let Some(init) = &container.init {
            self.own(init.pid, ProcessId::init(&id));
        }
        self.containers.insert(id, container);
    }

    pub(super) fn own(&mut self, pid: PodPid, owner: ProcessId) {
        self.processes.insert(pid, owner);
    }

    pub(super) fn get(&mut self, id: &str) -> Result<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| unknown(id))
    }

    /// The first process of a container, to join its namespaces.
    pub(super) fn running_init(&self, id: &str) -> Result<OwnedFd> {
        let container = self.containers.get(id).ok_or_else(|| unknown(id))?;
        let init = container.init.as_ref().filter(|init| init.running);
        let init = init.ok_or_else(|| {
            Error::new(FailureKind::State, format!("container {id} runs no process to join"))
        })?;
        init.pidfd.try_clone().context(|| "dup of a pidfd")
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Container> {
        self.containers.remove(id)
    }

    /// A container's first process is no more. Returns its mounts, to be let go.
    pub(super) fn init_ended(&mut self, id: &str) -> Option<OwnedFd> {
        let init = self.containers.get_mut(id).and_then(|c| c.init.as_mut())?;
        init.running = false;
        init.gate = None;
        init.mounts.take()
    }

    /// Whose the process was; it is forgotten.
    pub(super) fn disown(&mut self, pid: PodPid) -> Option<ProcessId> {
        self.processes.remove(&pid)
    }

    /// Whether no container has a process, not even at its gate.
    pub(super) fn run_nothing(&self) -> bool {
        self.processes.is_empty()
    }

    /// The Create whose process has not come up to its gate yet.
    pub(super) fn take_on_way_to_gate(&mut self, pid: PodPid) -> Option<Pending> {
        let is_it = |pending: &Pending| pending.pid == pid && pending.stage == Stage::ToGate;
        let token = self.pending.iter().find_map(|(token, p)| is_it(p).then_some(*token));
        self.pending.remove(&token?)
    }

    /// Registers a process that has yet to come up; tells its token.
    pub(super) fn add_pending(&mut self, pending: Pending) -> u64 {
        self.next_token += 1;
        self.pending.insert(self.next_token, pending);
        self.next_token
    }
}

fn unknown(id: &str) -> Error {
    Error::new(FailureKind::NotFound, format!("no container {id} here"))
}
