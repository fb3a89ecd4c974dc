use std::path::Path;

use oci_spec::runtime::Spec;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use sandbox_core::spec;
use sandbox_core::types::{HostPid, IdPool, Userns};

use super::*;
use crate::error::Code;

pub(super) fn process() -> Arc<Process> {
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    Arc::new(Process { pid: HostPid(getpid().as_raw_nonzero().get()), pidfd })
}

fn plan() -> Box<ProcessPlan> {
    let context = spec::Context {
        id: "c",
        bundle: Path::new("/"),
        rootfs_mounts_given: true,
        userns: Userns::Never,
        id_pool: IdPool::default(),
        baseline: Default::default(),
        tells_refusals: false,
        views: None,
        sandbox: None,
        other_containers: &[],
    };
    let plan = spec::plan(&Spec::default(), &context).unwrap();
    Box::new(plan.container.process.unwrap())
}

/// The states in which a test begins or ends: one of each.
pub(super) fn init() -> State {
    State::Created(Program::Process(process()))
}

pub(super) fn exec() -> State {
    State::Planned { plan: plan(), asked: Asked::default() }
}

fn starting() -> State {
    after(init(), |state| state.start_init())
}

fn running() -> State {
    after(starting(), |state| state.started())
}

fn paused() -> State {
    after(running(), |state| state.pause(|| Ok(())))
}

fn spawning() -> State {
    after(exec(), |state| state.start_exec())
}

fn running_exec() -> State {
    after(spawning(), |state| state.attach(process(), |_| Ok(())))
}

fn ending() -> State {
    let mut state = running();
    assert!(matches!(state.report_exit(3), Reported::Ending(exit) if exit.status == 3));
    state
}

fn stopped() -> State {
    after(running(), |state| state.exit(Exit::killed()))
}

fn deleting() -> State {
    after(stopped(), |state| state.delete())
}

fn after<T>(mut state: State, step: impl FnOnce(&mut State) -> Result<T>) -> State {
    assert!(step(&mut state).is_ok(), "{state:?}");
    state
}

type Step = fn(&mut State) -> Result<()>;

const START_INIT: (&str, Step) = ("start", |state| state.start_init());
const STARTED: (&str, Step) = ("start", |state| state.started().map(drop));
const START_EXEC: (&str, Step) = ("start", |state| state.start_exec().map(drop));
const ATTACH: (&str, Step) = ("start", |state| state.attach(process(), |_| Ok(())).map(drop));
const PAUSE: (&str, Step) = ("pause", |state| state.pause(|| Ok(())));
const RESUME: (&str, Step) = ("resume", |state| state.resume(|| Ok(())));
const EXIT: (&str, Step) = ("end", |state| state.exit(Exit::not_run()).map(drop));
const DELETE: (&str, Step) = ("delete", |state| state.delete().map(drop));

const STEPS: [(&str, Step); 8] =
    [START_INIT, STARTED, START_EXEC, ATTACH, PAUSE, RESUME, EXIT, DELETE];

