//! What the user log says about a call: held to what the programs answer.

use serde_json::json;

use super::seccomp::{ALLOW, I386, X86_64, answer_of};
use super::*;
use crate::spec::baseline::{Allowed, Confined, Level, held, name_of, program};
use crate::spec::refused::{Refused, Rule, explain};
use crate::spec::resolve::capabilities::names_of;
use crate::types::Call;

const ENOSYS: u16 = 38;
const NET_RAW: u64 = 1 << 13;
const SYS_ADMIN: u64 = 1 << 21;

/// Arguments that decide somewhere.
const ARGUMENTS: [[u64; 6]; 16] = [
    [0; 6],
    [1, 1, 1, 1, 1, 1],
    [2, 3, 0, 0, 0, 0],
    [10, 0x8_0003, 0, 0, 0, 0],
    [17, 2, 0, 0, 0, 0],
    [38, 5, 0, 0, 0, 0],
    [40, 1, 0, 0, 0, 0],
    [44, 3, 0, 0, 0, 0],
    [3, 6, 31, 1, 0, 0],
    [3, 0, 35, 0, 0, 0],
    [3, 0x5412, 0, 0, 0, 0],
    [u32::MAX as u64, u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX],
    [0x1000_0011, 0, 0, 0, 0, 0],
    [0x40_0000, 0o020_666, 0x501, 0, 0, 0],
    [0x2_0080, 0o060_666, 0o020_666, 0x501, 0, 0],
    [0x8000_0801, 0o010_666, 0o010_666, 0, 0, 0],
];

fn calls() -> impl Iterator<Item = Call> {
    [X86_64, I386].into_iter().flat_map(|audit| {
        (0..600)
            .chain([0x4000_0000, 0x4000_0027])
            .flat_map(move |number| ARGUMENTS.map(|arguments| Call { audit, number, arguments }))
    })
}

fn answer(program: &[u8], call: &Call) -> u32 {
    answer_of(program, call.audit, call.number.into(), call.arguments)
}

