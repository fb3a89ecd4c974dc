//! The baseline: what its program answers, and where the kernel's limit stands in for it.

use std::collections::BTreeMap;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::seccomp::{ALLOW, ERRNO, I386, X32, X86_64, answer_of};
use super::*;
use crate::spec::baseline::{Allowed, Confined, Level, joined, program};
use crate::spec::seccomp::compile;
use crate::sys::classic_bpf::{IF_AT_LEAST, IF_EQUAL, IF_SET, NUMBER_AT, Step};

const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;
const EAFNOSUPPORT: u32 = ERRNO | 97;

const NET_RAW: u64 = 1 << 13;
const SYS_ADMIN: u64 = 1 << 21;

fn confined(level: Level, allowed: Allowed, capabilities: u64, filters: bool) -> Confined {
    let baseline = Baseline { level, allowed };
    Confined { baseline, capabilities, filters_user_namespaces: filters }
}

fn with(level: Level, allowed: Allowed, capabilities: u64, filters: bool) -> Vec<u8> {
    program(&confined(level, allowed, capabilities, filters)).expect("a program")
}

fn default() -> Vec<u8> {
    with(Level::Default, Allowed::NONE, 0, true)
}

fn ask(program: &[u8], number: u64, args: [u64; 4]) -> u32 {
    answer_of(program, X86_64, number, [args[0], args[1], args[2], args[3], 0, 0])
}

#[test]
fn whole_calls_are_refused_unless_granted() {
    // The call, its answer, the part that allows it, and the capability.
    let table = [
        (425, ENOSYS, "io_uring", None),
        (426, ENOSYS, "io_uring", None),
        (427, ENOSYS, "io_uring", None),
        (321, EPERM, "bpf", Some(39)),
        (298, EPERM, "perf", Some(38)),
        (323, EPERM, "userfaultfd", Some(19)),
        (248, EPERM, "keys", None),
        (249, EPERM, "keys", None),
        (250, EPERM, "keys", None),
        (134, ENOSYS, "obsolete", None),
    ];
    for (number, answer, part, capability) in table {
        assert_eq!(ask(&default(), number, [0; 4]), answer, "{number}");
        let part = Allowed::named(part).unwrap();
        let free = with(Level::Default, part, 0, true);
        assert_eq!(ask(&free, number, [0; 4]), ALLOW, "{number}");
        if let Some(bit) = capability {
            let free = with(Level::Default, Allowed::NONE, 1 << bit, true);
            assert_eq!(ask(&free, number, [0; 4]), ALLOW, "{number}");
        }
    }
    for number in [0, 1, 2, 39, 101, 165, 462, 1000] {
        assert_eq!(ask(&default(), number, [0; 4]), ALLOW, "{number}");
    }
    assert_eq!(ask(&default(), X32 | 39, [0; 4]), ENOSYS);
    assert_eq!(answer_of(&default(), 0xc000_00b7, 0, [0; 6]), ENOSYS, "aarch64");
}

