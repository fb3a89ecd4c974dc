//! The states of a process with the data that each has, and every step from one
//! state to another. Nothing outside this file changes a state.
//!
//! ```text
//!   an exec                          a container's init
//!   Planned ──────► Spawning         Created ──────► Starting
//!      │  start_exec  │  │              │  start_init │  │
//!      │              │  │ attach       │             │  │ started
//!      │              │  └─────────► Running ◄────────│──┘
//!      │              │               │ │ ▲           │
//!      │              │         pause │ │ │ resume    │
//!      │              │               ▼ │ │           │
//!      │              │            Paused┘            │
//!      │              │   report_exit │ │             │
//!      │              │               ▼ ▼             │
//!      │              │ exit        Ending ◄──────────│── Created (report_exit)
//!      │              ▼               │ exit          ▼
//!      │           Stopped ◄──────────┴──────────── Stopped
//!      │ delete       │ delete
//!      └──────────► Deleting
//! ```
//!
//! An exit has two steps. `report_exit`: the process has ended, and the events
//! and the output that come before its exit are being published. `exit`: the
//! exit is published. Clients see the end with the first step, as runc's shim
//! shows it. containerd 1.6 and 1.7 lose an exit that is published while they
//! start and load its container, unless State says before that it has stopped.
//! A process whose start is not published yet keeps a reported exit until then
//! (`early`). If no exit was reported, `exit` stops the process from any state
//! in which it lives: its start has failed, or boot does not report its end.
//!
//! Only a container's init is paused: its exec'd processes are frozen with it
//! and show its state.

use std::mem;
use std::sync::Arc;

use containerd_shim_protos::api::Status;
use sandbox_core::sandbox::Process;
use sandbox_core::spec::plan::{ProcessPlan, Terminal};

use crate::error::{Error, Result};
use crate::exit::Exit;

/// The state of a process.
#[derive(Debug)]
pub(super) enum State {
    /// An exec that the shim has not requested from boot.
    Planned { plan: Box<ProcessPlan>, asked: Asked },
    /// An exec that boot is making. `early`: the status of an exit that was
    /// reported before its start was published.
    Spawning { asked: Asked, early: Option<u32> },
    /// An init that waits at its gate.
    Created(Program),
    /// An init whose gate boot is opening.
    Starting { program: Program, early: Option<u32> },
    /// A process that runs.
    Running(Program),
    /// A process whose container's cgroup is frozen.
    Paused(Program),
    /// A process that has ended and whose exit is not published yet. `before`:
    /// its status when it ended.
    Ending { program: Program, before: Status, exit: Exit },
    /// A process whose exit is published, or that never ran.
    Stopped(Exit),
    /// A process that is being deleted. An exec may be deleted before it ran.
    Deleting(Option<Exit>),
}

/// The program of a process.
#[derive(Debug)]
pub(super) enum Program {
    /// A process of its own, to which signals are sent.
    Process(Arc<Process>),
    /// boot, which stands in for a pause process. `exits_with`: the status to
    /// report, however it dies, once a client has asked it to end.
    Pause { exits_with: Option<u32> },
}

/// The client's requests from before there is a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Asked {
    /// The size of its terminal.
    pub(super) size: Option<Terminal>,
    /// Whether the client will write no more.
    pub(super) stdin_closed: bool,
}

/// The effect of a reported exit.
#[derive(Debug, PartialEq)]
pub(super) enum Reported {
    /// None: there is no such process, or its exit is known.
    Stray,
    /// The exit is kept until the start of its process is published.
    Kept,
    /// The process is `Ending` from now on.
    Ending(Exit),
}

impl State {
    /// Begins to start an exec. Returns its plan.
    pub(super) fn start_exec(&mut self) -> Result<Box<ProcessPlan>> {
        self.step(|state| match state {
            Self::Planned { mut plan, asked } => {
                if let (Some(terminal), Some(size)) = (&mut plan.terminal, asked.size) {
                    *terminal = size;
                }
                (Self::Spawning { asked, early: None }, Ok(plan))
            }
            state => state.refuse("start"),
        })
    }

    /// Attaches the process of an exec. `apply` carries out the client's
    /// earlier requests; if it fails, the state stays. Returns the status of an
    /// early exit, which the caller reports once the start is published.
    pub(super) fn attach(
        &mut self,
        process: Arc<Process>,
        apply: impl FnOnce(Asked) -> Result<()>,
    ) -> Result<Option<u32>> {
        self.step(|state| match state {
            Self::Spawning { asked, early } => match apply(asked) {
                Ok(()) => (Self::Running(Program::Process(process)), Ok(early)),
                Err(error) => (Self::Spawning { asked, early }, Err(error)),
            },
            state => state.refuse("start"),
        })
    }

