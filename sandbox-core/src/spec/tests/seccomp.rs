//! Profiles, and what their programs answer: to a small interpreter here, and
//! to the kernel in a process of its own.

use std::process::Command;

use oci_spec::runtime::LinuxSeccomp;
use serde_json::json;

use super::*;
use crate::spec::seccomp::{Compiled, check, compile, flags, key};

pub(super) const X86_64: u32 = 0xc000_003e;
pub(super) const I386: u32 = 0x4000_0003;
pub(super) const X32: u64 = 0x4000_0000;

pub(super) const ALLOW: u32 = 0x7fff_0000;
pub(super) const ERRNO: u32 = 0x0005_0000;
const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;

fn containerds() -> LinuxSeccomp {
    let spec: Value = serde_json::from_str(CTR_SECCOMP).unwrap();
    serde_json::from_value(spec["linux"]["seccomp"].clone()).unwrap()
}

fn profile(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

/// Runs a program for a system call (`linux/filter.h`, classic BPF). Returns its result.
fn answer(compiled: &Compiled, arch: u32, number: u64, args: [u64; 6]) -> u32 {
    answer_of(&compiled.program, arch, number, args)
}

pub(super) fn answer_of(program: &[u8], arch: u32, number: u64, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend((number as u32).to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
    let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let instruction = &program[at * 8..at * 8 + 8];
        let operation = u16::from_ne_bytes([instruction[0], instruction[1]]);
        let operand = word(instruction, 4);
        at += 1;
        let holds = match operation {
            0x20 => {
                accumulator = word(&data, operand as usize);
                continue;
            }
            0x00 => {
                accumulator = operand;
                continue;
            }
            0x54 => {
                accumulator &= operand;
                continue;
            }
            0x05 => {
                at += operand as usize;
                continue;
            }
            0x06 => return operand,
            0x15 => accumulator == operand,
            0x25 => accumulator > operand,
            0x35 => accumulator >= operand,
            0x45 => accumulator & operand != 0,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(instruction[if holds { 2 } else { 3 }]);
    }
}

fn native(compiled: &Compiled, number: u64, args: [u64; 6]) -> u32 {
    answer(compiled, X86_64, number, args)
}

#[test]
fn containerds_profile_gives_the_results_that_it_lists() {
    let compiled = compile(&containerds()).unwrap();
    let ask = |number, first: u64| native(&compiled, number, [first, 0, 0, 0, 0, 0]);
    assert_eq!(ask(0, 0), ALLOW, "read");
    assert_eq!(ask(165, 0), EPERM, "mount");
    assert_eq!(ask(135, 0), ALLOW, "personality(PER_LINUX)");
    assert_eq!(ask(135, 0x20000), ALLOW, "personality(UNAME26)");
    assert_eq!(ask(135, 0x40000), EPERM, "personality(ADDR_NO_RANDOMIZE)");
    assert_eq!(ask(56, 0x11), ALLOW, "clone(SIGCHLD)");
    assert_eq!(ask(56, 0x1000_0000), EPERM, "clone(CLONE_NEWUSER)");
    assert_eq!(ask(435, 0), ENOSYS, "clone3");
    assert_eq!(answer(&compiled, I386, 3, [0; 6]), ALLOW, "i386 read");
    assert_eq!(answer(&compiled, I386, 21, [0; 6]), EPERM, "i386 mount");
}

#[test]
fn system_calls_newer_than_the_profile_do_not_exist() {
    let compiled = compile(&containerds()).unwrap();
    for newer in [460, 500, 0x3fff_ffff, X32 | 1000] {
        assert_eq!(native(&compiled, newer, [0; 6]), ENOSYS, "{newer:#x}");
    }
    assert_eq!(answer(&compiled, I386, 460, [0; 6]), ENOSYS);
    // Older ones that it leaves out are forbidden.
    assert_eq!(native(&compiled, 428, [0; 6]), EPERM, "open_tree");
    // A profile that allows by default has nothing against new ones.
    let lenient = profile(
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]}),
    );
    assert_eq!(native(&compile(&lenient).unwrap(), 500, [0; 6]), ALLOW);
}

