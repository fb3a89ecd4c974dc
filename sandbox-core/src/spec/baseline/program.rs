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
    ARCHITECTURE_AT, Beginning, IF_EQUAL, IF_SET, LOAD, LOAD_NUMBER, NUMBER_AT, Start, Step,
    beginning, reachable, search,
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

/// Returns the program, as an array of `struct sock_filter`; `None` if it allows everything.
pub fn program(confined: &Confined) -> Option<Vec<u8>> {
    joined(confined, &[])
}

/// Returns one program that answers as this one and the profile's would beside each other: for
/// each call, with what holds more back. (If both refuse a call and the profile looks at its
/// arguments, the answer is this program's.) The kernel would run both for a call whose arguments
/// either looks at, which takes twice the time.
///
/// Of the profile's program only that is left which looks at arguments: what it answers by the
/// number alone is found by one search for both. The kernel loads the program for each
/// container and each exec, and takes the longer the more instructions it has. Where the search
/// gets longer than what it saves, as for arguments of most calls, all of the profile's program
/// is left.
pub fn joined(confined: &Confined, profile: &[u8]) -> Option<Vec<u8>> {
    if confined.baseline.level == Level::Off {
        return None;
    }
    let mut code: Vec<Step> = profile.as_chunks::<8>().0.iter().map(Step::of).collect();
    if code.first().is_some_and(|first| first.code != LOAD) {
        // A program begins with 0, and the search has loaded a number by then. The kernel knows
        // no answer beforehand of a program that does this; a compiled one loads something first.
        code.insert(0, Step { code: LOAD_NUMBER, ..Step::jump(0) });
    }
    let rules = |profile, searched| Rules {
        level: confined.baseline.level,
        allowed: confined.baseline.allowed,
        confined: *confined,
        profile,
        searched,
    };
    let searched = rules(code.clone(), true).program();
    let whole = (!code.is_empty()).then(|| rules(code, false).program());
    let shortest = whole.into_iter().chain([searched]).min_by_key(Vec::len)?;
    Some(shortest.iter().flat_map(Step::bytes).collect())
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
    Plain(Plain),
    /// A check, and what follows unless it refuses.
    Check(Check, Plain),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plain {
    Result(u32),
    /// The profile's program decides, from this instruction on.
    GoOn(usize),
}

struct Rules {
    level: Level,
    allowed: Allowed,
    confined: Confined,
    /// The program of the profile, which decides what this one allows; empty if there is none.
    profile: Vec<Step>,
    /// Whether what the profile answers by the number alone is found by the search.
    searched: bool,
}

impl Rules {
    /// Returns the program.
    fn program(&self) -> Vec<Step> {
        let mut starts = Vec::new();
        let mut code = vec![Step::load(ARCHITECTURE_AT)];
        for (i, abi) in ABIS.iter().enumerate() {
            let mut part = vec![Step::load(NUMBER_AT)];
            part.extend(search(&self.ends(abi, i == 0, &mut starts), |end| self.code(end)));
            // The jump over it has 32 bits, that of a comparison only eight.
            code.push(Step { code: IF_EQUAL, if_true: 1, if_false: 0, operand: abi.audit });
            code.push(Step::jump(part.len()));
            code.extend(part);
        }
        code.push(refuse(ENOSYS));
        // What is no program goes on nowhere: it allows nothing.
        starts.dedup();
        let rest = reachable(&self.profile, &starts).unwrap_or_default();
        let length = code.len();
        for (at, step) in code.iter_mut().enumerate().filter(|(_, step)| step.code == GO_ON) {
            *step = match rest.place(step.operand as usize) {
                Some(place) => Step::jump(length - at - 1 + place),
                None => KILL,
            };
        }
        code.extend(rest.code);
        code
    }

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

    /// Returns the ends of the search by the first number from which each holds. Adds where
    /// calls come into the profile's program.
    fn ends(&self, abi: &Abi, native: bool, starts: &mut Vec<Start>) -> Vec<(u32, End)> {
        let answers = self.answers(abi, native);
        // Between two numbers that it compares with, the profile makes no difference.
        let compared = self.profile.iter().filter(|step| step.branches()).map(|step| step.operand);
        let edges = compared.flat_map(|number| [Some(number), number.checked_add(1)]).flatten();
        let numbers: BTreeSet<u32> =
            answers.iter().map(|(number, _)| *number).chain(edges).collect();
        let answer = |number| {
            let after = answers.partition_point(|(first, _)| *first <= number);
            answers[after - 1].1
        };
        let mut ends: Vec<(u32, End)> = Vec::new();
        let after = numbers.iter().skip(1).map(|number| Some(*number)).chain([None]);
        for (&number, after) in numbers.iter().zip(after) {
            let end = self.end(abi.audit, number, answer(number));
            if let End::Plain(Plain::GoOn(at)) | End::Check(_, Plain::GoOn(at)) = end {
                let alone = self.searched && after == number.checked_add(1);
                let number = alone.then_some(number);
                starts.push(Start { at, number, architecture: abi.audit });
            }
            ends.push((number, end));
        }
        ends.dedup_by_key(|(_, end)| *end);
        ends
    }

    fn end(&self, audit: u32, number: u32, answer: Answer) -> End {
        let rest = match beginning(&self.profile, number, audit) {
            Some(Beginning::Result(result)) => Plain::Result(result),
            Some(Beginning::At(at)) => Plain::GoOn(if self.searched { at } else { 0 }),
            None if self.profile.is_empty() => Plain::Result(ALLOW.operand),
            None => Plain::Result(KILL.operand),
        };
        // The kernel's order: of two results the lower one counts, and of two errnos the later
        // program's, the profile's.
        match (answer, rest) {
            (Answer::Refuse(_) | Answer::Check(_), Plain::Result(result))
                if action(result) <= action(RETURN_ERRNO) =>
            {
                End::Plain(rest)
            }
            (Answer::Refuse(errno), _) => End::Plain(Plain::Result(refuse(errno).operand)),
            (Answer::Check(check), _) => End::Check(check, rest),
            (Answer::Allow, _) if !self.searched => End::Plain(Plain::GoOn(0)),
            (Answer::Allow, _) => End::Plain(rest),
        }
    }

    fn code(&self, end: End) -> Vec<Step> {
        let step = |plain| match plain {
            Plain::Result(result) => Step::returns(result),
            // A jump to it, once its place is known.
            Plain::GoOn(at) => Step { code: GO_ON, ..Step::jump(at) },
        };
        match end {
            End::Plain(plain) => vec![step(plain)],
            End::Check(check, rest) => self.check(check, step(rest)),
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

/// Stands for the jump into the profile's program until that has its place: no operation.
const GO_ON: u16 = u16::MAX;

/// `SECCOMP_RET_ERRNO`
const RETURN_ERRNO: u32 = 0x0005_0000;

/// `SECCOMP_RET_KILL_PROCESS`
const KILL: Step = Step::returns(0x8000_0000);

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
