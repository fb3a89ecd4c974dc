//! What the shim knows: its containers, their processes, and the requests that
//! boot has not answered. The only lock of the task service; everything runs on
//! one thread and nobody holds it over an await, so it is never contended.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use sandbox_core::cgroup::{CapacityPolicy, Cgroup, OomWatch, ResourcesInForce};
use sandbox_core::control::message::Done;
use sandbox_core::error::Failure;
use sandbox_core::sandbox::{self, Along};
use sandbox_core::spec::plan::{Plan, ProcessPlan, Terminal};
use sandbox_core::types::HostPid;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::lifecycle::{State, Step};
use super::sandbox::Boot;
use super::{delete, shutdown};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::options::Options;
use crate::sandbox_service::Pod;
use crate::serve::Ending;
use crate::stdio::{Io, Stdio};

/// The shim of one sandbox.
pub(crate) struct Shim {
    /// containerd's namespace.
    pub(crate) namespace: String,
    pub(crate) events: Events,
    /// The node's options, as `start` was given them.
    pub(crate) options: Options,
    /// Set once, when the shim is to end.
    pub(crate) ending: watch::Sender<Ending>,
    /// How many exits are known and not told yet.
    pub(super) untold: watch::Sender<usize>,
    table: Mutex<Table>,
}

impl Shim {
    pub(crate) fn new(namespace: &str, events: Events, options: Options) -> Arc<Self> {
        Arc::new(Self {
            namespace: namespace.to_string(),
            events,
            options,
            ending: watch::Sender::new(Ending::No),
            untold: watch::Sender::default(),
            table: Mutex::default(),
        })
    }

    /// The table. A panic elsewhere leaves it as consistent as it was.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What boot answered: the descriptors come along.
pub(super) type Reply = (std::result::Result<Done, Failure>, Along);

#[derive(Default)]
pub(crate) struct Table {
    pub(crate) sandbox: Sandbox,
    /// The sandbox as containerd's Sandbox service knows it, if that made it.
    pub(crate) pod: Option<Pod>,
    slots: HashMap<String, Slot>,
    /// Requests that boot has not answered, by number.
    pub(super) replies: HashMap<u64, oneshot::Sender<Reply>>,
    /// Takes the last sandbox down.
    pub(super) tear_down: Option<JoinHandle<()>>,
    /// A Shutdown came while containers were left whose sandbox is no more.
    pub(super) shutdown_pending: bool,
}

/// The one sandbox of this shim.
#[derive(Default)]
pub(crate) enum Sandbox {
    /// Not made yet, or taken down with its last container.
    #[default]
    None,
    /// The first Create is at it.
    Making,
    Made(Arc<Boot>),
}

enum Slot {
    /// A Create is under way.
    Reserved(Reserved),
    Made(Box<Container>),
}

#[derive(Default)]
struct Reserved {
    /// How its process ended, if it did already.
    early: Option<u32>,
    /// Its client has given up.
    given_up: watch::Sender<bool>,
}

impl Table {
    /// Takes an ID for a Create, and tells whether its client gives up.
    fn reserve(&mut self, id: &str) -> Result<watch::Receiver<bool>> {
        if self.slots.contains_key(id) {
            return Err(Error::exists(format!("container {id} already exists")));
        }
        let reserved = Reserved::default();
        let given_up = reserved.given_up.subscribe();
        self.slots.insert(id.to_string(), Slot::Reserved(reserved));
        Ok(given_up)
    }

    /// Has a Create that is under way undone; the future ends when that is over.
    /// `None` when there is no such Create.
    pub(super) fn give_up(&mut self, id: &str) -> Option<impl Future<Output = ()> + use<>> {
        let Some(Slot::Reserved(reserved)) = self.slots.get(id) else { return None };
        reserved.given_up.send_replace(true);
        let mut given_up = reserved.given_up.subscribe();
        // The slot goes, and with it what sends.
        Some(async move { while given_up.changed().await.is_ok() {} })
    }

    /// Puts a container where its Create had taken the ID.
    fn insert(&mut self, mut container: Container) {
        let before = self.slots.remove(&container.id);
        if let Some(Slot::Reserved(reserved)) = before {
            container.init.early_exit = reserved.early;
        }
        self.slots.insert(container.id.clone(), Slot::Made(Box::new(container)));
    }

    /// Notes an exit in a container that is still being created, and tells
    /// whether it is the first; `None` when there is no such container.
    pub(super) fn ended_in_creation(&mut self, id: &str, status: u32) -> Option<bool> {
        match self.slots.get_mut(id) {
            Some(Slot::Reserved(reserved)) => Some(reserved.early.replace(status).is_none()),
            _ => None,
        }
    }

