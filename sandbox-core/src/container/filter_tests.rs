//! Programs that announce calls, against the kernel and against what they are made from.

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
    Test::Equals { argument, mask: if argument == 1 { 0xf } else { u32::MAX }, value: value as u32 }
}

fn raw_sockets() -> Vec<WatchedCall> {
    let call = |tests| WatchedCall { number: libc::SYS_socket as u32, capability: Some(13), tests };
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

fn of_watch(program: &[u8], watch: &Watch) -> Option<Vec<u8>> {
    announcing(program, watch.refusals, &watch.calls)
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
        let loaded = of_watch(program, &watch).expect("it is short enough");
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
                    let refused = action == libc::SECCOMP_RET_ERRNO && value != libc::ENOSYS as u16;
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
    let (raw, all) = (of_watch(&program, &raw).unwrap(), of_watch(&program, &all).unwrap());
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
    assert_eq!(of_watch(&refuses(libc::SYS_sendmsg), &all), None);
    assert_eq!(of_watch(&refuses(libc::SYS_sendmsg), &raw), None);
    assert!(of_watch(&refuses(libc::SYS_sendmmsg), &all).is_some());
}

/// What a profile refuses stays refused, and other calls cost what they did.
#[test]
fn the_calls_that_views_answer_are_announced_where_limits_say_less() {
    let watch = Watch { views: true, ..Watch::default() };
    let both = Limited { cpus: true, memory: true };
    let result = |filter: &Filter, number: i64| {
        let watched = filter.watched_with(0)?;
        let data = Data { number: number as u32, architecture: ARCHITECTURE, ..Data::default() };
        evaluate(&watched.program, &data)
    };
    let results = |filter: &Filter| {
        let calls = [libc::SYS_sched_getaffinity, libc::SYS_sysinfo, libc::SYS_getppid];
        calls.map(|number| result(filter, number))
    };
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    let filter = Filter::new(&[], None, Some(&watch), Limited::default());
    assert_eq!(results(&filter), [None; 3]);
    filter.limit(Limited { memory: false, ..both });
    assert_eq!(results(&filter), [Some(NOTIFY), Some(ALLOW), Some(ALLOW)]);
    filter.limit(both);
    assert_eq!(results(&filter), [Some(NOTIFY), Some(NOTIFY), Some(ALLOW)]);
    filter.limit(Limited::default());
    assert_eq!(results(&filter), [None; 3]);
    let off = Filter::new(&[], None, Some(&Watch::default()), both);
    off.limit(both);
    assert_eq!(results(&off), [None; 3]);
    let refusing = bytes(&[
        Step::load(NUMBER_AT),
        Step { code: IF_EQUAL, if_true: 0, if_false: 1, operand: libc::SYS_sysinfo as u32 },
        Step::returns(libc::SECCOMP_RET_ERRNO | 13),
        Step::returns(ALLOW),
    ]);
    let profile = Filter::new(&refusing, None, Some(&watch), both);
    let refused = Some(libc::SECCOMP_RET_ERRNO | 13);
    assert_eq!(results(&profile), [Some(NOTIFY), refused, Some(ALLOW)]);
    // Other architectures, x32 among them, are the kernel's.
    let program = &filter_of(both, &watch).program;
    for number in [libc::SYS_sysinfo as u32, 116, 242, 1 << 30 | libc::SYS_sysinfo as u32] {
        for architecture in [I386, ARCHITECTURE] {
            let data = Data { number, architecture, ..Data::default() };
            let asked = ViewCall::of(&data).is_some();
            assert_eq!(evaluate(program, &data), Some(if asked { NOTIFY } else { ALLOW }));
            assert_eq!(asked, architecture == ARCHITECTURE && number == libc::SYS_sysinfo as u32);
        }
    }
}

fn filter_of(limited: Limited, watch: &Watch) -> Rc<Watched> {
    Filter::new(&[], None, Some(watch), limited).watched_with(0).unwrap()
}

/// No capability, no question.
#[test]
fn only_who_can_have_the_capability_is_asked_about() {
    let [raw, all] = watches();
    let filter = |watch| Filter::new(&[], None, watch, Limited::default());
    let raw = filter(Some(&raw));
    assert!(raw.watched_with(NET_RAW).is_some() && raw.watched_with(!NET_RAW).is_none());
    let all = filter(Some(&all));
    assert!(all.watched_with(0).is_some());
    assert!(filter(None).watched_with(u64::MAX).is_none());
}