#[test]
fn every_action_and_comparison_is_known() {
    let rule = |name: &str, action: &str| json!({"names": [name], "action": action});
    let arg = |op: &str| json!({"index": 1, "value": 0xf0, "valueTwo": 0x10, "op": op});
    let when = |name: &str, op: &str| json!({"names": [name], "action": "SCMP_ACT_LOG", "args": [arg(op)]});
    let compiled = compile(&profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            rule("read", "SCMP_ACT_KILL"), rule("write", "SCMP_ACT_KILL_PROCESS"), rule("open", "SCMP_ACT_TRAP"),
            {"names": ["close", "not_a_system_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
            {"names": ["stat"], "action": "SCMP_ACT_TRACE", "errnoRet": 65535}, rule("fstat", "SCMP_ACT_ERRNO"),
            when("lstat", "SCMP_CMP_NE"), when("poll", "SCMP_CMP_LT"), when("lseek", "SCMP_CMP_LE"),
            when("mmap", "SCMP_CMP_EQ"), when("mprotect", "SCMP_CMP_GE"), when("munmap", "SCMP_CMP_GT"),
            when("brk", "SCMP_CMP_MASKED_EQ"), rule("ioctl", "SCMP_ACT_ALLOW"),
            {"names": ["dup"], "action": "SCMP_ACT_LOG", "args": [arg("SCMP_CMP_LT"), arg("SCMP_CMP_GT")]}
        ]
    }))).unwrap();
    let plain = [
        (0, 0),
        (1, 0x8000_0000),
        (2, 0x0003_0000),
        (3, ERRNO | 77),
        (4, 0x7ff0_ffff),
        (5, EPERM),
        (16, ALLOW),
    ];
    for (number, expected) in plain {
        assert_eq!(native(&compiled, number, [0; 6]), expected, "{number}");
    }
    // Which of below, equal and above 0xf0 are logged.
    let compared = [
        (6, [true, false, true]),
        (7, [true, false, false]),
        (8, [true, true, false]),
        (9, [false, true, false]),
        (10, [false, true, true]),
        (11, [false, false, true]),
        // Two conditions on one argument: either.
        (32, [true, false, true]),
    ];
    for (number, logged) in compared {
        for (value, logged) in [0x12, 0xf0, 0x00ff_ffff_ffff].into_iter().zip(logged) {
            let expected = if logged { 0x7ffc_0000 } else { ALLOW };
            assert_eq!(
                native(&compiled, number, [0, value, 0, 0, 0, 0]),
                expected,
                "{number} {value:#x}"
            );
        }
    }
    assert_eq!(native(&compiled, 12, [0, 0xff1f, 0, 0, 0, 0]), 0x7ffc_0000);
    assert_eq!(native(&compiled, 12, [0, 0xff2f, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn flags_are_the_kernels() {
    let with = |flags: Value| flags_of(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}));
    assert_eq!(flags_of(json!({"defaultAction": "SCMP_ACT_ALLOW"})), 4);
    assert_eq!(with(json!([])), 0);
    assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"])), 3);
    assert_eq!(
        with(json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])),
        4
    );
}

fn flags_of(value: Value) -> u32 {
    flags(&profile(value))
}

#[test]
fn a_key_depends_on_the_profile_and_on_nothing_else() {
    let one = key(&containerds(), None).unwrap();
    assert_eq!(one, key(&containerds(), None).unwrap());
    assert_eq!(one.len(), 64);
    assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_ne!(one, key(&profile(json!({"defaultAction": "SCMP_ACT_ALLOW"})), None).unwrap());
}

#[test]
fn a_profile_that_cannot_be_compiled_is_refused_by_field() {
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let table = [
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction: is SCMP_ACT_NOTIFY",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
            "linux.seccomp.defaultErrnoRet: belongs to",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}),
            "linux.seccomp.defaultErrnoRet: is 4096",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})),
            "linux.seccomp.listenerPath: is missing",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent",
                "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"}]}),
            "linux.seccomp.syscalls[0].names: SCMP_ACT_NOTIFY is not possible for write",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536})),
            "linux.seccomp.syscalls[0].errnoRet",
        ),
        (rule(json!({"names": [], "action": "SCMP_ACT_ERRNO"})), "linux.seccomp.syscalls[0].names"),
        (
            rule(
                json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}),
            ),
            "linux.seccomp.syscalls[0].args[0].index",
        ),
    ];
    for (value, expected) in table {
        let message = check(&profile(value.clone())).expect_err("should be refused").to_string();
        assert!(message.contains(expected), "{message:?} does not contain {expected:?}");
        Story::of(CTR).set("/linux/seccomp", value).refused(expected);
    }
}

/// A variable in the environment of the process that loads the program.
const LOADER: &str = "PALISADE_TEST_LOADS_SECCOMP";

#[test]
fn the_kernel_takes_containerds_profile_and_obeys_it() {
    if std::env::var_os(LOADER).is_some() {
        return load_and_probe();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "spec::tests::seccomp::the_kernel_takes_containerds_profile_and_obeys_it",
        ])
        .env(LOADER, "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    assert!(errors.contains("obeyed"), "the loader printed {errors:?}");
}

fn load_and_probe() {
    use crate::sys::process::{load_seccomp, system_call};
    let compiled = compile(&containerds()).unwrap();
    rustix::thread::set_no_new_privs(true).unwrap();
    load_seccomp(&compiled.program, compiled.flags).unwrap();
    let errno = |number| system_call(number).unwrap_err().raw_os_error();
    assert!(system_call(39).is_ok(), "getpid");
    assert_eq!(errno(155), Some(1), "pivot_root");
    assert_eq!(errno(435), Some(38), "clone3");
    assert_eq!(errno(500), Some(38), "none yet");
    eprintln!("obeyed");
}