    /// Begins to start an init, before boot is asked to open its gate.
    pub(super) fn start_init(&mut self) -> Result<()> {
        self.step(|state| match state {
            Self::Created(program) => (Self::Starting { program, early: None }, Ok(())),
            state => state.refuse("start"),
        })
    }

    /// Records that the gate is open. Returns the status of an early exit, as
    /// `attach` does.
    pub(super) fn started(&mut self) -> Result<Option<u32>> {
        self.step(|state| match state {
            Self::Starting { program, early } => (Self::Running(program), Ok(early)),
            state => state.refuse("start"),
        })
    }

    /// Pauses by `freeze`; if that fails the state stays.
    pub(super) fn pause(&mut self, freeze: impl FnOnce() -> Result<()>) -> Result<()> {
        self.step(|state| match state {
            Self::Running(program) => match freeze() {
                Ok(()) => (Self::Paused(program), Ok(())),
                Err(error) => (Self::Running(program), Err(error)),
            },
            state => state.refuse("pause"),
        })
    }

    /// Resumes by `thaw`; if that fails the state stays. A process that ended
    /// while it was frozen may be resumed too, as its container would otherwise
    /// stay frozen.
    pub(super) fn resume(&mut self, thaw: impl FnOnce() -> Result<()>) -> Result<()> {
        self.step(|state| match state {
            Self::Paused(program) => match thaw() {
                Ok(()) => (Self::Running(program), Ok(())),
                Err(error) => (Self::Paused(program), Err(error)),
            },
            Self::Ending { program, before: Status::PAUSED, exit } => match thaw() {
                Ok(()) => (Self::Ending { program, before: Status::RUNNING, exit }, Ok(())),
                Err(error) => (Self::Ending { program, before: Status::PAUSED, exit }, Err(error)),
            },
            state => state.refuse("resume"),
        })
    }

    /// Records the report that the process, or boot itself, has ended.
    pub(super) fn report_exit(&mut self, status: u32) -> Reported {
        match self {
            Self::Spawning { early, .. } | Self::Starting { early, .. } => {
                return match early.replace(status) {
                    None => Reported::Kept,
                    Some(_) => Reported::Stray,
                };
            }
            // boot has no process for a planned exec.
            Self::Planned { .. } | Self::Ending { .. } | Self::Stopped(_) | Self::Deleting(_) => {
                return Reported::Stray;
            }
            Self::Created(_) | Self::Running(_) | Self::Paused(_) => {}
        }
        let before = self.shown();
        let ending = self.step(|state| match state {
            Self::Created(program) | Self::Running(program) | Self::Paused(program) => {
                let exit = Exit::now(program.exit_status(status));
                (Self::Ending { program, before, exit }, Ok(exit))
            }
            state => state.refuse("end"),
        });
        ending.map_or(Reported::Stray, Reported::Ending)
    }

    /// Returns the exit, which the caller publishes. A reported exit counts,
    /// not `assumed`.
    pub(super) fn exit(&mut self, assumed: Exit) -> Result<Exit> {
        self.step(|state| match state {
            Self::Ending { exit, .. } => (Self::Stopped(exit), Ok(exit)),
            Self::Spawning { .. }
            | Self::Created(_)
            | Self::Starting { .. }
            | Self::Running(_)
            | Self::Paused(_) => (Self::Stopped(assumed), Ok(assumed)),
            state => state.refuse("end"),
        })
    }

    /// Begins to delete the process. Returns its exit, if it ever ran.
    pub(super) fn delete(&mut self) -> Result<Option<Exit>> {
        self.step(|state| match state {
            Self::Planned { .. } => (Self::Deleting(None), Ok(None)),
            Self::Stopped(exit) => (Self::Deleting(Some(exit)), Ok(Some(exit))),
            state => state.refuse("delete"),
        })
    }

    /// Refuses a Delete that the state does not allow. An init at its gate is
    /// killed first.
    pub(super) fn check_delete(&self) -> Result<()> {
        match self {
            Self::Planned { .. } | Self::Stopped(_) => Ok(()),
            state if state.is_at_gate() => Ok(()),
            state => Err(state.refusal("delete")),
        }
    }