/// Bits that the kernel does not look at hide nothing.
#[test]
fn arguments_are_compared_as_the_kernel_takes_them() {
    let high = |value: u64| value | 0xdead_beef_0000_0000;
    for socket in [41, 53] {
        for (family, answer) in
            [(1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (17, EPERM), (40, EAFNOSUPPORT)]
        {
            for family in [family, high(family)] {
                assert_eq!(ask(&default(), socket, [family, 0, 0, 0]), answer, "{family:#x}");
            }
        }
    }
    let packets = with(Level::Default, Allowed::NONE, NET_RAW, true);
    assert_eq!(ask(&packets, 41, [17, 0, 0, 0]), ALLOW);
    let vsock = with(Level::Default, Allowed::named("vsock").unwrap(), 0, true);
    assert_eq!(ask(&vsock, 41, [40, 0, 0, 0]), ALLOW);
    assert_eq!(ask(&vsock, 41, [38, 0, 0, 0]), EAFNOSUPPORT);
    for ioctl in [0x5412, 0x541c] {
        assert_eq!(ask(&default(), 16, [0, high(ioctl), 0, 0]), EPERM);
    }
    assert_eq!(ask(&default(), 16, [0, 0x5413, 0, 0]), ALLOW);
    assert_eq!(ask(&default(), 54, [0, high(6), high(31), 0]), ERRNO | 92);
    for (level, option) in [(6, 30), (1, 31), (0, 35)] {
        assert_eq!(ask(&default(), 54, [0, level, option, 0]), ALLOW);
    }
    for (send, at) in [(44, 3), (46, 2), (307, 3)] {
        let mut args = [0; 4];
        args[at] = high(0x4001);
        assert_eq!(ask(&default(), send, args), ERRNO | 95);
        args[at] = 0x4000;
        assert_eq!(ask(&default(), send, args), ALLOW);
    }
    for (persona, answer) in [(0, ALLOW), (8, ALLOW), (0x60008, ALLOW), (0xffff_ffff, ALLOW)] {
        assert_eq!(ask(&default(), 135, [persona, 0, 0, 0]), answer);
    }
    for persona in [0x0040_0000, 0x0010_0000, 6, 0xffff_fffe] {
        assert_eq!(ask(&default(), 135, [high(persona), 0, 0, 0]), EPERM, "{persona:#x}");
    }
    for call in [56, 272] {
        assert_eq!(ask(&default(), call, [high(0x1000_0011), 0, 0, 0]), EPERM);
        assert_eq!(ask(&default(), call, [0x0002_0011, 0, 0, 0]), ALLOW);
    }
    assert_eq!(ask(&default(), 435, [0; 4]), ENOSYS, "clone3");
    let unfiltered = with(Level::Default, Allowed::NONE, 0, false);
    assert_eq!(ask(&unfiltered, 435, [0; 4]), ALLOW);
    assert_eq!(ask(&unfiltered, 272, [0x1000_0000, 0, 0, 0]), ALLOW);
}

#[test]
fn i386_has_the_same_rules() {
    let ask = |number, args: [u64; 4]| {
        answer_of(&default(), I386, number, [args[0], args[1], args[2], args[3], 0, 0])
    };
    assert_eq!(ask(102, [1, 0, 0, 0]), ENOSYS, "socketcall");
    assert_eq!(ask(359, [40, 0, 0, 0]), EAFNOSUPPORT, "socket");
    assert_eq!(ask(360, [1, 0, 0, 0]), ALLOW, "socketpair");
    assert_eq!(ask(366, [0, 6, 31, 0]), ERRNO | 92, "setsockopt");
    assert_eq!(ask(369, [0, 0, 0, 1]), ERRNO | 95, "sendto");
    assert_eq!(ask(370, [0, 0, 1, 0]), ERRNO | 95, "sendmsg");
    assert_eq!(ask(345, [0, 0, 0, 1]), ERRNO | 95, "sendmmsg");
    assert_eq!(ask(54, [0, 0x5412, 0, 0]), EPERM, "ioctl");
    assert_eq!(ask(120, [0x1000_0000, 0, 0, 0]), EPERM, "clone");
    assert_eq!(ask(425, [0; 4]), ENOSYS, "io_uring_setup");
    assert_eq!(ask(357, [0; 4]), EPERM, "bpf");
    assert_eq!(ask(336, [0; 4]), EPERM, "perf_event_open");
    assert_eq!(ask(374, [0; 4]), EPERM, "userfaultfd");
    for key in [286, 287, 288] {
        assert_eq!(ask(key, [0; 4]), EPERM, "{key}");
    }
    for number in [3, 4, 117] {
        assert_eq!(ask(number, [0; 4]), ALLOW, "{number}");
    }
}

#[test]
fn strict_allows_what_it_lists() {
    let strict = with(Level::Strict, Allowed::NONE, 0, false);
    for number in [0, 1, 9, 16, 41, 56, 59, 202, 231, 257, 262, 334, 435, 449] {
        assert_eq!(ask(&strict, number, [1, 0, 0, 0]), ALLOW, "{number}");
    }
    for (number, answer) in [(101, EPERM), (165, EPERM), (272, EPERM), (310, EPERM), (425, ENOSYS)]
    {
        assert_eq!(ask(&strict, number, [0; 4]), answer, "{number}");
    }
    assert_eq!(ask(&strict, 428, [0; 4]), ENOSYS, "open_tree");
    assert_eq!(ask(&strict, 600, [0; 4]), ENOSYS);
    assert_eq!(answer_of(&strict, I386, 3, [0; 6]), ENOSYS);
    for (level, option) in [(0, 35), (0, 42), (41, 20), (41, 46)] {
        assert_eq!(ask(&strict, 54, [0, level, option, 0]), EPERM);
    }
    for (level, option) in [(1, 35), (6, 20), (17, 42), (0, 20)] {
        assert_eq!(ask(&strict, 54, [0, level, option, 0]), ALLOW, "{level} {option}");
    }
    assert_eq!(ask(&strict, 54, [0, 6, 31, 0]), ERRNO | 92);
    let mighty = with(Level::Strict, Allowed::NONE, SYS_ADMIN, false);
    assert_eq!(ask(&mighty, 165, [0; 4]), ALLOW, "mount");
}

/// The kernel asks each program for each call once, with the arguments unknown. Only calls
/// whose arguments count may load one.
#[test]
fn few_calls_depend_on_their_arguments() {
    for (level, filters) in [(Level::Default, true), (Level::Strict, false)] {
        let program = with(level, Allowed::NONE, 0, filters);
        let mut differ = BTreeMap::new();
        for number in 0..1000 {
            let values = [0, 1, 6, 31, 40, 0x5412, 0x1000_0000, 0x0040_0000, 35];
            let answers = values.iter().flat_map(|a| values.map(|b| [*a, b, b, *a]));
            let mut answers: Vec<_> = answers
                .chain([[0, 6, 31, 0], [0, 0, 35, 0]])
                .map(|args| ask(&program, number, args))
                .collect();
            answers.sort_unstable();
            answers.dedup();
            if answers.len() > 1 {
                differ.insert(number, answers);
            }
        }
        let mut expected = vec![16, 41, 44, 46, 53, 54, 135, 307];
        if filters {
            expected.extend([56, 272]);
        }
        expected.sort_unstable();
        assert_eq!(differ.into_keys().collect::<Vec<_>>(), expected);
        assert!(program.len() / 8 < 1024, "{} instructions", program.len() / 8);
    }
}

/// Of two results the kernel takes the one that holds more back, and of two errnos the later
/// program's.
fn beside(baseline: u32, profile: u32) -> u32 {
    const ACTION: u32 = 0xffff_0000;
    // Killing the process is the lowest as a signed number.
    let order = |result: u32| (result & ACTION).cast_signed();
    if order(baseline) < order(profile) { baseline } else { profile }
}

/// The program of a profile that looks at numbers and arguments in ways that libseccomp has and
/// has not: it begins with what nobody has loaded, kills for an odd personality, refuses calls from 1000 on with 97 and 98 by one bit of
/// their numbers, and sockets other than of UNIX.
fn odd_profile() -> Vec<u8> {
    let step = |code, if_true, if_false, operand| Step { code, if_true, if_false, operand };
    let code = [
        step(IF_EQUAL, 1, 0, 0),
        Step::returns(ERRNO | 96),
        Step::load(NUMBER_AT),
        step(IF_EQUAL, 0, 3, 135),
        Step::load_argument(0),
        step(IF_SET, 0, 9, 1),
        Step::returns(0x8000_0000),
        step(IF_EQUAL, 0, 3, 41),
        Step::load_argument(0),
        step(IF_EQUAL, 5, 0, 1),
        Step::returns(ERRNO | 99),
        step(IF_AT_LEAST, 0, 3, 1000),
        step(IF_SET, 0, 1, 4),
        Step::returns(ERRNO | 97),
        Step::returns(ERRNO | 98),
        Step::returns(ALLOW),
    ];
    code.iter().flat_map(Step::bytes).collect()
}

/// A node would go on with the programs that it has compiled before.
#[test]
fn other_programs_have_another_revision() {
    let profile = odd_profile();
    let mut hash = Sha256::new();
    for level in [Level::Default, Level::Strict] {
        for (capabilities, filters) in [(0, true), (u64::MAX, false)] {
            let confined = confined(level, Allowed::NONE, capabilities, filters);
            hash.update(joined(&confined, &profile).unwrap());
        }
    }
    let programs: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let known = "1f7256252bba3b04dffcbb3a235ccd0263a04aa94ad564963e6fbf3be35d62c5";
    assert_eq!(
        programs, known,
        "raise REVISION in spec/seccomp/mod.rs, and set this to the new one"
    );
}

/// One program for both answers as the kernel does with two.
#[test]
fn a_program_joined_with_a_profile_s_answers_as_both_would() {
    let rule = |names: &[&str], action: &str| json!({ "names": names, "action": action });
    let lenient = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            rule(&["bpf", "ioctl"], "SCMP_ACT_KILL_PROCESS"), rule(&["keyctl"], "SCMP_ACT_TRAP"),
            rule(&["sendmsg", "io_uring_setup"], "SCMP_ACT_LOG"), rule(&["add_key"], "SCMP_ACT_KILL"),
            { "names": ["perf_event_open"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77 },
        ],
    });
    let engine: Value = serde_json::from_str(CTR_SECCOMP).unwrap();
    let profiles = [engine["linux"]["seccomp"].clone(), lenient];
    let compiled = profiles.map(|p| compile(&serde_json::from_value(p).unwrap()).unwrap().program);
    for profile in compiled.into_iter().chain([odd_profile()]) {
        for (level, filters) in [(Level::Default, true), (Level::Strict, false)] {
            let confined = confined(level, Allowed::NONE, 0, filters);
            let (alone, both) = (program(&confined).unwrap(), joined(&confined, &profile).unwrap());
            assert!(both.len() / 8 < 450, "{} instructions", both.len() / 8);
            let values = [0, 1, 6, 17, 31, 40, 0x5412, 0x1000_0000, 0x0002_0000, 0x0040_0000];
            let numbers =
                || (0..500).chain([999, 1000, 1001, 1004, 5000, X32 - 1, u32::MAX.into()]);
            for (arch, number) in [X86_64, I386].iter().flat_map(|a| numbers().map(|n| (*a, n))) {
                let args = || values.iter().flat_map(|a| values.map(|b| [*a, b, b, *a, 0, 0]));
                let ask = |program: &[u8], args| answer_of(program, arch, number, args);
                let by_bits = profile == odd_profile() && number >= 1000;
                let fixed = !by_bits && args().all(|a| ask(&profile, a) == ask(&profile, [0; 6]));
                for args in args() {
                    let (ours, its) = (ask(&alone, args), ask(&profile, args));
                    // Where the profile looks at arguments or bits, a refusal has our errno.
                    let ours_counts = !fixed && ours != ALLOW;
                    let expected = if ours_counts { ours } else { beside(ours, its) };
                    assert_eq!(ask(&both, args), expected, "{arch:#x} {number} {args:x?}");
                }
            }
            assert_ne!(answer_of(&both, X86_64, X32 | 39, [0; 6]), ALLOW);
            assert_eq!(answer_of(&both, 0xc000_00b7, 0, [0; 6]), ENOSYS, "aarch64");
        }
    }
}

