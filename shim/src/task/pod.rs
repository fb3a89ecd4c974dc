//! A sandbox that was made by containerd's Sandbox service: its states with the
//! data of each, and every step from one to another.
//!
//! ```text
//!   CreateSandbox         StartSandbox
//!  ──────────────► Created ──────────► Starting ─────────► Ready
//!                     │                   │ it fails,        │ StopSandbox,
//!                     │ StopSandbox       │ StopSandbox      │ boot's end
//!                     │                   ▼                  │
//!                     └────────────────► Ended ◄─────────────┘
//! ```

use std::sync::Arc;
use std::time::SystemTime;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use tokio::sync::watch;

use super::boot::BootClient;
use super::create_plan::CreatePlan;
use super::pod_files::PodFiles;
use crate::error::{Error, Result};
use crate::exit::{Exit, KILLED};

/// A sandbox that the Sandbox service made.
pub(crate) struct Pod {
    id: String,
    state: PodState,
    pub(crate) created: SystemTime,
    /// The exit, set once. Any number of clients wait for it.
    exit: watch::Sender<Option<Exit>>,
    /// Whether StopSandbox was called: a start is then cancelled, and the end
    /// is no failure.
    stopping: watch::Sender<bool>,
    /// The lock of the request that starts or stops it. This takes a while, and
    /// others wait.
    turn: Arc<tokio::sync::Mutex<()>>,
    files: PodFiles,
    /// Whether the parent of its cgroup is the pod's: it counts this pod's containers and
    /// no others.
    pub(crate) has_cgroup_of_its_own: bool,
    /// The spec that it is made from, which StartSandbox returns.
    spec: Any,
}

/// The state of a pod.
pub(crate) enum PodState {
    Created(Box<CreatePlan>),
    Starting,
    Ready(Arc<BootClient>),
    Ended(Exit),
}

/// The inputs of a start.
pub(crate) struct PodStart {
    pub(crate) plan: Box<CreatePlan>,
    pub(crate) files: PodFiles,
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Pod {
    pub(crate) fn new(
        id: &str,
        plan: CreatePlan,
        files: PodFiles,
        has_cgroup_of_its_own: bool,
        spec: Any,
    ) -> Self {
        Self {
            id: id.to_string(),
            state: PodState::Created(Box::new(plan)),
            created: SystemTime::now(),
            exit: watch::Sender::new(None),
            stopping: watch::Sender::new(false),
            turn: Arc::default(),
            files,
            has_cgroup_of_its_own,
            spec,
        }
    }

    /// Begins to start the pod.
    pub(crate) fn start(&mut self) -> Result<PodStart> {
        match std::mem::replace(&mut self.state, PodState::Starting) {
            PodState::Created(plan) => Ok(PodStart {
                plan,
                files: self.files.clone(),
                stopping: self.stopping.subscribe(),
            }),
            state => {
                self.state = state;
                Err(self.refusal())
            }
        }
    }

    /// Records that boot is up. Returns the spec that the sandbox was made
    /// from.
    pub(crate) fn started(&mut self, boot: Arc<BootClient>) -> Result<Any> {
        match self.state {
            PodState::Starting => {
                self.state = PodState::Ready(boot);
                Ok(std::mem::take(&mut self.spec))
            }
            _ => Err(self.refusal()),
        }
    }

    /// Records the pod's end, from any state. A second end changes nothing.
    pub(crate) fn end(&mut self) {
        if let PodState::Ended(_) = self.state {
            return;
        }
        let exit = Exit::now(if *self.stopping.borrow() { 0 } else { KILLED });
        self.state = PodState::Ended(exit);
        self.exit.send_replace(Some(exit));
    }

    /// Cancels a start that is under way, and makes the end count as no
    /// failure.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    pub(crate) fn state(&self) -> &PodState {
        &self.state
    }

    /// Returns the lock that a request takes to start or stop the pod.
    pub(crate) fn turn(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.turn.clone()
    }

    /// Returns the channel on which WaitSandbox waits.
    pub(crate) fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    /// Returns the files for its containers, once it runs.
    pub(crate) fn files(&self) -> Result<&PodFiles> {
        match &self.state {
            PodState::Ready(_) => Ok(&self.files),
            _ => Err(self.refusal()),
        }
    }

    pub(super) fn has_id(&self, id: &str) -> bool {
        self.id == id
    }

    /// Whether the pod stays until StopSandbox, with or without containers.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.state, PodState::Ended(_))
    }

    /// Returns the error for a step that this state does not allow.
    pub(crate) fn refusal(&self) -> Error {
        Error::state(format!("sandbox {} is {}", self.id, self.state.name()))
    }
}

impl PodState {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Created(_) => "not started yet",
            Self::Starting => "being started",
            Self::Ready(_) => "running",
            Self::Ended(_) => "at its end",
        }
    }
}