#[test]
fn a_rule_is_named_where_the_baseline_refuses_and_nowhere_else() {
    let some = Allowed::named("bpf").unwrap().with(Allowed::named("alg").unwrap());
    for level in [Level::Default, Level::Strict] {
        for allowed in [Allowed::NONE, some] {
            for (capabilities, filters_user_namespaces) in
                [(0, true), (0, false), (NET_RAW, false), (SYS_ADMIN, true)]
            {
                let baseline = Baseline { level, allowed };
                let confined = Confined { baseline, capabilities, filters_user_namespaces };
                let program = program(&confined).unwrap();
                for call in calls() {
                    let (answer, held) = (answer(&program, &call), held(&confined, &call));
                    assert_eq!(
                        answer != ALLOW,
                        held.is_some(),
                        "{call:?} ({:?}): {answer:#x}, {held:?}, {confined:?}",
                        name_of(&call)
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_named_allows_the_call() {
    let confined = |allowed, capabilities| Confined {
        baseline: Baseline { level: Level::Default, allowed },
        capabilities,
        filters_user_namespaces: !allowed.contains(Allowed::named("user_namespaces").unwrap()),
    };
    for call in calls().filter(|call| call.audit == X86_64 || call.number < 500) {
        let Some(found) = held(&confined(Allowed::NONE, 0), &call) else { continue };
        let Some(part) = found.part else { panic!("{call:?}") };
        let free = confined(Allowed::named(part).unwrap(), 0);
        assert_eq!(answer(&program(&free).unwrap(), &call), ALLOW, "{call:?}: {part}");
        if found.granted_by != 0 {
            let free = program(&confined(Allowed::NONE, found.granted_by)).unwrap();
            assert_eq!(answer(&free, &call), ALLOW, "{call:?}: {found:?}");
        }
    }
}

fn told(mut story: Story, number: u32, arguments: [u64; 3], errno: Option<u16>) -> Option<Refused> {
    story.tells_refusals = true;
    let plan = story.plan().unwrap();
    let [a, b, c] = arguments;
    let call = Call { audit: X86_64, number, arguments: [a, b, c, 0, 0, 0] };
    explain(&plan, &call, errno)
}

fn refused(call: &str, errno: Option<&str>, rule: &str, instead: &str) -> Option<Refused> {
    let errno = errno.map(str::to_owned);
    let by = rule_in(rule);
    Some(Refused { call: call.into(), errno, by, rule: rule.into(), instead: instead.into() })
}

/// Returns the rule that a sentence names.
fn rule_in(sentence: &str) -> Rule {
    if let Some((_, part)) = sentence.split_once("baseline (") {
        let part = part.split(')').next().unwrap();
        let (name, _) = Allowed::NAMES.iter().find(|(name, _)| *name == part).unwrap();
        return Rule::Baseline(Some(name));
    }
    if let Some((_, rest)) = sentence.split_once("needs ") {
        let needed = rest.split([',', ' ']).next().unwrap();
        let is = |number: &u8| names_of(1 << number).eq([needed]);
        return Rule::Capability((0..64).find(is).unwrap());
    }
    match sentence.contains("strict list") {
        true => Rule::Baseline(None),
        false => Rule::Profile,
    }
}

#[test]
fn each_kind_of_refusal_says_what_to_set() {
    assert_eq!(
        told(Story::of(CTR), 41, [38, 5, 0], Some(97)),
        refused(
            "socket(AF_ALG, SOCK_SEQPACKET, 0)",
            Some("EAFNOSUPPORT"),
            "refused by the baseline (alg)",
            "baseline_allow = [\"alg\"]"
        )
    );
    assert_eq!(
        told(Story::of(CTR), 321, [5, 0, 0], Some(1)),
        refused(
            "bpf(BPF_PROG_LOAD)",
            Some("EPERM"),
            "refused by the baseline (bpf)",
            "baseline_allow = [\"bpf\"], or securityContext.capabilities.add: [\"SYS_ADMIN\"] or \
             [\"BPF\"]"
        )
    );
    assert_eq!(
        told(Story::of(CTR), 165, [0; 3], None),
        refused(
            "mount(..., ..., ..., 0)",
            None,
            "needs CAP_SYS_ADMIN, which the container does not have",
            "securityContext.capabilities.add: [\"SYS_ADMIN\"]"
        )
    );
    assert_eq!(
        told(Story::of(CTR), 133, [0, 0o020_600, 0x101], None),
        refused(
            "mknod(..., S_IFCHR|0o600, 1:1)",
            None,
            "needs CAP_MKNOD over the host, which nothing in a user namespace has",
            "userns = \"never\" for this pod"
        )
    );
    assert_eq!(told(Story::of(CTR).userns(Userns::Never), 133, [0, 0o020_600, 0x101], None), None);
    assert_eq!(
        told(Story::of(CTR), 272, [0x1000_0000, 0, 0], None),
        refused(
            "unshare(CLONE_NEWUSER)",
            None,
            "refused by the baseline (user_namespaces)",
            "baseline_allow = [\"user_namespaces\"]"
        )
    );
    let own = || {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["getcwd", "bpf", "mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99},
            ],
        });
        Story::of(CTR).set("/linux/seccomp", profile)
    };
    assert_eq!(
        told(own(), 79, [0; 3], Some(99)),
        refused(
            "getcwd",
            Some("EADDRNOTAVAIL"),
            "refused by the spec's seccomp profile",
            "another seccompProfile"
        )
    );
    assert_eq!(
        told(own(), 321, [0; 3], Some(99)).unwrap().rule,
        "refused by the baseline (bpf) and the spec's seccomp profile"
    );
    assert_eq!(
        told(own(), 165, [0; 3], Some(99)).unwrap().instead,
        "securityContext.capabilities.add: [\"SYS_ADMIN\"], or another seccompProfile"
    );
    assert_eq!(
        told(Story::of(CTR), 425, [8, 0, 0], Some(ENOSYS)),
        refused(
            "io_uring_setup(8)",
            Some("ENOSYS"),
            "refused by the baseline (io_uring)",
            "baseline_allow = [\"io_uring\"]"
        )
    );
    // A hostile boot may name any call.
    assert_eq!(told(Story::of(CTR), 39, [0; 3], None), None);
    assert_eq!(
        told(Story::of(CTR), u32::MAX, [u64::MAX; 3], Some(u16::MAX)).unwrap().errno.unwrap(),
        "errno 65535"
    );
}