    /// IDs of the containers that are being created.
    pub(super) fn reserved(&self) -> Vec<String> {
        let reserved =
            |(id, slot): (&String, &Slot)| matches!(slot, Slot::Reserved(_)).then(|| id.clone());
        self.slots.iter().filter_map(reserved).collect()
    }

    /// Gives an ID free.
    pub(super) fn remove(&mut self, id: &str) {
        self.slots.remove(id);
    }

    /// Whether nothing is left that needs the sandbox: no container, nor one
    /// that is being made, nor whoever asked for the sandbox itself.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty() && !self.has_pod()
    }

    fn has_pod(&self) -> bool {
        self.pod.as_ref().is_some_and(Pod::is_alive)
    }

    /// Whether what the sandbox stands and falls with is there, or being made for
    /// somebody: its root container, or who asked for it.
    pub(crate) fn has_root(&self) -> bool {
        if self.has_pod() {
            return true;
        }
        match &self.sandbox {
            Sandbox::None => false,
            Sandbox::Making => !self.slots.values().all(Slot::is_given_up),
            Sandbox::Made(boot) => self.slots.contains_key(&boot.root),
        }
    }

    pub(super) fn container(&mut self, id: &str) -> Result<&mut Container> {
        match self.slots.get_mut(id) {
            Some(Slot::Made(container)) => Ok(container),
            Some(Slot::Reserved(_)) => {
                Err(Error::not_found(format!("container {id} is still being created")))
            }
            None => Err(Error::not_found(format!("container {id} does not exist"))),
        }
    }

    /// A container's init, or one of its execs when `exec` is not empty.
    pub(super) fn process(&mut self, id: &str, exec: &str) -> Result<&mut Process> {
        self.container(id)?.process(exec)
    }

    /// ID and first process of each container that runs one.
    pub(super) fn neighbours(&self) -> Vec<(String, HostPid)> {
        let init = |c: &Container| c.init.handle.as_ref().map(|init| (c.id.clone(), init.pid));
        self.containers().filter_map(init).collect()
    }

    pub(super) fn containers(&self) -> impl Iterator<Item = &Container> {
        self.slots.values().filter_map(|slot| match slot {
            Slot::Made(container) => Some(&**container),
            Slot::Reserved(_) => None,
        })
    }
}

impl Slot {
    fn is_given_up(&self) -> bool {
        matches!(self, Slot::Reserved(reserved) if *reserved.given_up.borrow())
    }
}

/// A Create's hold on its ID, and on the sandbox if it makes that too. Given
/// back on drop unless filled.
pub(super) struct Reservation {
    shim: Arc<Shim>,
    id: String,
    /// The sandbox to join; `None` for the first container, which makes it.
    boot: Option<Arc<Boot>>,
    given_up: watch::Receiver<bool>,
    filled: bool,
}

impl Reservation {
    pub(super) fn take(shim: &Arc<Shim>, id: &str) -> Result<Self> {
        let mut table = shim.table();
        if let Some(pod) = &table.pod {
            // Only into a sandbox that runs.
            pod.files()?;
        }
        let boot = match &table.sandbox {
            Sandbox::Made(boot) => Some(boot.clone()),
            Sandbox::None => None,
            Sandbox::Making if table.slots.contains_key(id) => None,
            Sandbox::Making => {
                return Err(Error::state("the sandbox's first container is still being created"));
            }
        };
        let given_up = table.reserve(id)?;
        if boot.is_none() {
            table.sandbox = Sandbox::Making;
        }
        drop(table);
        Ok(Self { shim: shim.clone(), id: id.to_string(), boot, given_up, filled: false })
    }

    /// Ends when the client has given up.
    pub(super) fn given_up(&self) -> impl Future<Output = ()> + use<> {
        raised(self.given_up.clone())
    }

    pub(super) fn boot(&self) -> Option<&Arc<Boot>> {
        self.boot.as_ref()
    }

    /// From now on everybody sees the container.
    pub(super) fn fill(mut self, container: Container) {
        let mut table = self.shim.table();
        table.sandbox = Sandbox::Made(container.boot.clone());
        table.insert(container);
        drop(table);
        self.filled = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.filled {
            return;
        }
        let mut table = self.shim.table();
        table.slots.remove(&self.id);
        match &self.boot {
            None => table.sandbox = Sandbox::None,
            // Everybody else went while this was being made.
            Some(boot) if table.is_empty() => delete::take_down(&mut table, boot.clone()),
            Some(_) => {}
        }
        drop(table);
        shutdown::catch_up(&self.shim);
    }
}