/// The kernel takes 4096 instructions.
#[test]
fn a_profile_that_looks_at_all_arguments_gets_little_longer() {
    use libseccomp::{ScmpArch, ScmpSyscall};
    let name = |number| ScmpSyscall::from(number).get_name_by_arch(ScmpArch::X8664).ok();
    let rule = |number: i32| {
        let args = json!([{ "index": number % 6, "value": number, "op": "SCMP_CMP_EQ" }]);
        Some(json!({ "names": [name(number)?], "action": "SCMP_ACT_ALLOW", "args": args }))
    };
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": (0..250).filter_map(rule).collect::<Vec<_>>(),
    });
    let profile = compile(&serde_json::from_value(profile).unwrap()).unwrap().program;
    let confined = confined(Level::Default, Allowed::NONE, 0, false);
    let (alone, both) = (program(&confined).unwrap(), joined(&confined, &profile).unwrap());
    let (apart, both) = ((alone.len() + profile.len()) / 8, both.len() / 8);
    assert!(apart > 2000 && both < apart + 50, "{apart} apart, {both} together");
}

const LIMIT: &str = "user.max_user_namespaces";

fn limit(plan: &Plan) -> Option<&str> {
    let mut all = plan.container.user_sysctls.iter();
    all.find(|(name, _)| name == LIMIT).map(|(_, value)| value.as_str())
}

