//! The shim's state: its sandbox, its containers and their processes. It is
//! behind the only lock of the task service. All tasks run on one thread and
//! none holds the lock over an await, so it is never contended.
//!
//! ```text
//!            reserve              fill                remove
//!   no slot ─────────► Reserved ───────► Made ─────────────────► no slot
//!                        │   ▲ cancel      (Delete)
//!                        │   └─ raises the flag that its Create waits on
//!                        └──────────────────────────────────────► no slot
//!                                remove (the Create failed)
//!
//!            begin               made               take
//!      None ────────► Making ──────────► Made ─────────────────► None
//!                        └───────────────────────────────────────► None
//!                                failed
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use sandbox_core::types::{HostPid, ProcessId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::boot::{BootClient, Relevance};
use super::container::{Container, Process};
use super::pod::Pod;
use crate::error::{Error, Result};

#[derive(Default)]
pub(crate) struct Table {
    pub(super) sandbox: Sandbox,
    /// The sandbox of the Sandbox service, if that made it.
    pub(crate) pod: Option<Pod>,
    slots: HashMap<String, Slot>,
    /// The task that tears the last sandbox down.
    pub(super) tear_down: Option<JoinHandle<()>>,
    /// Whether a Shutdown came while there were containers whose sandbox is
    /// gone.
    pub(super) shutdown_pending: bool,
    /// Whether the shim is about to end, so that it makes nothing more.
    pub(super) is_ending: bool,
}

/// The one sandbox of this shim.
#[derive(Default)]
pub(super) enum Sandbox {
    /// Not made yet, or torn down with its last container.
    #[default]
    None,
    /// The first Create, or StartSandbox, is making it.
    Making,
    Made(Arc<BootClient>),
}

enum Slot {
    /// A Create that is under way.
    Reserved(Reserved),
    Made(Box<Container>),
}

#[derive(Default)]
struct Reserved {
    /// The status of an exit that was reported already.
    early: Option<u32>,
    /// Whether the client has gone.
    cancelled: watch::Sender<bool>,
}

/// The sandbox's steps.
impl Table {
    /// Records that a request makes the sandbox.
    pub(crate) fn begin_sandbox(&mut self) {
        self.sandbox = Sandbox::Making;
    }

    /// Records that the sandbox is made.
    pub(crate) fn sandbox_made(&mut self, boot: Arc<BootClient>) {
        self.sandbox = Sandbox::Made(boot);
    }

    /// Records that the sandbox could not be made.
    pub(crate) fn sandbox_failed(&mut self) {
        self.sandbox = Sandbox::None;
    }

    /// Records that the sandbox is being torn down.
    pub(super) fn take_sandbox(&mut self) {
        self.sandbox = Sandbox::None;
    }

    /// Whether there is a sandbox, or a request makes one: also one whose root container is
    /// deleted, and that others still need.
    pub(crate) fn has_any_sandbox(&self) -> bool {
        !matches!(self.sandbox, Sandbox::None)
    }

    /// Whether this is the shim's sandbox.
    pub(super) fn has_sandbox(&self, boot: &Arc<BootClient>) -> bool {
        matches!(&self.sandbox, Sandbox::Made(made) if Arc::ptr_eq(made, boot))
    }
}

/// The slots' steps.
impl Table {
    /// Takes an ID for a Create. Returns a flag that is raised when the Create
    /// is cancelled.
    pub(super) fn reserve(&mut self, id: &str) -> Result<watch::Receiver<bool>> {
        if self.slots.contains_key(id) {
            return Err(Error::exists(format!("container {id} already exists")));
        }
        let reserved = Reserved::default();
        let cancelled = reserved.cancelled.subscribe();
        self.slots.insert(id.to_string(), Slot::Reserved(reserved));
        Ok(cancelled)
    }

    /// Cancels a Create that is under way. Returns a future that ends when the
    /// Create is rolled back; `None` if there is no such Create.
    pub(super) fn cancel(&mut self, id: &str) -> Option<impl Future<Output = ()> + use<>> {
        let Some(Slot::Reserved(reserved)) = self.slots.get(id) else { return None };
        reserved.cancelled.send_replace(true);
        let mut cancelled = reserved.cancelled.subscribe();
        // The slot is removed, and the sender with it.
        Some(async move { while cancelled.changed().await.is_ok() {} })
    }

    /// Puts a container into the slot that its Create had taken. Returns the
    /// status of an exit that was reported meanwhile.
    pub(super) fn fill(&mut self, container: Container) -> Option<u32> {
        let before = self.slots.insert(container.id.clone(), Slot::Made(Box::new(container)));
        match before {
            Some(Slot::Reserved(reserved)) => reserved.early,
            Some(Slot::Made(_)) | None => None,
        }
    }

    /// Keeps the exit of a container that is still being created. `None` if
    /// there is no such container.
    pub(super) fn report_early_exit(&mut self, id: &str, status: u32) -> Option<Relevance> {
        let Some(Slot::Reserved(reserved)) = self.slots.get_mut(id) else { return None };
        Some(match reserved.early.replace(status) {
            None => Relevance::Known,
            Some(_) => Relevance::Stray,
        })
    }

    /// Frees an ID.
    pub(super) fn remove(&mut self, id: &str) {
        self.slots.remove(id);
    }
}

impl Table {
    /// Refuses what would be left behind by a shim that is about to end.
    pub(crate) fn check_lives(&self) -> Result<()> {
        match self.is_ending {
            false => Ok(()),
            true => Err(Error::state(
                "this shim is ending, since containerd has shut it down; create the container anew",
            )),
        }
    }

    /// Returns the IDs of the containers that are being created.
    pub(super) fn reserved(&self) -> Vec<String> {
        let reserved =
            |(id, slot): (&String, &Slot)| matches!(slot, Slot::Reserved(_)).then(|| id.clone());
        self.slots.iter().filter_map(reserved).collect()
    }

    /// Whether an ID is taken, by a container or by a Create.
    pub(super) fn has(&self, id: &str) -> bool {
        self.slots.contains_key(id)
    }

    /// Whether nothing needs the sandbox any more: there is no container, no
    /// Create and no pod.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty() && !self.has_pod()
    }

    fn has_pod(&self) -> bool {
        self.pod.as_ref().is_some_and(Pod::is_alive)
    }

    /// Whether the sandbox still has an owner: its root container, a client that
    /// waits for that, or the client of the Sandbox service.
    pub(super) fn has_owner(&self) -> bool {
        if self.has_pod() {
            return true;
        }
        match &self.sandbox {
            Sandbox::None => false,
            Sandbox::Making => !self.slots.values().all(Slot::is_cancelled),
            Sandbox::Made(boot) => self.has(&boot.root),
        }
    }

    /// Returns the pod, if it has this ID.
    pub(crate) fn pod(&mut self, id: &str) -> Result<&mut Pod> {
        let pod = self.pod.as_mut().filter(|pod| pod.has_id(id));
        pod.ok_or_else(|| Error::not_found(format!("sandbox {id} does not exist")))
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

    pub(super) fn process(&mut self, id: &ProcessId) -> Result<&mut Process> {
        self.container(&id.container)?.process(id.exec.as_deref())
    }

    pub(super) fn containers(&self) -> impl Iterator<Item = &Container> {
        self.slots.values().filter_map(|slot| match slot {
            Slot::Made(container) => Some(&**container),
            Slot::Reserved(_) => None,
        })
    }

    /// Returns the ID and the init's PID of each container that has an init.
    pub(super) fn inits(&self) -> Vec<(String, HostPid)> {
        let init = |c: &Container| c.init.state.process().map(|init| (c.id.clone(), init.pid));
        self.containers().filter_map(init).collect()
    }

    /// Refuses a request to boot while the root container is frozen, and boot
    /// with it.
    pub(super) fn check_resumed(&self, boot: &BootClient) -> Result<()> {
        if self.is_frozen(boot) {
            return Err(Error::state(format!("sandbox {} is paused; resume it first", boot.root)));
        }
        Ok(())
    }

    /// Whether boot is frozen.
    pub(super) fn is_frozen(&self, boot: &BootClient) -> bool {
        let slot = self.slots.get(&boot.root);
        matches!(slot, Some(Slot::Made(container)) if container.init.state.is_frozen())
    }
}

impl Slot {
    fn is_cancelled(&self) -> bool {
        matches!(self, Slot::Reserved(reserved) if *reserved.cancelled.borrow())
    }
}
