//! sched_getaffinity(2) and sysinfo(2) tell a container's CPUs and memory where its limits say
//! less than the kernel. Callers may do what they can against boot, which answers.

use std::fs;
use std::time::{Duration, Instant};

use integration::container::{NewContainer, options};
use integration::containerd::{Containerd, Version};
use integration::host::cpu_time;
use integration::stdio::Streams;
use integration::{host, image, on_each_containerd, sandbox, spec};
use serde_json::{Value, json};

on_each_containerd!(
    programs_are_told_the_quota_and_the_limit,
    without_a_limit_boot_is_asked_nothing,
    what_a_profile_refuses_stays_refused,
);

const MIB: i64 = 1 << 20;

fn ours(containerd: &Containerd) -> bool {
    containerd.runtime_name().contains("palisade")
}

fn host_cpus() -> u64 {
    std::thread::available_parallelism().expect("the host's CPUs").get() as u64
}

fn host_kibibytes() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|total| total.split_whitespace().next()?.parse().ok());
    total.expect("MemTotal in kB")
}

/// Limits of CPUs in thousandths, and of memory in MiB.
fn limits(cpus: Option<i64>, memory: Option<i64>) -> Value {
    json!({
        "cpu": {"period": 100_000, "quota": cpus.map_or(-1, |cpus| cpus * 100)},
        "memory": {"limit": memory.map_or(-1, |memory| memory * MIB)},
    })
}

fn with_limits(new: NewContainer<'_>, limits: Value) -> NewContainer<'_> {
    new.spec(|spec| {
        for (key, value) in limits.as_object().expect("an object") {
            spec["linux"]["resources"][key] = value.clone();
        }
        let path = image::sibling("calls");
        spec::add_bind(spec, path.to_str().expect("an ASCII path"), "/calls", &["bind", "ro"]);
    })
}

/// Prints what nproc and free say, which make the two calls.
const TOLD: &str = "nproc; free | sed -n 's/^Mem: *\\([0-9]*\\) .*/\\1/p'";

fn told(printed: &str) -> (u64, u64) {
    let numbers: Vec<u64> = printed.split_whitespace().map_while(|n| n.parse().ok()).collect();
    let [cpus, kibibytes] = numbers[..] else { panic!("two numbers in {printed:?}") };
    (cpus, kibibytes)
}

/// The init and an exec, before an update and after it.
fn programs_are_told_the_quota_and_the_limit(containerd: Containerd) {
    let (cpus, kibibytes) = (host_cpus(), host_kibibytes());
    let expected = |of_quota: u64, mib: u64| match ours(&containerd) {
        true => (of_quota.min(cpus), (mib * 1024).min(kibibytes)),
        false => (cpus, kibibytes),
    };
    let script = format!("({TOLD}) > /new && mv /new /told; exec sleep 1000");
    let container =
        with_limits(containerd.shell("told", &script), limits(Some(500), Some(64))).start();
    let exec = |id: &str| told(&container.exec_shell(id, TOLD).1);
    assert_eq!(exec("half"), expected(1, 64));
    let of_init = container.exec_shell("init", "until cat /told 2>/dev/null; do :; done").1;
    assert_eq!(told(&of_init), expected(1, 64));
    container.update(&limits(Some(1500), Some(128))).expect("update");
    assert_eq!(exec("one-and-a-half"), expected(2, 128));
    container.update(&limits(None, None)).expect("update");
    assert_eq!(exec("all"), (cpus, kibibytes));
    container.update(&limits(Some(1000), Some(96))).expect("update");
    assert_eq!(exec("one"), expected(1, 96));
    if ours(&containerd) {
        let (_, printed) = container.exec_shell("threads", "/calls told");
        let one = format!("[{}]", cpus - 1);
        for line in ["by its number", "by another thread"] {
            assert!(printed.contains(&format!("{line} {one}\n")), "{printed}");
        }
        assert!(printed.contains(&format!("of no thread Err({})", 3)), "{printed}");
        assert!(printed.contains(&format!("memory {}\n", 96 * MIB)), "{printed}");
        // By the quota, not by what a thread has set itself; and who has set itself all of its
        // container's is told as before.
        let (_, printed) = container.exec_shell("own", "taskset 1 nproc; taskset ff nproc");
        assert_eq!(printed.split_whitespace().collect::<Vec<_>>(), ["1", "1"], "{printed}");
    }
}

/// The number of listeners that boot has.
fn listeners(shim: i32) -> usize {
    let descriptors = host::descriptors(sandbox::boot_of(shim).pid);
    descriptors.values().filter(|file| file.contains("seccomp notify")).count()
}

/// A filter cannot be added to a process that runs, but an exec after the update has it.
fn without_a_limit_boot_is_asked_nothing(containerd: Containerd) {
    if !ours(&containerd) {
        return;
    }
    let script = format!("read wait; {TOLD}; exec sleep 1000");
    let idle = |id: &str, limits| with_limits(containerd.shell(id, &script), limits).start();
    let free = idle("free", limits(None, None));
    assert_eq!(listeners(free.shim()), 0);
    let limited = idle("limited", limits(Some(1000), None));
    assert_eq!(listeners(limited.shim()), 1);
    free.update(&limits(Some(1000), Some(64))).expect("update");
    assert_eq!(listeners(free.shim()), 0);
    assert_eq!(told(&free.exec_shell("later", TOLD).1), (1, 64 * 1024));
    let off = with_limits(containerd.shell("off", &script), limits(Some(1000), Some(64)));
    let off = off.options(options("views = 'off'", "")).start();
    assert_eq!(listeners(off.shim()), 0);
    assert_eq!(told(&off.exec_shell("of-off", TOLD).1), (host_cpus(), host_kibibytes()));
}

fn what_a_profile_refuses_stays_refused(containerd: Containerd) {
    let refuses = |name: &str| {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": 33}],
        })
    };
    for (name, program) in
        [("sched_getaffinity", "nproc"), ("sysinfo", "/calls loop sysinfo 1 2>&1; echo $?")]
    {
        let new = with_limits(containerd.shell(name, program), limits(Some(500), Some(64)));
        let container = new.spec(|spec| spec["linux"]["seccomp"] = refuses(name)).start();
        container.wait();
        let printed = container.stdio().output();
        match name {
            // nproc then counts what the machine has, by its files.
            "sched_getaffinity" => assert!(!printed.is_empty()),
            _ => assert!(printed.contains("101"), "{printed}"),
        }
    }
}

