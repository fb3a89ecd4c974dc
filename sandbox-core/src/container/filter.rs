//! The seccomp program of a container, and the one that is loaded in its place where boot is
//! asked about calls.
//!
//! ```text
//!   the container's program        the one that is loaded
//!   ALLOW                          ALLOW, or USER_NOTIF for the calls that are watched
//!   ERRNO                          USER_NOTIF if refusals are told
//!   ENOSYS                         the same, but only of the calls that are watched
//!   all others                     as they are
//! ```
//! boot evaluates the container's own program for a call that it is asked about, and answers by
//! that: the program that is loaded decides about the question only.

use std::cell::RefCell;
use std::rc::Rc;

use super::view_call::ViewCall;
use crate::spec::plan::{Test, Watch, WatchedCall};
use crate::sys::classic_bpf::{
    AND, ARCHITECTURE, ARCHITECTURE_AT, IF_EQUAL, IF_SET, JUMP, NUMBER_AT, RETURN, Start, Step,
    evaluate, reachable,
};
use crate::sys::process::SECCOMP_SPEC_ALLOW;
use crate::sys::seccomp_listener::Data;
use crate::types::Limited;

use super::donated::Seccomp;

/// `BPF_MAXINSNS`: the kernel loads no longer program.
const MOST: usize = 4096;

/// What is left of a result without its data (`SECCOMP_RET_ACTION_FULL`).
const ACTION: u32 = 0xffff_0000;

/// The highest errno that a program returns (`MAX_ERRNO`).
const HIGHEST_ERRNO: u16 = 4095;

/// `CAP_NET_RAW`, as a bit.
const NET_RAW: u64 = 1 << 13;

/// The seccomp program of a container's processes.
#[derive(Debug)]
pub(crate) struct Filter {
    /// The program. Empty if there is none.
    pub(crate) program: Vec<u8>,
    pub(crate) flags: u32,
    /// Whether it is loaded last by a process with no_new_privileges, since it may refuse what
    /// comes before.
    pub(crate) of_profile: bool,
    pub(crate) watch: Option<Watch>,
    /// What new processes load instead.
    watched: RefCell<Option<Rc<Watched>>>,
}

/// The program that is loaded instead, with a listener of boot's.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) program: Vec<u8>,
    /// By which it announces the calls that views answer.
    limited: Limited,
}

impl Filter {
    /// Takes the program of the profile, or of the baseline where there is no profile.
    pub(crate) fn new(
        baseline: &[u8],
        profile: Option<Seccomp>,
        watch: Option<&Watch>,
        limited: Limited,
    ) -> Self {
        let of_profile = profile.is_some();
        let Seccomp { program, flags } = profile
            .unwrap_or_else(|| Seccomp { program: baseline.to_vec(), flags: SECCOMP_SPEC_ALLOW });
        let watched = RefCell::default();
        let filter = Self { program, flags, of_profile, watch: watch.cloned(), watched };
        filter.watched.replace(filter.announcing(limited));
        filter
    }

    /// Takes new limits. The processes that come later announce what the kernel would answer
    /// wrongly; those that run keep the program that they have.
    pub(crate) fn limit(&self, limited: Limited) {
        let was = self.watched.borrow().as_ref().map_or(Limited::default(), |was| was.limited);
        if was != limited && self.watch.as_ref().is_some_and(|watch| watch.views) {
            self.watched.replace(self.announcing(limited));
        }
    }

    fn announcing(&self, limited: Limited) -> Option<Rc<Watched>> {
        let watch = self.watch.as_ref()?;
        let limited = if watch.views { limited } else { Limited::default() };
        let calls = watch.calls.iter().cloned().chain(ViewCall::watched(limited));
        let calls: Vec<_> = calls.collect();
        if calls.is_empty() && !watch.refusals {
            return None;
        }
        let program = announcing(&self.program, watch.refusals, &calls)?;
        Some(Rc::new(Watched { program, limited }))
    }

