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

use crate::spec::plan::{Test, Watch, WatchedCall};
use crate::sys::classic_bpf::{
    AND, ARCHITECTURE, ARCHITECTURE_AT, IF_EQUAL, IF_SET, JUMP, NUMBER_AT, RETURN, Start, Step,
    evaluate, reachable,
};
use crate::sys::process::SECCOMP_SPEC_ALLOW;
use crate::sys::seccomp_listener::Data;

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
    pub(crate) watched: Option<Watched>,
}

/// The program that is loaded instead, with a listener of boot's.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) program: Vec<u8>,
    pub(crate) watch: Watch,
}

impl Filter {
    /// Takes the program of the profile, or of the baseline where there is no profile.
    pub(crate) fn new(baseline: &[u8], profile: Option<Seccomp>, watch: Option<&Watch>) -> Self {
        let of_profile = profile.is_some();
        let Seccomp { program, flags } = profile
            .unwrap_or_else(|| Seccomp { program: baseline.to_vec(), flags: SECCOMP_SPEC_ALLOW });
        let watched = watch.and_then(|watch| {
            Some(Watched { program: announcing(&program, watch)?, watch: watch.clone() })
        });
        Self { program, flags, of_profile, watched }
    }

    /// Returns what boot is asked about if a process that can have these capabilities loads it.
    pub(crate) fn watched_with(&self, capabilities: u64) -> Option<&Watched> {
        self.watched.as_ref().filter(|watched| {
            watched.watch.refusals || (watched.watch.raw_sockets && capabilities & NET_RAW != 0)
        })
    }

