//! Writes the baseline as a program of classic BPF: a binary search over the numbers of system
//! calls, and at its ends an answer or the check of an argument.
//!
//! The kernel takes the number of a call and its architecture as constants, and keeps for each
//! call whether the program then always allows it (`seccomp_cache_prepare`). Such a call
//! costs the same with any program. Arguments are compared in their lower 32 bits, which is all
//! that the kernel itself looks at for these calls.

use std::collections::{BTreeMap, BTreeSet};

use super::rules::{
    ABIS, AF_PACKET, Abi, CLONE_FLAGS, ENOSYS, EPERM, FAMILIES, FAMILIES_BY_PART, MULTICAST,
    PERSONALITY, STRICT, TCP_ULP, TERMINAL_INPUT, WHOLE, capability,
};
use super::{Allowed, Confined, Level};
use crate::sys::classic_bpf::{
    ARCHITECTURE_AT, IF_EQUAL, IF_SET, NUMBER_AT, Step, evaluate_with, search,
};

const EAFNOSUPPORT: u16 = 97;
const EOPNOTSUPP: u16 = 95;

/// `CLONE_NEWUSER`
pub(super) const NEW_USER: u32 = 0x1000_0000;
/// `MSG_OOB`
pub(super) const OUT_OF_BAND: u32 = 1;

/// The bit in the number of a call of x32 (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The first number that is the same on all architectures: calls from there on are new enough
/// that programs do without.
pub(super) const NEW_CALLS: u32 = 424;

/// No call has this number or a higher one, but those of x32.
const NO_CALLS: u32 = 1024;

/// Returns the program, as an array of `struct sock_filter`; `None` if it allows everything.
pub fn program(confined: &Confined) -> Option<Vec<u8>> {
    joined(confined, &[])
}

/// Returns one program that answers as this one and the profile's would beside each other: for
/// each call, with what holds more back. (If both refuse a call and the profile looks at its
/// arguments, the answer is this program's.) The kernel would run both for a call whose arguments
/// either looks at, which takes twice the time.
pub fn joined(confined: &Confined, profile: &[u8]) -> Option<Vec<u8>> {
    if confined.baseline.level == Level::Off {
        return None;
    }
    let rules = Rules {
        level: confined.baseline.level,
        allowed: confined.baseline.allowed,
        confined: *confined,
        profile: (!profile.is_empty()).then_some(profile),
    };
    let mut code = vec![Step::load(ARCHITECTURE_AT)];
    for (i, abi) in ABIS.iter().enumerate() {
        let mut part = vec![Step::load(NUMBER_AT)];
        part.extend(search(&rules.ends(abi, i == 0), |end| rules.code(end)));
        // The jump over it has 32 bits, that of a comparison only eight.
        code.push(Step { code: IF_EQUAL, if_true: 1, if_false: 0, operand: abi.audit });
        code.push(Step::jump(part.len()));
        code.extend(part);
    }
    code.push(refuse(ENOSYS));
    let length = code.len();
    for (at, step) in code.iter_mut().enumerate().filter(|(_, step)| step.code == GO_ON) {
        *step = Step::jump(length - at - 1);
    }
    Some(code.iter().flat_map(Step::bytes).chain(profile.iter().copied()).collect())
}

/// What follows from the number of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Allow,
    Refuse(u16),
    Check(Check),
}

/// What its arguments decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Family,
    SocketOption,
    OutOfBand { flags: u32 },
    TerminalInput,
    Personality,
    NewUser { flags: u32 },
}

/// What stands at an end of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Result(u32),
    /// The profile's program, or nothing, decides.
    GoOn,
    /// A check; what it does not refuse has the profile's result if that is known.
    Check(Check, Option<u32>),
}

struct Rules<'a> {
    level: Level,
    allowed: Allowed,
    confined: Confined,
    /// The program of the profile, which decides what this one allows.
    profile: Option<&'a [u8]>,
}