fn filters_users(plan: &Plan) -> bool {
    plan.host.confined.is_some_and(|confined| confined.filters_user_namespaces)
}

#[test]
fn the_kernel_s_limit_holds_user_namespaces_back_where_there_is_one() {
    let plan = Story::of(CTR).accepted();
    assert_eq!(
        (limit(&plan), filters_users(&plan), plan.host.nested_users),
        (Some("0"), false, false)
    );
    let plan = Story::of(CTR).userns(Userns::Never).accepted();
    assert_eq!((limit(&plan), filters_users(&plan)), (None, true));
    // It could write the limit.
    let caps = json!({ "bounding": ["CAP_SYS_RESOURCE"] });
    let plan = Story::of(CTR).set("/process/capabilities", caps).accepted();
    assert_eq!((limit(&plan), filters_users(&plan)), (Some("0"), true));
    let mut free = Story::of(CTR);
    free.baseline.allowed = Allowed::named("user_namespaces").unwrap();
    let plan = free.accepted();
    assert_eq!((limit(&plan), filters_users(&plan), plan.host.nested_users), (None, false, true));
    // The sandbox container writes the limit of a pod.
    assert_eq!(limit(&Story::of(CRI_SANDBOX).accepted()), Some("0"));
}

#[test]
fn the_first_container_decides_on_user_namespaces() {
    let free = SandboxFacts { nested_users: true, ..sandbox() };
    let plan = Story::of(CRI_CONTAINER).inside(free.clone()).accepted();
    assert_eq!((limit(&plan), filters_users(&plan)), (None, true));
    let mut allowed = Story::of(CRI_CONTAINER).inside(free);
    allowed.baseline.allowed = Allowed::named("user_namespaces").unwrap();
    let plan = allowed.accepted();
    assert_eq!((limit(&plan), filters_users(&plan)), (None, false));
}

