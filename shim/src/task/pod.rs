//! A sandbox that containerd's Sandbox service asked for, its states with the
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

/// A sandbox that the Sandbox service asked for.
pub(crate) struct Pod {
    id: String,
    state: PodState,
    pub(crate) created: SystemTime,
    /// Set once; any number of clients wait.
    exit: watch::Sender<Option<Exit>>,
    /// StopSandbox was asked for: a start is cancelled, and the end is no failure.
    stopping: watch::Sender<bool>,
    /// Held by the request that starts or stops it: that takes a while, and
    /// others wait.
    turn: Arc<tokio::sync::Mutex<()>>,
    files: PodFiles,
    /// The spec that it was made from, which StartSandbox returns.
    spec: Any,
}

/// What it is doing.
pub(crate) enum PodState {
    Created(Box<CreatePlan>),
    Starting,
    Ready(Arc<BootClient>),
    Ended(Exit),
}

/// What StartSandbox works with.
pub(crate) struct PodStart {
    pub(crate) plan: Box<CreatePlan>,
    pub(crate) files: PodFiles,
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Pod {
    pub(crate) fn new(id: &str, plan: CreatePlan, files: PodFiles, spec: Any) -> Self {
        Self {
            id: id.to_string(),
            state: PodState::Created(Box::new(plan)),
            created: SystemTime::now(),
            exit: watch::Sender::new(None),
            stopping: watch::Sender::new(false),
            turn: Arc::default(),
            files,
            spec,
        }
    }

    /// Begins to start it.
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

    /// boot runs. Returns the spec that the sandbox was made from.
    pub(crate) fn started(&mut self, boot: Arc<BootClient>) -> Result<Any> {
        match self.state {
            PodState::Starting => {
                self.state = PodState::Ready(boot);
                Ok(std::mem::take(&mut self.spec))
            }
            _ => Err(self.refusal()),
        }
    }

    /// It has ended, from whatever state; a second end changes nothing.
    pub(crate) fn end(&mut self) {
        if let PodState::Ended(_) = self.state {
            return;
        }
        let exit = Exit::now(if *self.stopping.borrow() { 0 } else { KILLED });
        self.state = PodState::Ended(exit);
        self.exit.send_replace(Some(exit));
    }

    /// Cancels a start that is under way, and has the end count as no failure.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    pub(crate) fn state(&self) -> &PodState {
        &self.state
    }

    /// Returns the right to start or stop it, to be waited for.
    pub(crate) fn turn(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.turn.clone()
    }

    /// Returns what WaitSandbox waits on.
    pub(crate) fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    /// Returns what its containers get, once it runs.
    pub(crate) fn files(&self) -> Result<&PodFiles> {
        match &self.state {
            PodState::Ready(_) => Ok(&self.files),
            _ => Err(self.refusal()),
        }
    }

    pub(super) fn has_id(&self, id: &str) -> bool {
        self.id == id
    }

    /// Whether it is there until StopSandbox, containers or not.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.state, PodState::Ended(_))
    }

    /// Returns the refusal of what it cannot do in this state.
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