impl Rules<'_> {
    fn holds(&self, part: Allowed) -> bool {
        !self.allowed.contains(part)
    }

    fn has(&self, any_of: u64) -> bool {
        self.confined.capabilities & any_of != 0
    }

    /// Returns the answers by the first number from which each holds.
    fn answers(&self, abi: &Abi, native: bool) -> Vec<(u32, Answer)> {
        let strict = self.level == Level::Strict;
        if strict && !native {
            return vec![(0, Answer::Refuse(ENOSYS))];
        }
        let mut calls: BTreeMap<u32, Answer> = BTreeMap::new();
        if strict {
            for (granted_by, part, names) in STRICT {
                let by_part = part != Allowed::NONE && !self.holds(part);
                if granted_by == 0 || self.has(granted_by) || by_part {
                    let numbers = names.iter().filter_map(|name| abi.number(name));
                    calls.extend(numbers.map(|number| (number, Answer::Allow)));
                }
            }
        }
        for rule in &WHOLE {
            let refused = self.holds(rule.part) && !self.has(rule.granted_by);
            let answer = if refused { Answer::Refuse(rule.errno) } else { Answer::Allow };
            let numbers = rule.names.iter().filter_map(|name| abi.number(name));
            calls.extend(numbers.map(|number| (number, answer)));
        }
        for (name, answer) in self.by_arguments() {
            calls.extend(abi.number(name).map(|number| (number, answer)));
        }
        let x32 = cfg!(target_arch = "x86_64") && native;
        let other = |number: u32| match number {
            X32_BIT.. if x32 && self.holds(Allowed::X32) => Answer::Refuse(ENOSYS),
            X32_BIT.. if x32 => Answer::Allow,
            NEW_CALLS.. if strict => Answer::Refuse(ENOSYS),
            _ if strict => Answer::Refuse(EPERM),
            _ => Answer::Allow,
        };
        let edges = [0, NEW_CALLS, X32_BIT];
        let starts: BTreeSet<u32> =
            calls.keys().flat_map(|number| [*number, number + 1]).chain(edges).collect();
        let mut answers: Vec<(u32, Answer)> = starts
            .into_iter()
            .map(|start| (start, calls.get(&start).copied().unwrap_or_else(|| other(start))))
            .collect();
        answers.dedup_by_key(|(_, answer)| *answer);
        answers
    }

    /// Returns the calls that are looked at more closely.
    fn by_arguments(&self) -> Vec<(&'static str, Answer)> {
        let mut calls = Vec::new();
        if self.holds(Allowed::SOCKETS) {
            calls.extend(["socket", "socketpair"].map(|name| (name, Answer::Check(Check::Family))));
        }
        let multicast = self.level == Level::Strict && self.holds(Allowed::MULTICAST);
        if self.holds(Allowed::TCP_ULP) || multicast {
            calls.push(("setsockopt", Answer::Check(Check::SocketOption)));
        }
        if self.holds(Allowed::MSG_OOB) {
            let sends = [("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)];
            calls.extend(
                sends.map(|(name, flags)| (name, Answer::Check(Check::OutOfBand { flags }))),
            );
        }
        // Its arguments are in memory, where no filter sees them.
        let sees_all = [Allowed::SOCKETS, Allowed::TCP_ULP, Allowed::MSG_OOB];
        if self.holds(Allowed::SOCKETCALL) && sees_all.iter().any(|part| self.holds(*part)) {
            calls.push(("socketcall", Answer::Refuse(ENOSYS)));
        }
        if self.holds(Allowed::TIOCSTI) {
            calls.push(("ioctl", Answer::Check(Check::TerminalInput)));
        }
        if self.holds(Allowed::PERSONALITY) {
            calls.push(("personality", Answer::Check(Check::Personality)));
        }
        if self.confined.filters_user_namespaces {
            calls.push(("clone", Answer::Check(Check::NewUser { flags: CLONE_FLAGS })));
            // Its flags are in memory as well. C libraries then take clone.
            calls.push(("clone3", Answer::Refuse(ENOSYS)));
            if self.level != Level::Strict || self.has(capability::SYS_ADMIN) {
                calls.push(("unshare", Answer::Check(Check::NewUser { flags: 0 })));
            }
        }
        calls
    }

    /// Returns the ends of the search by the first number from which each holds.
    fn ends(&self, abi: &Abi, native: bool) -> Vec<(u32, End)> {
        let answers = self.answers(abi, native);
        // The profile has another result for each call; higher numbers are of none.
        let each = if self.profile.is_some() { 0..NO_CALLS } else { 0..0 };
        let starts: BTreeSet<u32> = answers.iter().map(|(start, _)| *start).chain(each).collect();
        let answer = |number| {
            let after = answers.partition_point(|(start, _)| *start <= number);
            answers[after - 1].1
        };
        let ends = starts.into_iter().map(|n| (n, self.end(abi.audit, n, answer(n))));
        let mut ends: Vec<_> = ends.collect();
        ends.dedup_by_key(|(_, end)| *end);
        ends
    }

    fn end(&self, audit: u32, number: u32, answer: Answer) -> End {
        let of_profile = self.profile.filter(|_| number < NO_CALLS);
        let fixed = of_profile.and_then(|profile| constant(profile, audit, number));
        // The kernel's order: of two results the lower one counts, and of two errnos the later
        // program's, the profile's.
        match (answer, fixed) {
            (Answer::Refuse(_) | Answer::Check(_), Some(result))
                if action(result) <= action(RETURN_ERRNO) =>
            {
                End::Result(result)
            }
            (Answer::Refuse(errno), _) => End::Result(refuse(errno).operand),
            (Answer::Check(check), _) => End::Check(check, fixed),
            (Answer::Allow, _) => End::GoOn,
        }
    }

    fn code(&self, end: End) -> Vec<Step> {
        let allow = match self.profile {
            None => ALLOW,
            Some(_) => Step { code: GO_ON, if_true: 0, if_false: 0, operand: 0 },
        };
        match end {
            End::Result(operand) => vec![Step { operand, ..ALLOW }],
            End::GoOn => vec![allow],
            End::Check(check, None) => self.check(check, allow),
            End::Check(check, Some(operand)) => self.check(check, Step { operand, ..ALLOW }),
        }
    }

    /// Returns the instructions of a check. What it does not refuse goes on with `allow`.
    fn check(&self, check: Check, allow: Step) -> Vec<Step> {
        match check {
            Check::Family => {
                let mut code = vec![Step::load_argument(0)];
                let allowed = FAMILIES_BY_PART.iter().filter(|(_, part)| !self.holds(*part));
                let packets = self.has(capability::NET_RAW).then_some(AF_PACKET);
                let families =
                    FAMILIES.into_iter().chain(allowed.map(|(family, _)| *family)).chain(packets);
                for family in families {
                    code.extend([unless_equal(family), allow]);
                }
                // As the kernel answers without the capability.
                code.extend([unless_equal(AF_PACKET), refuse(EPERM), refuse(EAFNOSUPPORT)]);
                code
            }
            Check::SocketOption => {
                let multicast = self.level == Level::Strict && self.holds(Allowed::MULTICAST);
                let groups = if multicast { &MULTICAST[..] } else { &[] };
                let ulp = self.holds(Allowed::TCP_ULP).then_some(TCP_ULP);
                let mut code = Vec::new();
                for (level, options, errno) in groups.iter().copied().chain(ulp) {
                    let length = 1 + 2 * options.len() as u8;
                    code.push(Step::load_argument(1));
                    code.push(Step {
                        code: IF_EQUAL,
                        if_true: 0,
                        if_false: length,
                        operand: level,
                    });
                    code.push(Step::load_argument(2));
                    code.extend(options.iter().flat_map(|o| [unless_equal(*o), refuse(errno)]));
                }
                code.push(allow);
                code
            }
            Check::OutOfBand { flags } => {
                vec![Step::load_argument(flags), unless_set(OUT_OF_BAND), refuse(EOPNOTSUPP), allow]
            }
            Check::TerminalInput => {
                let refused =
                    TERMINAL_INPUT.iter().flat_map(|ioctl| [unless_equal(*ioctl), refuse(EPERM)]);
                std::iter::once(Step::load_argument(1)).chain(refused).chain([allow]).collect()
            }
            Check::Personality => vec![
                Step::load_argument(0),
                // It only asks.
                unless_equal(u32::MAX),
                allow,
                unless_set(!PERSONALITY),
                refuse(EPERM),
                allow,
            ],
            Check::NewUser { flags } => {
                vec![Step::load_argument(flags), unless_set(NEW_USER), refuse(EPERM), allow]
            }
        }
    }
}

/// Returns the action of a result, of which a lower one holds more back
/// (`SECCOMP_RET_ACTION_FULL`, a signed number).
fn action(result: u32) -> i32 {
    (result & 0xffff_0000).cast_signed()
}

/// Returns the result of a program for a call, if it depends on no argument. The kernel
/// evaluates programs in this way as well (`seccomp_is_const_allow`).
fn constant(program: &[u8], audit: u32, number: u32) -> Option<u32> {
    evaluate_with(program, |offset| match offset {
        NUMBER_AT => Some(number),
        ARCHITECTURE_AT => Some(audit),
        _ => None,
    })
}

/// Stands for the jump to the profile's program until its length is known: no operation.
const GO_ON: u16 = u16::MAX;

/// `SECCOMP_RET_ERRNO`
const RETURN_ERRNO: u32 = 0x0005_0000;

/// `SECCOMP_RET_ALLOW`
const ALLOW: Step = Step::returns(0x7fff_0000);

const fn refuse(errno: u16) -> Step {
    Step::returns(RETURN_ERRNO | errno as u32)
}

/// Skips the next step unless the value is this one.
const fn unless_equal(operand: u32) -> Step {
    Step { code: IF_EQUAL, if_true: 0, if_false: 1, operand }
}

/// Skips the next step unless one of these bits is set.
const fn unless_set(operand: u32) -> Step {
    Step { code: IF_SET, if_true: 0, if_false: 1, operand }
}