/// Ends when a flag is raised, and never if it is not.
pub(crate) async fn raised(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|raised| *raised).await.is_err() {
        std::future::pending().await
    }
}

/// One container.
pub(super) struct Container {
    pub(super) id: String,
    pub(super) bundle: String,
    pub(super) plan: Arc<Plan>,
    pub(super) boot: Arc<Boot>,
    pub(super) cgroup: Arc<Cgroup>,
    pub(super) policy: CapacityPolicy,
    pub(super) resources: ResourcesInForce,
    pub(super) oom: Option<OomWatch>,
    /// How many out-of-memory kills were told.
    pub(super) oom_kills: u64,
    pub(super) init: Process,
    pub(super) execs: HashMap<String, Process>,
    /// How many execs have begun to start and have not ended: the init's exit
    /// waits for them.
    pub(super) unsettled: watch::Sender<usize>,
    /// What was last seen of a cgroup that systemd removes when it is empty.
    pub(super) last_stats: Option<Any>,
}

impl Container {
    pub(super) fn process(&mut self, exec: &str) -> Result<&mut Process> {
        if exec.is_empty() {
            return Ok(&mut self.init);
        }
        let missing =
            || Error::not_found(format!("exec {exec} does not exist in container {}", self.id));
        self.execs.get_mut(exec).ok_or_else(missing)
    }

    /// The container whose cgroup boot sits in.
    pub(super) fn is_root(&self) -> bool {
        self.boot.root == self.id
    }

    /// What a process of the container has to join. Nothing for the root
    /// container, as boot is in its cgroup and what boot makes starts there;
    /// unless the container divides it, for then boot is in a place of its own.
    pub(super) fn procs_to_join(&self) -> Result<Vec<OwnedFd>> {
        if self.is_root() && !self.cgroup.is_divided_by(&self.plan.container) {
            return Ok(Vec::new());
        }
        let init = self.init.handle.as_ref().map(|init| init.pid);
        Ok(init.map_or_else(|| self.cgroup.procs(), |init| self.cgroup.procs_beside(init))?)
    }

    /// The well-known pause container: boot stands in for its process.
    pub(super) fn is_pause(&self) -> bool {
        self.plan.container.process.is_none()
    }
}

/// What a process reports that SIGKILL ended, or that was killed before it ran.
pub(crate) const KILLED: u32 = 128 + 9;

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

/// One process, the init of a container or an exec.
pub(super) struct Process {
    state: State,
    pub(super) pid: u32,
    /// To send signals. None before it runs, and where boot stands in for it.
    pub(super) handle: Option<Arc<sandbox::Process>>,
    pub(super) stdio: Stdio,
    pub(super) io: Io,
    /// Set once; any number of waiters.
    pub(super) exit: watch::Sender<Option<Exit>>,
    /// It ended before its start was told.
    pub(super) early_exit: Option<u32>,
    /// It has ended, and that is about to be told.
    pub(super) ending: bool,
    /// What it reports however it dies: a pause that was told to end well.
    pub(super) reports: Option<u32>,
    /// What an exec that has not been started is going to run.
    pub(super) plan: Option<Box<ProcessPlan>>,
    /// The client's window, when it said so.
    pub(super) resized: Option<Terminal>,
    /// The client will write no more.
    pub(super) stdin_closed: bool,
}

impl Process {
    pub(super) fn new(stdio: Stdio) -> Self {
        Self {
            state: State::Created,
            pid: 0,
            handle: None,
            stdio,
            io: Io::default(),
            exit: watch::Sender::new(None),
            early_exit: None,
            ending: false,
            reports: None,
            plan: None,
            resized: None,
            stdin_closed: false,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// One step in its life, if that is possible now.
    pub(super) fn step(&mut self, step: Step) -> Result<()> {
        self.state = self.state.next(step)?;
        Ok(())
    }

    /// It is there now. What the client asked for before applies.
    pub(super) fn run(&mut self, handle: sandbox::Process, mut io: Io) -> Result<()> {
        if let Some(size) = self.resized {
            io.resize(size)?;
        }
        if self.stdin_closed {
            io.close_stdin();
        }
        self.pid = u32::try_from(handle.pid.0).unwrap_or_default();
        self.handle = Some(Arc::new(handle));
        self.io = io;
        Ok(())
    }

    /// How it ended, if it did and that was told.
    pub(super) fn exited(&self) -> Option<Exit> {
        *self.exit.borrow()
    }
}
