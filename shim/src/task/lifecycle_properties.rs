//! Any sequence of requests, ends and deaths, against a model of what containerd expects of a
//! process. The model knows no states: it remembers what happened, as a client does.

use proptest::collection::vec;
use proptest::prelude::*;

use super::tests::{exec, init, process};
use super::*;

/// What happens to a process.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A Start comes.
    Start,
    /// boot has made the exec, or has opened the init's gate; if not, the step fails.
    Up(bool),
    /// A Pause or a Resume comes; the kernel does it, or fails.
    Pause(bool),
    Resume(bool),
    /// The process, or boot, is reported to have ended.
    Report(u8),
    /// Its exit is published; where none was reported, this one is assumed.
    Publish(u8),
    /// A Delete comes.
    Delete,
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Start),
        3 => any::<bool>().prop_map(Event::Up),
        2 => any::<bool>().prop_map(Event::Pause),
        2 => any::<bool>().prop_map(Event::Resume),
        2 => any::<u8>().prop_map(Event::Report),
        1 => any::<u8>().prop_map(Event::Publish),
        1 => Just(Event::Delete),
    ]
}

/// What happened so far.
#[derive(Clone, Debug, Default)]
struct Model {
    is_init: bool,
    start_was_asked: bool,
    is_up: bool,
    is_frozen: bool,
    /// The first report of a process that lives, the last of one that is being started.
    reported: Option<u32>,
    /// Whether the report waits for the start.
    is_early: bool,
    published: Option<u32>,
    is_deleted: bool,
}

impl Model {
    /// Whether there can be a process.
    fn lives(&self) -> bool {
        self.published.is_none() && !self.is_deleted && (self.is_init || self.start_was_asked)
    }

    /// Whether its end is known beyond what waits for its start.
    fn is_ending(&self) -> bool {
        self.reported.is_some() && !self.is_early
    }

    fn is_being_started(&self) -> bool {
        self.lives() && self.start_was_asked && !self.is_up
    }

    /// Its exit, as soon as that is known.
    fn exit(&self) -> Option<u32> {
        self.published.or(self.reported.filter(|_| !self.is_early))
    }

    fn shown(&self) -> Status {
        match (self.exit(), self.is_deleted) {
            (Some(_), _) | (_, true) => Status::STOPPED,
            _ if self.is_frozen => Status::PAUSED,
            _ if self.is_up => Status::RUNNING,
            _ => Status::CREATED,
        }
    }

    /// Lets something happen. Returns whether a client may have that; `None` if nobody is
    /// answered.
    fn happens(&mut self, event: Event) -> Option<bool> {
        let may = match event {
            Event::Start => {
                !self.start_was_asked
                    && self.published.is_none()
                    && !self.is_deleted
                    && !self.is_ending()
            }
            Event::Up(_) => self.is_being_started(),
            Event::Pause(_) => self.lives() && self.is_up && !self.is_frozen && !self.is_ending(),
            // Also of one that has ended meanwhile: its container would stay frozen.
            Event::Resume(_) => self.lives() && self.is_frozen,
            Event::Report(_) => return self.is_reported(event),
            Event::Publish(_) => self.lives(),
            Event::Delete => {
                !self.is_deleted
                    && (self.published.is_some() || !self.is_init && !self.start_was_asked)
            }
        };
        if !may {
            return Some(false);
        }
        match event {
            Event::Start => self.start_was_asked = true,
            Event::Up(works) => {
                self.is_up = works;
                // The caller reports what waited.
                if works && std::mem::take(&mut self.is_early) {
                    self.reported = None;
                }
                return Some(works);
            }
            Event::Pause(works) => {
                self.is_frozen = works;
                return Some(works);
            }
            Event::Resume(works) => {
                self.is_frozen = !works;
                return Some(works);
            }
            Event::Publish(assumed) => {
                self.published = Some(self.exit().unwrap_or(assumed.into()));
                self.is_frozen = false;
            }
            Event::Delete => self.is_deleted = true,
            Event::Report(_) => {}
        }
        Some(true)
    }

    fn is_reported(&mut self, event: Event) -> Option<bool> {
        let Event::Report(status) = event else { return None };
        if !self.lives() || self.is_ending() {
            return None;
        }
        self.is_early = self.is_being_started();
        self.reported = Some(status.into());
        None
    }
}

/// Lets the same happen to a process. Returns whether the request succeeded.
fn apply(state: &mut State, is_init: bool, event: Event) -> Option<bool> {
    let fails = || Err(Error::internal("it does not work"));
    let works = |works: bool| if works { Ok(()) } else { fails() };
    match event {
        Event::Start if is_init => Some(state.start_init().is_ok()),
        Event::Start => Some(state.start_exec().is_ok()),
        // A gate that does not open has the init ended.
        Event::Up(false) if is_init => Some(false),
        Event::Up(true) if is_init => Some(state.started().is_ok()),
        Event::Up(up) => Some(state.attach(process(), |_| works(up)).is_ok()),
        Event::Pause(up) => Some(state.pause(|| works(up)).is_ok()),
        Event::Resume(up) => Some(state.resume(|| works(up)).is_ok()),
        Event::Report(status) => {
            state.report_exit(status.into());
            None
        }
        Event::Publish(assumed) => Some(state.exit(Exit::now(assumed.into())).is_ok()),
        Event::Delete => Some(state.delete().is_ok()),
    }
}

proptest! {
    #[test]
    fn a_process_is_what_containerd_expects(is_init: bool, events in vec(events(), 0..40)) {
        let mut state = if is_init { init() } else { exec() };
        let mut model = Model { is_init, ..Model::default() };
        for (number, event) in events.iter().enumerate() {
            let what = || format!("{event:?}, number {number}, of {state:?} and {model:?}");
            let told = what();
            let (expected, answered) =
                (model.happens(*event), apply(&mut state, is_init, *event));
            prop_assert_eq!(answered, expected, "{}", told);
            prop_assert_eq!(state.shown(), model.shown(), "{}", told);
            let exit = state.known_exit().map(|exit| exit.status);
            prop_assert_eq!(exit, model.exit(), "{}", told);
            let is_to_publish = model.lives() && model.is_ending();
            prop_assert_eq!(state.is_ending(), is_to_publish, "{}", told);
            prop_assert_eq!(state.is_frozen(), model.is_frozen, "{}", told);
            prop_assert_eq!(
                state.is_exit_published(), model.published.is_some() || model.is_deleted,
                "{}", told
            );
            prop_assert!(!model.lives() || !state.is_exit_published(), "{}", told);
        }
        // Whatever happened, it ends, is told so once, and can be deleted.
        if model.lives() {
            prop_assert!(state.exit(Exit::killed()).is_ok(), "{:?}", state);
            prop_assert!(state.exit(Exit::killed()).is_err(), "{:?}", state);
        }
        if !model.is_deleted {
            prop_assert!(state.delete().is_ok(), "{:?}", state);
        }
        prop_assert!(state.delete().is_err(), "{:?}", state);
    }
}
