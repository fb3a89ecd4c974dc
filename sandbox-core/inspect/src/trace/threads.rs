//! The threads that are recorded, with their processes and containers.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use sandbox_core::types::{Call, HostPid};

use super::Wanted;
use crate::calls::Doing;
use crate::processes::Process;
use crate::status::{self, Status};

/// The most threads that are known: what a container forks costs us no more.
const MOST: usize = 100_000;

/// What is known of a thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Thread {
    pub(super) process: i32,
    pub(super) name: String,
    described: bool,
}

/// What is known of a process.
#[derive(Clone, Debug, Default)]
pub(super) struct OfProcess {
    /// The number of its container. `None` for boot, and what is not known to be of one.
    pub(super) container: Option<usize>,
    pub(super) command: String,
    described: bool,
}

/// Processes or threads with their IDs.
type Ids<T> = Vec<(i32, T)>;

/// All threads.
#[derive(Default)]
pub(super) struct Threads {
    threads: BTreeMap<i32, Thread>,
    processes: HashMap<i32, OfProcess>,
    /// Whether a container had no process at the last look.
    ended: bool,
}

impl Threads {
    /// Finds the threads that there are.
    pub(super) fn find(wanted: &Wanted) -> Result<Self> {
        let mut threads = Self::default();
        if let Some(boot) = wanted.boot.filter(|_| wanted.with_boot) {
            threads.add_process(boot, None);
        }
        threads.look_again(wanted);
        anyhow::ensure!(!threads.ended, "no process is left of {}", wanted.name);
        Ok(threads)
    }

    /// Looks for processes that came by another way than a fork of a recorded one. Returns their
    /// threads.
    pub(super) fn look_again(&mut self, wanted: &Wanted) -> Vec<i32> {
        let mut all = 0;
        let mut new = Vec::new();
        for (number, container) in wanted.containers.iter().enumerate() {
            for HostPid(pid) in container.cgroup.pids().unwrap_or_default() {
                all += 1;
                let known = self.processes.get(&pid).is_some_and(|known| known.container.is_some());
                if !known && Some(pid) != wanted.boot {
                    new.extend(self.add_process(pid, Some(number)));
                }
            }
        }
        self.ended = all == 0;
        new
    }

    /// Whether no process was left at the last look.
    pub(super) fn all_ended(&self) -> bool {
        self.ended
    }

    /// Returns the IDs of all threads.
    pub(super) fn ids(&self) -> Vec<i32> {
        self.threads.keys().copied().collect()
    }

    /// Returns how many there were.
    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }

    pub(super) fn knows(&self, thread: i32) -> bool {
        self.threads.contains_key(&thread)
    }

    /// Returns the container of a thread.
    pub(super) fn container(&self, thread: i32) -> Option<usize> {
        let process = self.threads.get(&thread)?.process;
        self.processes.get(&process)?.container
    }

    /// Notes what a recorded thread has forked: a thread of its own process, or another process.
    pub(super) fn forked(&mut self, parent: i32, child: i32, name: String) {
        let parent = self.threads.get(&parent).map_or(parent, |parent| parent.process);
        let process = process_of(child).unwrap_or(child);
        self.add_thread(child, process, name);
        let container = self.processes.get(&parent).and_then(|parent| parent.container);
        let command = self.processes.get(&parent).map(|parent| parent.command.clone());
        self.processes.entry(process).or_insert_with(|| OfProcess {
            container,
            command: command.unwrap_or_default(),
            described: false,
        });
    }

    /// Notes that a process executes another program.
    pub(super) fn executed(&mut self, thread: i32, program: String) {
        let Some(process) = self.threads.get(&thread).map(|thread| thread.process) else { return };
        let command = Process::read(HostPid(process)).map_or(program, |now| now.command);
        if let Some(process) = self.processes.get_mut(&process) {
            process.command = command;
            process.described = false;
        }
    }

    /// Returns the processes and the threads that are not described yet.
    pub(super) fn undescribed(&mut self) -> (Ids<OfProcess>, Ids<Thread>) {
        let processes = self.processes.iter_mut().filter(|(_, process)| !process.described);
        let processes = processes.map(|(pid, process)| {
            process.described = true;
            (*pid, process.clone())
        });
        let threads = self.threads.iter_mut().filter(|(_, thread)| !thread.described);
        let threads = threads.map(|(id, thread)| {
            thread.described = true;
            (*id, thread.clone())
        });
        (processes.collect(), threads.collect())
    }

    fn add_process(&mut self, pid: i32, container: Option<usize>) -> Vec<i32> {
        let Some(process) = Process::read(HostPid(pid)) else { return Vec::new() };
        let of = OfProcess { container, command: process.command, described: false };
        self.processes.insert(pid, of);
        let ids = status::threads(pid);
        for id in &ids {
            self.add_thread(*id, pid, status::name(*id));
        }
        ids
    }

    fn add_thread(&mut self, id: i32, process: i32, name: String) {
        if self.threads.len() < MOST || self.threads.contains_key(&id) {
            self.threads.insert(id, Thread { process, name, described: false });
        }
    }
}

/// Returns the process of a thread.
fn process_of(thread: i32) -> Option<i32> {
    Status::of(thread)?.number("Tgid", 0)
}

/// Returns the call that a thread waits in, if it waits in one.
pub(super) fn call_of(thread: i32) -> Option<Call> {
    match Doing::of(thread).ok()? {
        Doing::Waits { call, .. } => call,
        Doing::Runs => None,
    }
}