    /// Whether raw sockets are made for the container's processes.
    pub(crate) fn makes_raw_sockets(&self) -> bool {
        self.watched.as_ref().is_some_and(|watched| watched.watch.raw_sockets)
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
fn announcing(program: &[u8], watch: &Watch) -> Option<Vec<u8>> {
    let own: Vec<Step> = match program.is_empty() {
        true => vec![Step::returns(libc::SECCOMP_RET_ALLOW)],
        false => program.as_chunks::<8>().0.iter().map(Step::of).collect(),
    };
    if !lets_hand_over(program) {
        return None;
    }
    let refusals = |step: Step| match watch.refusals {
        true => step.announcing_refusals(),
        false => step,
    };
    let start = |number| Start { at: 0, number: Some(number), architecture: ARCHITECTURE };
    let starts: Vec<Start> = watch.numbers().into_iter().map(start).collect();
    let some = reachable(&own, &starts)?.code;
    let watched = |step: Step| match watch.refusals {
        true => step.announcing_all(),
        false => step.announcing_calls(),
    };
    let some: Vec<Step> = some.into_iter().map(watched).collect();
    let mut code = front(watch, some.len())?;
    code.extend(some);
    code.extend(own.into_iter().map(refusals));
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
fn front(watch: &Watch, length: usize) -> Option<Vec<Step>> {
    // Each jump to one of the two ends is written as a step of its own, whose distance has 32
    // bits, and is set at the end.
    let mut code = vec![
        Step::load(ARCHITECTURE_AT),
        Step { code: IF_EQUAL, if_true: 1, if_false: 0, operand: ARCHITECTURE },
        Step::TO_OTHERS,
        Step::load(NUMBER_AT),
    ];
    let mut numbers = watch.numbers();
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers {
        let body = tests(watch, number);
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
fn tests(watch: &Watch, number: u32) -> Vec<Step> {
    let mut code = Vec::new();
    for call in watch.calls.iter().filter(|call| call.number == number) {
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
    fn numbers(&self) -> Vec<u32> {
        self.calls.iter().map(|call| call.number).collect()
    }

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
mod tests {
    use nix::sched::CloneFlags;

    use super::*;
    use crate::spec::baseline::{Allowed, Baseline, Confined, Level, joined, program};
    use crate::spec::seccomp::compile;
    use crate::sys::classic_bpf::*;
    use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
    use crate::sys::process::{exit_now, load_seccomp, unknown_system_call};

    const I386: u32 = 0x4000_0003;
    const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;

    /// Numbers that look random and are the same each time (xorshift).
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u32 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 16) as u32
        }

        fn below(&mut self, end: u32) -> u32 {
            self.next() % end
        }

        fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
            all[self.below(all.len() as u32) as usize]
        }
    }

    /// Makes a program of `length` instructions that returns twelve bits of what it has come
    /// to, as an errno.
    fn any_program(numbers: &mut Numbers, length: u8) -> Vec<Step> {
        const X: [u16; 2] = [0, FROM_REGISTER];
        let step = |code, operand| Step { code, if_true: 0, if_false: 0, operand };
        // The calls that the child makes besides.
        let real = Step { code: IF_AT_LEAST, if_true: 1, if_false: 0, operand: 1024 };
        let mut code = vec![Step::load(NUMBER_AT), real, Step::returns(libc::SECCOMP_RET_ALLOW)];
        // What is loaded was stored before.
        code.extend((0..16).map(|place| step(STORE, place)));
        for left in (0..length).rev() {
            let any = numbers.next();
            let operation = numbers.one_of(&[0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70]);
            code.push(match numbers.below(12) {
                0 | 1 => step(LOAD, 4 * numbers.below(16)),
                2 => step(numbers.one_of(&[LOAD_NUMBER, LOAD_X_NUMBER]), any),
                3 => step(numbers.one_of(&[LOAD_MEMORY, LOAD_X_MEMORY]), any % 16),
                4 => step(numbers.one_of(&[STORE, STORE_X]), any % 16),
                5 => step(numbers.one_of(&[TO_X, FROM_X, NEGATE]), 0),
                6 => step(numbers.one_of(&[LOAD_LENGTH, LOAD_X_LENGTH]), 0),
                7 => step(JUMP, numbers.below(u32::from(left) + 1)),
                // Shifts by a number that the kernel refuses are left out.
                8 | 9 if operation < 0x60 => step(ALU | operation | numbers.one_of(&X), any | 1),
                8 | 9 => step(ALU | operation, any % 32),
                _ => Step {
                    code: numbers.one_of(&[IF_EQUAL, IF_MORE, IF_AT_LEAST, IF_SET])
                        | numbers.one_of(&X),
                    if_true: numbers.below(u32::from(left) + 1) as u8,
                    if_false: numbers.below(u32::from(left) + 1) as u8,
                    operand: any,
                },
            });
        }
        code.extend([step(AND, 0xffe), step(0x44, libc::SECCOMP_RET_ERRNO), step(RETURN_HELD, 0)]);
        code
    }

    fn bytes(code: &[Step]) -> Vec<u8> {
        code.iter().flat_map(Step::bytes).collect()
    }

    /// Whether the kernel's results are these, in a child that loads the program.
    fn kernel_agrees(program: &[u8], calls: &[Data]) -> bool {
        let alone = SingleThreaded::in_a_test();
        let pidfd = match clone_into(&alone, CloneFlags::empty(), None).unwrap() {
            Cloned::Parent { pidfd, .. } => pidfd,
            Cloned::Child => {
                if load_seccomp(program, 0).is_err() {
                    exit_now(100);
                }
                let differs = |data: &&Data| {
                    let errno = match unknown_system_call(data.number, data.arguments) {
                        Ok(0) => Some(0),
                        Ok(_) => None,
                        Err(e) => e.raw_os_error(),
                    };
                    // The place of the call is not known.
                    match Verdict::of(program, data) {
                        Verdict::Errno(expected) => errno != Some(expected.into()),
                        _ => true,
                    }
                };
                exit_now(calls.iter().find(differs).is_some().into())
            }
        };
        let id = rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd));
        let ended = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
        let status = ended.unwrap().unwrap().exit_status();
        assert_ne!(status, Some(100), "the kernel does not load {program:?}");
        status == Some(0)
    }

    #[test]
    fn a_program_is_evaluated_as_the_kernel_does() {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for round in 0..300 {
            let mut code = any_program(&mut numbers, (round % 60) as u8);
            // Not the address of the call.
            for step in code.iter_mut().filter(|step| step.code == LOAD) {
                step.operand = if matches!(step.operand, 8 | 12) { 16 } else { step.operand };
            }
            let calls: Vec<Data> = (0..8)
                .map(|_| Data {
                    number: 1024 + numbers.below(1 << 20),
                    architecture: ARCHITECTURE,
                    instruction_pointer: 0,
                    arguments: [(); 6].map(|()| {
                        let high = u64::from(numbers.next()) << 32;
                        numbers.one_of(&[0, 1, 17, high]) | u64::from(numbers.below(1 << 31))
                    }),
                })
                .collect();
            // After a division by zero the kernel kills.
            let program = bytes(&code);
            let is_killed = |data: &Data| evaluate(&program, data) == Some(0);
            let calls: Vec<_> = calls.into_iter().filter(|data| !is_killed(data)).collect();
            assert!(kernel_agrees(&program, &calls), "round {round}: {code:?} {calls:?}");
        }
    }

    #[test]
    fn what_is_no_program_is_no_answer() {
        let step = |code, operand| Step { code, if_true: 9, if_false: 9, operand };
        for code in [
            vec![],
            vec![step(LOAD, 0)],
            vec![step(LOAD, 3), step(RETURN, 0)],
            vec![step(LOAD, 64), step(RETURN, 0)],
            vec![step(LOAD_MEMORY, 16), step(RETURN, 0)],
            vec![step(JUMP, u32::MAX), step(RETURN, 0)],
            vec![step(IF_EQUAL, 0), step(RETURN, 0)],
            vec![step(0xffff, 0), step(RETURN, 0)],
        ] {
            assert_eq!(Verdict::of(&bytes(&code), &Data::default()), Verdict::Other, "{code:?}");
        }
    }

    fn confined(level: Level, capabilities: u64) -> Confined {
        let baseline = Baseline { level, allowed: Allowed::NONE };
        Confined { baseline, capabilities, filters_user_namespaces: true }
    }

    /// The program of containerd's default profile, joined with a baseline's.
    fn default_profile(level: Level) -> Vec<u8> {
        let spec = include_str!("../spec/tests/fixtures/ctr-seccomp.json");
        let spec: oci_spec::runtime::Spec = serde_json::from_str(spec).unwrap();
        let profile = spec.linux().as_ref().unwrap().seccomp().clone().unwrap();
        let program = compile(&profile).unwrap().program;
        joined(&confined(level, NET_RAW), &program).unwrap_or(program)
    }

    fn equals(argument: u8, value: i32) -> Test {
        Test::Equals {
            argument,
            mask: if argument == 1 { 0xf } else { u32::MAX },
            value: value as u32,
        }
    }

    fn raw_sockets() -> Vec<WatchedCall> {
        let call =
            |tests| WatchedCall { number: libc::SYS_socket as u32, capability: Some(13), tests };
        vec![
            call(vec![equals(0, libc::AF_PACKET)]),
            call(vec![equals(0, libc::AF_INET), equals(1, libc::SOCK_RAW)]),
            call(vec![equals(0, libc::AF_INET6), equals(1, libc::SOCK_RAW)]),
        ]
    }

    fn watches() -> [Watch; 2] {
        let mut calls = raw_sockets();
        let whole = [libc::SYS_mount, libc::SYS_chroot, libc::SYS_reboot, 461, 0];
        calls.extend(whole.map(|number| WatchedCall {
            number: number as u32,
            capability: Some(21),
            tests: Vec::new(),
        }));
        let bits = libc::CLONE_NEWNS as u32;
        let tests = vec![Test::AnyOf { argument: 0, bits }];
        calls.push(WatchedCall { number: libc::SYS_unshare as u32, capability: Some(21), tests });
        let raw = Watch { raw_sockets: true, calls: raw_sockets(), ..Watch::default() };
        [raw, Watch { refusals: true, calls, ..Watch::default() }]
    }

    /// Each call has the result that it had, or waits for boot, which then gives it that one.
    #[test]
    fn a_program_that_announces_differs_in_that_alone() {
        let programs = [
            Vec::new(),
            program(&confined(Level::Default, 0)).unwrap(),
            program(&confined(Level::Strict, NET_RAW)).unwrap(),
            default_profile(Level::Default),
            default_profile(Level::Strict),
            default_profile(Level::Off),
        ];
        for (program, watch) in programs.iter().flat_map(|p| watches().map(|watch| (p, watch))) {
            let loaded = announcing(program, &watch).expect("it is short enough");
            let allow = bytes(&[Step::returns(libc::SECCOMP_RET_ALLOW)]);
            let own = if program.is_empty() { &allow } else { program };
            let mut announced = 0;
            for number in (0..1100).chain([1 << 30, (1 << 30) | 41, u32::MAX]) {
                for (first, second) in [
                    (0, 0),
                    (1, 1),
                    (2, 3),
                    (10, 0x80803),
                    (17, 3),
                    (16, 3),
                    (2, 1),
                    (0x1002_0000, 0),
                    (0xdead_0000_0011, 7),
                ] {
                    for architecture in [ARCHITECTURE, I386, 0] {
                        let arguments = [first, second, 0, 0, 0, 0];
                        let data = Data { number, architecture, arguments, instruction_pointer: 0 };
                        let (was, is) =
                            (evaluate(own, &data).unwrap(), evaluate(&loaded, &data).unwrap());
                        let (action, value) = (was & ACTION, was as u16);
                        let refused =
                            action == libc::SECCOMP_RET_ERRNO && value != libc::ENOSYS as u16;
                        let allowed = Verdict::of(own, &data) == Verdict::Allow;
                        let no_call = action == libc::SECCOMP_RET_ERRNO && watch.refusals;
                        let asked = (watch.refusals && refused)
                            || (no_call && watch.entry_of(&data).is_some())
                            || (allowed && watch.entry_of(&data).is_some());
                        assert_eq!(is, if asked { NOTIFY } else { was }, "{data:?} {watch:?}");
                        announced += u32::from(asked);
                    }
                }
            }
            assert!(announced > 0);
        }
    }

    #[test]
    fn only_the_part_of_a_program_that_is_reached_is_repeated() {
        let [raw, all] = watches();
        let program = default_profile(Level::Default);
        let steps = |program: &[u8]| program.len() / 8;
        let (raw, all) = (announcing(&program, &raw).unwrap(), announcing(&program, &all).unwrap());
        assert!(steps(&raw) < steps(&program) + 60, "{} {}", steps(&raw), steps(&program));
        assert!(steps(&all) < steps(&program) + 160, "{} {}", steps(&all), steps(&program));
    }

    /// Its newborn could not say that it has a listener.
    #[test]
    fn a_program_that_refuses_to_send_is_not_watched() {
        let refuses = |number: i64| {
            bytes(&[
                Step::load(NUMBER_AT),
                Step { code: IF_EQUAL, if_true: 0, if_false: 1, operand: number as u32 },
                Step::returns(libc::SECCOMP_RET_ERRNO | 1),
                Step::returns(libc::SECCOMP_RET_ALLOW),
            ])
        };
        let [raw, all] = watches();
        assert_eq!(announcing(&refuses(libc::SYS_sendmsg), &all), None);
        assert_eq!(announcing(&refuses(libc::SYS_sendmsg), &raw), None);
        assert!(announcing(&refuses(libc::SYS_sendmmsg), &all).is_some());
    }

    /// No capability, no question.
    #[test]
    fn only_who_can_have_the_capability_is_asked_about() {
        let [raw, all] = watches();
        let raw = Filter::new(&[], None, Some(&raw));
        assert!(raw.watched_with(NET_RAW).is_some() && raw.watched_with(!NET_RAW).is_none());
        let all = Filter::new(&[], None, Some(&all));
        assert!(all.watched_with(0).is_some());
        assert!(Filter::new(&[], None, None).watched_with(u64::MAX).is_none());
    }
}