    /// Returns what boot is asked about if a process that can have these capabilities loads it.
    pub(crate) fn watched_with(&self, capabilities: u64) -> Option<Rc<Watched>> {
        let watch = self.watch.as_ref()?;
        let others = watch.refusals || (watch.raw_sockets && capabilities & NET_RAW != 0);
        let watched = self.watched.borrow().clone();
        watched.filter(|watched| others || watched.limited != Limited::default())
    }

    /// Whether raw sockets are made for the container's processes.
    pub(crate) fn makes_raw_sockets(&self) -> bool {
        let wanted = self.watch.as_ref().is_some_and(|watch| watch.raw_sockets);
        wanted && self.watched.borrow().is_some()
    }

    /// Whether views answer calls of the container's processes.
    pub(crate) fn has_views(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.views)
    }

    /// Returns what the container's program answers.
    pub(crate) fn verdict(&self, data: &Data) -> Verdict {
        match self.program.is_empty() {
            true => Verdict::Allow,
            false => Verdict::of(&self.program, data),
        }
    }
}

/// The answer of a container's program to a call that boot was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The call is carried out.
    Allow,
    /// It fails with this errno, or returns 0 for 0.
    Errno(u16),
    /// Anything else, about which boot is never asked.
    Other,
}

impl Verdict {
    /// Returns the answer of a program.
    pub(crate) fn of(program: &[u8], data: &Data) -> Self {
        let Some(result) = evaluate(program, data) else { return Self::Other };
        match result & ACTION {
            libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG => Self::Allow,
            libc::SECCOMP_RET_ERRNO => Self::Errno((result as u16).min(HIGHEST_ERRNO)),
            _ => Self::Other,
        }
    }
}

/// Returns the program that announces what boot watches. `None` if it would be too long, or if
/// the process could not hand its listener over, whose call would wait for boot.
fn announcing(program: &[u8], refusals: bool, calls: &[WatchedCall]) -> Option<Vec<u8>> {
    let own: Vec<Step> = match program.is_empty() {
        true => vec![Step::returns(libc::SECCOMP_RET_ALLOW)],
        false => program.as_chunks::<8>().0.iter().map(Step::of).collect(),
    };
    if !lets_hand_over(program) {
        return None;
    }
    let others = |step: Step| match refusals {
        true => step.announcing_refusals(),
        false => step,
    };
    let start = |number| Start { at: 0, number: Some(number), architecture: ARCHITECTURE };
    let starts: Vec<Start> = calls.iter().map(|call| start(call.number)).collect();
    let some = reachable(&own, &starts)?.code;
    let watched = |step: Step| match refusals {
        true => step.announcing_all(),
        false => step.announcing_calls(),
    };
    let some: Vec<Step> = some.into_iter().map(watched).collect();
    let mut code = front(calls, some.len())?;
    code.extend(some);
    code.extend(own.into_iter().map(others));
    (code.len() <= MOST).then(|| code.iter().flat_map(Step::bytes).collect())
}

/// Whether a process with the program may send its listener to boot. What its program refuses
/// would wait for who has the listener.
fn lets_hand_over(program: &[u8]) -> bool {
    let number = libc::SYS_sendmsg as u32;
    let arguments = [u64::from(u32::MAX); 6];
    let data = Data { number, architecture: ARCHITECTURE, arguments, ..Data::default() };
    // Of the arguments, only the flags of sendmsg are ever looked at: MSG_OOB, say.
    let data = Data { arguments: [3, 0, libc::MSG_NOSIGNAL as u64, 0, 0, 0], ..data };
    program.is_empty() || Verdict::of(program, &data) == Verdict::Allow
}