    /// Whether this is an init that was never started and whose exit is not
    /// published.
    pub(super) fn is_at_gate(&self) -> bool {
        matches!(self, Self::Created(_) | Self::Ending { before: Status::CREATED, .. })
    }

    /// Whether a Start is under way.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self, Self::Spawning { .. } | Self::Starting { .. })
    }

    /// Whether the process was started and its exit is not published.
    pub(super) fn is_alive(&self) -> bool {
        self.is_starting()
            || matches!(self, Self::Running(_) | Self::Paused(_) | Self::Ending { .. })
    }

    /// Whether its cgroup is frozen.
    pub(super) fn is_frozen(&self) -> bool {
        matches!(self, Self::Paused(_) | Self::Ending { before: Status::PAUSED, .. })
    }

    /// Whether it has ended, published or not.
    pub(super) fn has_ended(&self) -> bool {
        self.is_ending() || self.is_exit_published()
    }

    /// Whether it has ended and its exit is not published yet.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self, Self::Ending { .. })
    }

    /// Whether its exit is published, or will never be.
    pub(super) fn is_exit_published(&self) -> bool {
        matches!(self, Self::Stopped(_) | Self::Deleting(_))
    }

    /// Returns the exit, once the process has ended.
    pub(super) fn known_exit(&self) -> Option<Exit> {
        match self {
            Self::Ending { exit, .. } | Self::Stopped(exit) => Some(*exit),
            Self::Deleting(exit) => *exit,
            _ => None,
        }
    }

    /// Returns the status that clients see. It changes only after a Start has
    /// succeeded, and as soon as the process has ended.
    pub(super) fn shown(&self) -> Status {
        match self {
            Self::Planned { .. }
            | Self::Spawning { .. }
            | Self::Created(_)
            | Self::Starting { .. } => Status::CREATED,
            Self::Running(_) => Status::RUNNING,
            Self::Paused(_) => Status::PAUSED,
            Self::Ending { .. } | Self::Stopped(_) | Self::Deleting(_) => Status::STOPPED,
        }
    }

    /// Returns the process that signals are sent to, while there is one.
    pub(super) fn process(&self) -> Option<&Arc<Process>> {
        match self {
            Self::Created(program)
            | Self::Starting { program, .. }
            | Self::Running(program)
            | Self::Paused(program)
            | Self::Ending { program, .. } => match program {
                Program::Process(process) => Some(process),
                Program::Pause { .. } => None,
            },
            Self::Planned { .. } | Self::Spawning { .. } | Self::Stopped(_) | Self::Deleting(_) => {
                None
            }
        }
    }

    /// Returns the client's requests, as long as there is no process.
    pub(super) fn asked(&mut self) -> Option<&mut Asked> {
        match self {
            Self::Planned { asked, .. } | Self::Spawning { asked, .. } => Some(asked),
            _ => None,
        }
    }

    /// Makes a pause process report this status, however it dies.
    pub(super) fn end_pause_with(&mut self, status: u32) {
        if let Self::Created(program)
        | Self::Starting { program, .. }
        | Self::Running(program)
        | Self::Paused(program) = self
            && let Program::Pause { exits_with } = program
        {
            *exits_with = Some(status);
        }
    }

    /// Takes a step, if `next` has one from this state.
    fn step<T>(&mut self, next: impl FnOnce(Self) -> (Self, Result<T>)) -> Result<T> {
        let (after, outcome) = next(mem::replace(self, Self::Deleting(None)));
        *self = after;
        outcome
    }

    fn refuse<T>(self, verb: &str) -> (Self, Result<T>) {
        let error = self.refusal(verb);
        (self, Err(error))
    }

    fn refusal(&self, verb: &str) -> Error {
        Error::state(format!("cannot {verb} a {} process", self.name()))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Planned { .. } | Self::Created(_) => "created",
            Self::Spawning { .. } | Self::Starting { .. } => "starting",
            Self::Running(_) => "running",
            Self::Paused(_) => "paused",
            Self::Ending { .. } => "stopping",
            Self::Stopped(_) => "stopped",
            Self::Deleting(_) => "deleted",
        }
    }
}

impl Program {
    fn exit_status(&self, reported: u32) -> u32 {
        match self {
            Self::Pause { exits_with: Some(status) } => *status,
            Self::Pause { exits_with: None } | Self::Process(_) => reported,
        }
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "lifecycle_properties.rs"]
mod properties;