/// A state's name in a refusal, the state, and the steps that it allows.
type Possible = (&'static str, fn() -> State, Vec<Step>);

fn states() -> Vec<Possible> {
    vec![
        ("created", init, vec![START_INIT.1, EXIT.1]),
        ("created", exec, vec![START_EXEC.1, DELETE.1]),
        ("starting", starting, vec![STARTED.1, EXIT.1]),
        ("starting", spawning, vec![ATTACH.1, EXIT.1]),
        ("running", running, vec![PAUSE.1, EXIT.1]),
        ("running", running_exec, vec![PAUSE.1, EXIT.1]),
        ("paused", paused, vec![RESUME.1, EXIT.1]),
        ("stopping", ending, vec![EXIT.1]),
        ("stopped", stopped, vec![DELETE.1]),
        ("deleted", deleting, vec![]),
    ]
}

#[test]
fn an_impossible_step_is_a_failed_precondition_and_changes_nothing() {
    for (word, state, possible) in states() {
        for (verb, step) in STEPS {
            let mut state = state();
            let before = format!("{:?}", std::mem::discriminant(&state));
            let outcome = step(&mut state);
            if possible.iter().any(|one| std::ptr::fn_addr_eq(*one, step)) {
                assert!(outcome.is_ok(), "{verb} a {word} process");
                continue;
            }
            let error = outcome.unwrap_err();
            assert_eq!(error.code, Code::FAILED_PRECONDITION);
            assert_eq!(error.to_string(), format!("cannot {verb} a {word} process"));
            assert_eq!(before, format!("{:?}", std::mem::discriminant(&state)));
        }
    }
}

#[test]
fn clients_see_that_a_process_has_ended_before_its_exit_is_published() {
    let shown = |state: State| state.shown();
    for state in [init(), exec(), starting(), spawning()] {
        assert_eq!(shown(state), Status::CREATED);
    }
    assert_eq!((shown(running()), shown(paused())), (Status::RUNNING, Status::PAUSED));
    for mut state in [init(), running(), paused(), running_exec()] {
        assert_eq!(state.known_exit(), None);
        let exit = ending_exit(&mut state, 3);
        assert!(state.has_ended() && state.is_ending() && !state.is_exit_published());
        assert_eq!((state.known_exit(), shown(state)), (Some(exit), Status::STOPPED));
    }
    for state in [stopped(), deleting()] {
        assert!(state.has_ended() && state.is_exit_published() && !state.is_alive());
        assert!(!state.is_ending());
        assert_eq!(state.known_exit().unwrap().status, crate::exit::KILLED);
        assert_eq!(shown(state), Status::STOPPED);
    }
}

#[test]
fn an_exit_is_reported_once() {
    for mut state in [exec(), ending(), stopped(), deleting()] {
        assert_eq!(state.report_exit(1), Reported::Stray);
    }
    for mut state in [running_exec(), paused(), init()] {
        assert!(matches!(state.report_exit(1), Reported::Ending(exit) if exit.status == 1));
        assert_eq!(state.report_exit(2), Reported::Stray);
    }
}

#[test]
fn an_exit_before_the_start_is_published_is_kept_until_then() {
    let mut state = starting();
    assert_eq!(state.report_exit(4), Reported::Kept);
    assert_eq!(state.report_exit(5), Reported::Stray);
    assert!(!state.has_ended());
    assert_eq!(state.started().unwrap(), Some(5));
    let mut state = spawning();
    assert_eq!(state.report_exit(6), Reported::Kept);
    assert_eq!(state.attach(process(), |_| Ok(())).unwrap(), Some(6));
}

/// Returns the exit that a report makes, with the time of the report.
fn ending_exit(state: &mut State, status: u32) -> Exit {
    match state.report_exit(status) {
        Reported::Ending(exit) => exit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reported_exit_counts_rather_than_what_the_shim_assumes() {
    assert_eq!(ending().exit(Exit::killed()).unwrap().status, 3);
    assert_eq!(running().exit(Exit::killed()).unwrap().status, crate::exit::KILLED);
}

#[test]
fn a_pause_reports_what_it_was_asked_to_end_with() {
    let mut state = State::Created(Program::Pause { exits_with: None });
    state.start_init().unwrap();
    state.started().unwrap();
    state.end_pause_with(0);
    assert_eq!(ending_exit(&mut state, 137).status, 0);
    let mut state = State::Created(Program::Pause { exits_with: None });
    assert_eq!(ending_exit(&mut state, 137).status, 137);
}

#[test]
fn a_failed_step_leaves_the_state() {
    let fail = || Err(Error::internal("no"));
    let mut state = running();
    assert!(state.pause(fail).is_err() && state.shown() == Status::RUNNING);
    let mut state = paused();
    assert!(state.resume(fail).is_err() && state.shown() == Status::PAUSED);
    let mut state = spawning();
    assert!(state.attach(process(), |_| fail()).is_err() && state.is_starting());
}

#[test]
fn a_process_that_ended_while_it_was_frozen_can_be_resumed() {
    let mut state = paused();
    ending_exit(&mut state, 137);
    assert!(state.is_frozen());
    state.resume(|| Ok(())).unwrap();
    assert!(!state.is_frozen() && state.has_ended());
}

#[test]
fn an_init_at_its_gate_can_be_deleted_once_it_has_an_exit() {
    for (state, at_gate) in [(init(), true), (stopped(), false), (exec(), false)] {
        assert!(state.check_delete().is_ok());
        assert_eq!(state.is_at_gate(), at_gate);
    }
    let mut state = init();
    ending_exit(&mut state, 137);
    assert!(state.check_delete().is_ok() && state.is_at_gate());
    for state in [starting(), spawning(), running(), paused(), ending(), deleting()] {
        assert_eq!(state.check_delete().unwrap_err().code, Code::FAILED_PRECONDITION);
    }
}

#[test]
fn a_clients_early_requests_are_kept() {
    let size = Terminal { width: 80, height: 24 };
    let mut state = exec();
    if let State::Planned { plan, .. } = &mut state {
        plan.terminal = Some(Terminal::default());
    }
    state.asked().unwrap().size = Some(size);
    assert_eq!(state.start_exec().unwrap().terminal, Some(size));
    state.asked().unwrap().stdin_closed = true;
    let mut seen = None;
    let apply = |asked| {
        seen = Some(asked);
        Ok(())
    };
    state.attach(process(), apply).unwrap();
    assert_eq!(seen, Some(Asked { size: Some(size), stdin_closed: true }));
    assert!(state.asked().is_none() && init().asked().is_none());
}

#[test]
fn signals_go_to_a_process_while_there_is_one() {
    for state in [init(), starting(), running(), paused(), ending(), running_exec()] {
        assert!(state.process().is_some());
    }
    for state in [exec(), spawning(), stopped(), deleting()] {
        assert!(state.process().is_none());
    }
}
