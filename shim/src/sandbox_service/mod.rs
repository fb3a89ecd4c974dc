//! containerd's Sandbox service, for a runtime with `sandboxer = "shim"`: the
//! sandbox is asked for itself, and not by way of a pause container.
//!
//! ```text
//!   CreateSandbox         StartSandbox
//!  ──────────────► Created ──────────► Starting ─────────► Ready
//!                     │                   │ it fails,        │ StopSandbox,
//!                     │ StopSandbox       │ StopSandbox      │ boot's end
//!                     │                   ▼                  │
//!                     └────────────────► Ended ◄─────────────┘
//! ```
//!
//! [`service`] lists the requests. What a sandbox is made from is either the
//! pod's configuration as CRI has it ([`spec`]) or a spec in the bundle; what
//! containerd leaves to such a sandbox, [`files`] provides.

mod cri {
    //! Generated from `cri.proto`.
    #![allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
    include!(concat!(env!("OUT_DIR"), "/protos/mod.rs"));
}
mod create;
pub(crate) mod files;
mod metrics;
mod platform;
mod service;
mod shutdown;
mod spec;
mod start;
mod status;
mod stop;
mod wait;

use std::sync::Arc;
use std::time::SystemTime;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::watch;

use self::files::Files;
use crate::error::{Error, Result};
use crate::task::{Boot, Exit, KILLED, Order, Table};

pub(crate) use service::services;
pub(crate) use shutdown::end_shim;

/// A sandbox that was asked for itself.
pub(crate) struct Pod {
    id: String,
    state: State,
    created: SystemTime,
    /// Set once; any number of waiters.
    exit: watch::Sender<Option<Exit>>,
    /// StopSandbox was asked for: a start is given up, and the end is no failure.
    stopping: watch::Sender<bool>,
    /// Whose turn it is to start or to stop it: that takes a while, and who comes
    /// meanwhile waits.
    turn: Arc<tokio::sync::Mutex<()>>,
    files: Files,
    /// What it was made from, for StartSandbox to tell.
    spec: Any,
}

enum State {
    Created(Box<Order>),
    Starting,
    Ready(Arc<Boot>),
    Ended,
}

/// A step in its life.
enum Step {
    Start,
    Started(Arc<Boot>),
    End,
}

impl Pod {
    fn new(id: &str, order: Order, files: Files, spec: Any) -> Self {
        Self {
            id: id.to_string(),
            state: State::Created(Box::new(order)),
            created: SystemTime::now(),
            exit: watch::Sender::new(None),
            stopping: watch::Sender::new(false),
            turn: Arc::default(),
            files,
            spec,
        }
    }

    /// One step, if that is possible now; any state may end. Start hands out
    /// what was ordered.
    fn step(&mut self, step: Step) -> Result<Option<Box<Order>>> {
        let before = std::mem::replace(&mut self.state, State::Ended);
        let (after, order, outcome) = match (before, step) {
            (State::Created(order), Step::Start) => (State::Starting, Some(order), Ok(())),
            (State::Starting, Step::Started(boot)) => (State::Ready(boot), None, Ok(())),
            (State::Ended, Step::End) => (State::Ended, None, Ok(())),
            (_, Step::End) => {
                let status = if *self.stopping.borrow() { 0 } else { KILLED };
                self.exit.send_replace(Some(Exit { status, at: SystemTime::now() }));
                (State::Ended, None, Ok(()))
            }
            (before, _) => {
                let said = format!("sandbox {} is {}", self.id, before.name());
                (before, None, Err(Error::state(said)))
            }
        };
        self.state = after;
        outcome.map(|()| order)
    }

    /// What its containers get, once it runs.
    pub(crate) fn files(&self) -> Result<&Files> {
        match &self.state {
            State::Ready(_) => Ok(&self.files),
            state => Err(Error::state(format!("sandbox {} is {}", self.id, state.name()))),
        }
    }

    pub(crate) fn has_id(&self, id: &str) -> bool {
        self.id == id
    }

    /// Whether it is there until StopSandbox, containers or not.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.state, State::Ended)
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Created(_) => "not started yet",
            Self::Starting => "being started",
            Self::Ready(_) => "running",
            Self::Ended => "at its end",
        }
    }
}

/// The sandbox, if it has this ID.
fn pod<'a>(table: &'a mut Table, id: &str) -> Result<&'a mut Pod> {
    let pod = table.pod.as_mut().filter(|pod| pod.has_id(id));
    pod.ok_or_else(|| Error::not_found(format!("sandbox {id} does not exist")))
}

fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    MessageField::some(Timestamp::from(at))
}