#[test]
fn privileged_containers_have_no_baseline() {
    let plan = Story::of(CTR_PRIVILEGED).accepted();
    assert_eq!((plan.container.baseline.as_slice(), limit(&plan)), (&[][..], None));
    let mut off = Story::of(CTR);
    off.baseline = Baseline::OFF;
    let plan = off.accepted();
    assert_eq!((plan.container.baseline.as_slice(), limit(&plan)), (&[][..], None));
}

#[test]
fn what_the_spec_asks_for_in_vain_is_told() {
    let told = |story: &Story| -> Vec<(String, bool)> {
        let powerless = story.accepted().host.powerless;
        let ours = powerless.iter().filter(|p| p.instead.contains("baseline_allow"));
        ours.map(|p| (p.to_string(), p.by_default)).collect()
    };
    let asks = Story::of(CTR).set("/linux/sysctl", json!({ (LIMIT): "7" }));
    assert_eq!(limit(&asks.accepted()), Some("0"));
    assert!(told(&asks)[0].0.contains("user_namespaces"), "{:?}", told(&asks));
    let caps = json!({ "bounding": ["CAP_SYS_ADMIN"] });
    assert_eq!(told(&Story::of(CTR).set("/process/capabilities", caps)).len(), 1);
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{ "names": ["read", "keyctl", "io_uring_setup"], "action": "SCMP_ACT_ALLOW" }],
    });
    let mut story = Story::of(CTR).set("/linux/seccomp", profile);
    let sentences = told(&story);
    assert!(sentences[0].0.contains("io_uring_setup") && sentences[0].1, "{sentences:?}");
    assert!(sentences[1].0.contains("keyctl") && !sentences[1].1, "{sentences:?}");
    story.baseline = Baseline::OFF;
    assert_eq!(told(&story), []);
    // Engines' own profiles ask for nothing.
    assert!(told(&Story::of(CTR_SECCOMP)).iter().all(|(_, by_default)| *by_default));
    // Their programs are joined.
    let plan = Story::of(CTR_SECCOMP).accepted();
    assert!(plan.container.baseline.is_empty() && plan.host.confined.is_some());
}

/// What `ci/compat --calls` wrote: a system call, how many pieces of software use it, and some of
/// these, those first that are granted the least.
const USED: &str = include_str!("../baseline/used.txt");

/// Calls that the strict baseline allows to all though no piece uses them, and why.
const UNSEEN: [(&str, &[&str]); 5] = [
    (
        "another form of a call that is used, or the other half of its interface",
        &[
            "eventfd",
            "faccessat",
            "fchmodat2",
            "fork",
            "futex_requeue",
            "futex_wait",
            "futex_wake",
            "futimesat",
            "getxattrat",
            "gettimeofday",
            "io_cancel",
            "io_pgetevents",
            "listxattrat",
            "mlock2",
            "munlockall",
            "pkey_free",
            "pkey_mprotect",
            "removexattrat",
            "rt_tgsigqueueinfo",
            "sched_rr_get_interval",
            "sched_setparam",
            "select",
            "semop",
            "setxattrat",
            "signalfd",
            "time",
            "timer_gettime",
            "timerfd_gettime",
            "tkill",
            "utimes",
        ],
    ),
    (
        "a program restricts itself by them",
        &["landlock_add_rule", "landlock_restrict_self", "mseal"],
    ),
    ("newer C libraries and languages use them", &["getcpu", "map_shadow_stack", "pidfd_open"]),
    ("they write out or read ahead what the program may write and read", &["readahead", "syncfs"]),
    ("sync(1)", &["sync"]),
];