/// Returns the instructions that lead the calls that are watched to what follows, and all
/// others to what is `length` instructions further.
fn front(calls: &[WatchedCall], length: usize) -> Option<Vec<Step>> {
    // Each jump to one of the two ends is written as a step of its own, whose distance has 32
    // bits, and is set at the end.
    let mut code = vec![
        Step::load(ARCHITECTURE_AT),
        Step { code: IF_EQUAL, if_true: 1, if_false: 0, operand: ARCHITECTURE },
        Step::TO_OTHERS,
        Step::load(NUMBER_AT),
    ];
    let mut numbers: Vec<u32> = calls.iter().map(|call| call.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers {
        let body = tests(calls, number);
        let if_false = u8::try_from(body.len()).ok()?;
        code.push(Step { code: IF_EQUAL, if_true: 0, if_false, operand: number });
        code.extend(body);
    }
    code.push(Step::TO_OTHERS);
    let end = code.len();
    for (at, step) in code.iter_mut().enumerate().filter(|(_, step)| step.code == JUMP) {
        let beyond = if step.operand == Step::TO_OTHERS.operand { length } else { 0 };
        step.operand = u32::try_from(end - at - 1 + beyond).ok()?;
    }
    Some(code)
}

/// Returns the instructions that tell whether a call of this number is watched.
fn tests(calls: &[WatchedCall], number: u32) -> Vec<Step> {
    let mut code = Vec::new();
    for call in calls.iter().filter(|call| call.number == number) {
        // From the last test to the first, each of which leads past the others if it fails.
        let mut block = vec![Step::TO_WATCHED];
        for test in call.tests.iter().rev() {
            let mut first = steps_of(*test);
            if let Some(last) = first.last_mut() {
                last.if_false = block.len() as u8;
            }
            first.append(&mut block);
            block = first;
        }
        code.append(&mut block);
    }
    code.push(Step::TO_OTHERS);
    code
}

/// Returns the instructions of a test, of which the last one goes on if it holds.
fn steps_of(test: Test) -> Vec<Step> {
    match test {
        Test::AnyOf { argument, bits } => vec![
            Step::load_argument(argument.into()),
            Step { code: IF_SET, if_true: 0, if_false: 0, operand: bits },
        ],
        Test::Equals { argument, mask, value } => vec![
            Step::load_argument(argument.into()),
            Step { code: AND, if_true: 0, if_false: 0, operand: mask },
            Step { code: IF_EQUAL, if_true: 0, if_false: 0, operand: value },
        ],
    }
}

impl Watch {
    /// Returns the entry for which boot is asked about a call.
    pub(crate) fn entry_of(&self, data: &Data) -> Option<&WatchedCall> {
        let holds = |test: &Test| match *test {
            Test::AnyOf { argument, bits } => data.lower(argument) & bits != 0,
            Test::Equals { argument, mask, value } => data.lower(argument) & mask == value,
        };
        self.calls
            .iter()
            .filter(|_| data.architecture == ARCHITECTURE)
            .find(|call| data.number == call.number && call.tests.iter().all(holds))
    }
}

impl Data {
    /// Returns the lower half of an argument, which is all that the kernel looks at where it
    /// takes an int.
    fn lower(&self, argument: u8) -> u32 {
        self.arguments.get(usize::from(argument)).map_or(0, |value| *value as u32)
    }
}

impl Step {
    /// Stand for jumps whose distance is not known yet.
    const TO_WATCHED: Self = Self::jump(0);
    const TO_OTHERS: Self = Self::jump(1);

    /// Announces what the program refuses. Programs expect ENOSYS of a kernel that lacks the
    /// call, and then do without.
    fn announcing_refusals(self) -> Self {
        let refuses = self.code == RETURN && self.operand & ACTION == libc::SECCOMP_RET_ERRNO;
        match refuses && self.operand as u16 != libc::ENOSYS as u16 {
            true => Self::returns(libc::SECCOMP_RET_USER_NOTIF),
            false => self,
        }
    }

    /// Announces what the program refuses or allows, also with ENOSYS.
    fn announcing_all(self) -> Self {
        let refuses = self.code == RETURN && self.operand & ACTION == libc::SECCOMP_RET_ERRNO;
        match refuses {
            true => Self::returns(libc::SECCOMP_RET_USER_NOTIF),
            false => self.announcing_calls(),
        }
    }

    /// Announces what the program allows.
    fn announcing_calls(self) -> Self {
        let allows = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG];
        match self.code == RETURN && allows.contains(&(self.operand & ACTION)) {
            true => Self::returns(libc::SECCOMP_RET_USER_NOTIF),
            false => self,
        }
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
