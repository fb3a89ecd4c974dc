//! The containers of the sandbox, and their processes.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::container::channel::Channel;
use crate::container::join_info::JoinInfo;
use crate::error::{Context, Error, FailureKind, Result};
use crate::spec::plan::Mappings;
use crate::types::{PodPid, ProcessId};

/// All containers, and the owners of processes.
#[derive(Default)]
pub(super) struct Table {
    containers: HashMap<String, Container>,
    processes: HashMap<PodPid, ProcessId>,
    /// Processes that are neither at their gate nor have called execve, by their token in
    /// the event loop.
    pub(super) pending: HashMap<u64, Pending>,
    next_token: u64,
}

/// One container.
pub(super) struct Container {
    /// Its init; `None` for the pause container.
    pub(super) init: Option<Init>,
    /// The information with which a process joins it.
    pub(super) join_info: Rc<JoinInfo>,
}

/// A container's init.
pub(super) struct Init {
    pub(super) pid: PodPid,
    pub(super) pidfd: OwnedFd,
    /// The channel to a process that waits at its gate.
    pub(super) gate: Option<Channel>,
    pub(super) running: bool,
}

/// A process between its clone and its execve. See `pending.rs`.
pub(super) struct Pending {
    /// Number of the request to which boot will reply.
    pub(super) number: u64,
    pub(super) process: ProcessId,
    pub(super) pid: PodPid,
    pub(super) pidfd: OwnedFd,
    /// The master side of an exec's terminal, which boot will send to the shim.
    pub(super) terminal: Option<OwnedFd>,
    pub(super) channel: Channel,
    pub(super) stage: Stage,
    /// The mappings of the user namespace that it makes, if that is not the pod's.
    pub(super) mappings: Option<Mappings>,
    /// Whether it waits until an agent has the listener of its seccomp program.
    pub(super) hands_listener_over: bool,
}

/// The event that boot waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The message that the process is at its gate, for Create.
    ToGate,
    /// The end of file that execve causes, for Start or Exec.
    Executing,
}

impl Table {
    /// Refuses the ID of an existing container.
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

    /// Returns a process of a container that has not been collected.
    pub(super) fn pid_of(&self, process: &ProcessId) -> Option<PodPid> {
        self.processes.iter().find(|(_, owner)| *owner == process).map(|(pid, _)| *pid)
    }

    pub(super) fn get(&mut self, id: &str) -> Result<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| unknown(id))
    }

    /// Returns a pidfd of a container's init, to join its namespaces.
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

    /// Records that a container's init has ended.
    pub(super) fn init_ended(&mut self, id: &str) {
        if let Some(init) = self.containers.get_mut(id).and_then(|c| c.init.as_mut()) {
            init.running = false;
            init.gate = None;
        }
    }

    /// Forgets a process and returns its owner.
    pub(super) fn disown(&mut self, pid: PodPid) -> Option<ProcessId> {
        self.processes.remove(&pid)
    }

    /// Whether no container has a process, not even at its gate.
    pub(super) fn run_nothing(&self) -> bool {
        self.processes.is_empty()
    }

    /// Returns the token of a pending process.
    pub(super) fn pending_of(&self, pid: PodPid) -> Option<u64> {
        self.pending.iter().find_map(|(token, p)| (p.pid == pid).then_some(*token))
    }

    /// Takes the pending Create of a process that has not reached its gate yet.
    pub(super) fn take_on_way_to_gate(&mut self, pid: PodPid) -> Option<Pending> {
        self.take_pending(|pending| pending.pid == pid && pending.stage == Stage::ToGate)
    }

    /// Takes the pending process of a request that waits until an agent has its listener.
    pub(super) fn take_with_listener(&mut self, number: u64) -> Option<Pending> {
        self.take_pending(|pending| pending.number == number && pending.hands_listener_over)
    }

    fn take_pending(&mut self, is_it: impl Fn(&Pending) -> bool) -> Option<Pending> {
        let token = self.pending.iter().find_map(|(token, p)| is_it(p).then_some(*token));
        self.pending.remove(&token?)
    }

    /// Registers a pending process. Returns its token.
    pub(super) fn add_pending(&mut self, pending: Pending) -> u64 {
        self.next_token += 1;
        self.pending.insert(self.next_token, pending);
        self.next_token
    }
}

fn unknown(id: &str) -> Error {
    Error::new(FailureKind::NotFound, format!("no container {id} here"))
}