/// Calls that pieces use and that the strict baseline refuses them nevertheless, and why.
const HELD_BACK: [(&str, &[&str]); 4] = [
    (
        "parts that the default baseline holds back as well; programs do without",
        &["add_key", "io_uring_enter", "io_uring_register", "io_uring_setup", "keyctl"],
    ),
    (
        "the kernel refuses them without a capability, or without a nested user namespace",
        &["clock_settime", "mount", "quotactl", "reboot", "umount2", "unshare", "vhangup"],
    ),
    ("debuggers' calls, a part of their own", &["kcmp", "process_vm_readv", "ptrace"]),
    ("only a test of the kernel itself uses them (stress-ng)", &["fanotify_init", "modify_ldt"]),
];

/// What a piece is granted: capabilities, by `ctr` to all and by its arguments, and parts.
fn grants(piece: &str) -> (u64, Allowed) {
    let default = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];
    let mut capabilities = default.iter().fold(0, |mask, bit| mask | 1 << bit);
    let mut parts = Allowed::NONE;
    let more = piece.split_once('(').map_or("", |(_, more)| more.trim_end_matches(')'));
    for name in more.split('+').filter(|name| !name.is_empty()) {
        match name.strip_prefix("CAP_") {
            Some("NET_ADMIN") => capabilities |= 1 << 12,
            Some("SYS_PTRACE") => capabilities |= 1 << 19,
            Some("SYS_ADMIN") => capabilities |= SYS_ADMIN,
            Some(other) => panic!("{piece}: which bit is {other}?"),
            None => parts = parts.with(Allowed::named(name).expect("a part")),
        }
    }
    (capabilities, parts)
}

fn sorted<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort_unstable();
    names
}

#[test]
fn strict_allows_what_software_uses_and_little_more() {
    use libseccomp::{ScmpArch, ScmpSyscall};
    let name = |number: u64| {
        let call = ScmpSyscall::from(i32::try_from(number).expect("a number"));
        call.get_name_by_arch(ScmpArch::X8664).ok()
    };
    // No check refuses both.
    let allows = |program: &[u8], number| {
        [0, 1].into_iter().any(|first| ask(program, number, [first, 0, 0, 0]) == ALLOW)
    };
    let used: BTreeMap<&str, Vec<&str>> = USED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split(' ');
            let call = words.next().expect("a call");
            assert!(words.next().is_some_and(|count| count.parse::<u32>().is_ok()), "{line}");
            (call, words.collect())
        })
        .collect();
    assert!(used.len() > 200 && used["read"].len() == 8, "{} calls", used.len());
    let bare = with(Level::Strict, Allowed::NONE, 0, false);
    let named: BTreeMap<String, u64> =
        (0..1000).filter_map(|number| Some((name(number)?, number))).collect();

    let to_all = named.iter().filter(|(_, number)| allows(&bare, **number));
    let unseen = to_all.map(|(name, _)| name.as_str()).filter(|name| !used.contains_key(name));
    // Names that this libseccomp does not know have no number.
    let argued = UNSEEN.iter().flat_map(|(_, names)| names.iter().copied());
    let argued = argued.filter(|name| named.contains_key(*name));
    assert_eq!(sorted(unseen), sorted(argued), "allowed to all, and used by none");

    let refused = used.iter().filter(|(call, pieces)| {
        let number = *named.get(**call).unwrap_or_else(|| panic!("which number is {call}?"));
        pieces.iter().any(|piece| {
            let (capabilities, parts) = grants(piece);
            !allows(&with(Level::Strict, parts, capabilities, false), number)
        })
    });
    let argued = HELD_BACK.iter().flat_map(|(_, names)| names.iter().copied());
    assert_eq!(sorted(refused.map(|(call, _)| *call)), sorted(argued), "used, and refused");
}
