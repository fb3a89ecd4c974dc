//! The states of a process, and which step leads from where to where.
//!
//! ```text
//!              Start            Started            Pause
//!   Created ──────────► Starting ───────► Running ───────► Paused
//!    │  │                  │                │  ▲              │ │
//!    │  │ Exit             │ Exit           │  └──────────────┘ │
//!    │  │                  │                │      Resume       │
//!    │  │                  ▼                │ Exit              │ Exit
//!    │  └──────────────► Stopped ◄──────────┴───────────────────┘
//!    │ Delete              │ Delete
//!    ▼                     ▼
//!   Deleting ◄─────────────┘
//! ```
//!
//! Only a container's init is paused; its exec'd processes are frozen with it
//! and show its state. The table is the only writer.

use containerd_shim_protos::api::Status;

use crate::error::{Error, Result};

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Made: an init waits at its gate, an exec has not been asked of boot.
    Created,
    /// A Start is under way.
    Starting,
    /// It runs.
    Running,
    /// Its container's cgroup is frozen.
    Paused,
    /// It has exited, and that was told.
    Stopped,
    /// A Delete is under way; nobody sees it any more.
    Deleting,
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Start,
    Started,
    Pause,
    Resume,
    Exit,
    Delete,
}

impl State {
    /// The state after a step, or why it is not possible now.
    pub(crate) fn next(self, step: Step) -> Result<State> {
        use State::{Created, Deleting, Paused, Running, Starting, Stopped};
        match (self, step) {
            (Created, Step::Start) => Ok(Starting),
            (Starting, Step::Started) => Ok(Running),
            (Running, Step::Pause) => Ok(Paused),
            (Paused, Step::Resume) => Ok(Running),
            (Created | Starting | Running | Paused, Step::Exit) => Ok(Stopped),
            (Created | Stopped, Step::Delete) => Ok(Deleting),
            (state, step) => {
                Err(Error::state(format!("cannot {} a {} process", step.verb(), state.word())))
            }
        }
    }

    /// Whether there is a process that may still exit.
    pub(crate) fn is_alive(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleting => "deleted",
        }
    }
}

impl Step {
    fn verb(self) -> &'static str {
        match self {
            Self::Start | Self::Started => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Exit => "end",
            Self::Delete => "delete",
        }
    }
}

impl From<State> for Status {
    /// As clients see it. A Start counts from its success on.
    fn from(state: State) -> Self {
        match state {
            State::Created | State::Starting => Self::CREATED,
            State::Running => Self::RUNNING,
            State::Paused => Self::PAUSED,
            State::Stopped | State::Deleting => Self::STOPPED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn walk(steps: &[Step]) -> Result<State> {
        steps.iter().try_fold(State::Created, |state, step| state.next(*step))
    }

    #[test]
    fn a_whole_life() {
        use Step::{Delete, Exit, Pause, Resume, Start, Started};
        assert_eq!(walk(&[Start, Started, Pause, Resume, Exit, Delete]).unwrap(), State::Deleting);
        assert_eq!(walk(&[Start, Started, Pause, Exit]).unwrap(), State::Stopped);
        assert_eq!(walk(&[Exit, Delete]).unwrap(), State::Deleting);
        assert_eq!(walk(&[Delete]).unwrap(), State::Deleting);
        assert_eq!(walk(&[Start, Exit, Delete]).unwrap(), State::Deleting);
    }

    #[test]
    fn what_is_not_possible_is_a_failed_precondition() {
        use Step::{Delete, Exit, Pause, Resume, Start, Started};
        for steps in [
            &[Start, Start][..],
            &[Start, Started, Start],
            &[Start, Started, Delete],
            &[Start, Started, Pause, Delete],
            &[Start, Delete],
            &[Pause],
            &[Resume],
            &[Start, Started, Resume],
            &[Exit, Start],
            &[Exit, Exit],
            &[Exit, Delete, Delete],
        ] {
            assert_eq!(walk(steps).unwrap_err().code, Code::FAILED_PRECONDITION, "{steps:?}");
        }
        let error = walk(&[Start, Started, Delete]).unwrap_err().to_string();
        assert_eq!(error, "cannot delete a running process");
    }
}