fn starting(id: &str) -> (Containerd, String) {
    (Containerd::start(Version::V2_1), id.to_owned())
}

/// Whoever calls all the time has a part of boot's time, and nobody else waits for it.
#[test]
fn callers_that_die_and_map_their_memory_anew_hold_nobody_up() {
    let (containerd, id) = starting("hostile");
    if !ours(&containerd) {
        return;
    }
    let script = "(/calls storm 12 6 & /calls race 6; wait) > /printed 2>&1; touch /over; \
                  exec sleep 1000";
    let new = with_limits(containerd.shell(&id, script), limits(Some(1000), Some(64)));
    let container = new.start();
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    for round in 0.. {
        let exec = Instant::now();
        let (_, printed) =
            container.exec_shell(&format!("e{round}"), &format!("{TOLD}; ls /over 2>/dev/null"));
        slowest = slowest.max(exec.elapsed());
        assert_eq!(told(&printed).1, 64 * 1024);
        if printed.contains("over") {
            break;
        }
        assert!(begun.elapsed() < integration::wait::patience(60), "{printed}");
    }
    let (_, printed) = container.exec_shell("printed", "cat /printed");
    println!("the slowest exec took {slowest:?}: {printed}");
    assert!(printed.contains("killed") && printed.contains("failed"), "{printed}");
    assert!(slowest < integration::wait::patience(4), "{slowest:?}");
    let boot = sandbox::boot_of(container.shim()).pid;
    let before = cpu_time(boot);
    std::thread::sleep(Duration::from_secs(1));
    assert!(cpu_time(boot) - before < Duration::from_millis(50), "boot has no rest");
}

/// A program with more rights than its caller is not dumpable: its memory is another's.
#[test]
fn a_program_of_another_user_is_told_as_well() {
    let (containerd, id) = starting("setuid");
    if !ours(&containerd) {
        return;
    }
    let script = "cp /calls /their-calls; chmod 4755 /their-calls; exec sleep 1000";
    let new = with_limits(containerd.shell(&id, script), limits(Some(1000), Some(64)));
    let container = new.start();
    let mut process = spec::process(&[
        "sh",
        "-c",
        "until test -u /their-calls; do :; done; exec /their-calls told",
    ]);
    process["user"] = json!({"uid": 1000, "gid": 1000});
    process["noNewPrivileges"] = json!(false);
    let exec = container.exec("other", process, Streams::Captured).expect("exec");
    exec.start().expect("start");
    let code = exec.wait().code;
    let printed = exec.stdio().output();
    assert_eq!(code, 0, "{printed}{}", exec.stdio().errors());
    assert!(printed.contains(&format!("cpus [{}]", host_cpus() - 1)), "{printed}");
    assert!(printed.contains(&format!("memory {}\n", 64 * MIB)), "{printed}");
}

/// Prints what a call takes, with and without boot's answer.
#[test]
fn a_loop_of_calls_goes_on() {
    let (containerd, id) = starting("loop");
    let script = "for call in getppid sched_getaffinity sysinfo; do /calls loop $call 100000; done";
    for (name, limits) in [("free", limits(None, None)), ("limited", limits(Some(1000), Some(64)))]
    {
        let new = with_limits(containerd.shell(&format!("{id}-{name}"), script), limits);
        let (code, printed) = new.start().finish();
        assert_eq!(code, 0, "{printed}");
        println!("{name}: {printed}");
    }
}
