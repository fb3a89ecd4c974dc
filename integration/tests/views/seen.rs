//! What the files say, before and after the limits change.

use integration::cgroup;
use integration::containerd::{Containerd, Version};
use integration::cri::pod_security;
use integration::docker::Docker;
use integration::{on_each_containerd, on_each_cri, on_each_docker, wait};
use k8s_cri::v1::{LinuxContainerResources, NamespaceMode};
use serde_json::json;

use super::{
    LARGE, LOOK, Limits, RUNC, SMALL, Seen, add_reader, ask, host, limited, limited_in_pod, look,
    seen_in, total,
};

on_each_containerd!(
    a_container_sees_its_limits_before_and_after_an_update,
    a_limit_of_the_parent_that_nobody_tells_is_seen_at_the_next_look,
);
on_each_cri!(
    containers_of_a_pod_that_share_processes_see_each_its_own,
    a_pod_s_container_sees_its_limits_after_an_update,
);
on_each_docker!(Directories: a_container_of_docker_sees_its_limits_before_and_after_an_update);

fn a_container_sees_its_limits_before_and_after_an_update(containerd: Containerd) {
    let container = limited(&containerd, "limited", SMALL).start();
    assert_eq!(look(&container, "before"), SMALL.seen());
    container.update(&LARGE.resources()).expect("update it");
    assert_eq!(look(&container, "after"), LARGE.seen());
    container.update(&SMALL.resources()).expect("update it again");
    assert_eq!(look(&container, "again"), SMALL.seen());
    // A part of a CPU counts as one.
    let odd = Limits { quota: 150_000, ..SMALL };
    container.update(&odd.resources()).expect("update it once more");
    assert_eq!(look(&container, "odd"), Seen { cpus: 2.min(host().cpus), ..SMALL.seen() });

    let control = limited(&containerd, "control", SMALL).runtime(RUNC).start();
    assert_eq!(look(&control, "before"), host());
}

/// A container without limits sees the host's.
#[test]
fn without_limits_a_container_sees_what_the_host_has() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("free", ["sleep", "1000"]).start();
    assert_eq!(look(&container, "now"), host());
}

/// Kubernetes' pod-level resources write the pod's cgroup, and the shim learns nothing.
fn a_limit_of_the_parent_that_nobody_tells_is_seen_at_the_next_look(containerd: Containerd) {
    let container = containerd.container("child", ["sleep", "1000"]).start();
    let control = containerd.container("control", ["sleep", "1000"]).runtime(RUNC).start();
    assert_eq!(look(&container, "at-first"), host());
    for (step, memory) in [("lower", 96 << 20), ("higher", 192 << 20)] {
        let quota = Some(50_000);
        cgroup::limit(
            containerd.slot(),
            &cgroup::Limits { memory: Some(memory), quota, cpus: None },
        );
        assert_eq!(look(&container, step), Seen { memory, cpus: 1 }, "{step}");
        assert_eq!(look(&control, step), host(), "{step}");
    }
    // The smallest counts: a container's own below its parent's, and the other way round.
    container.update(&json!({ "memory": { "limit": 64 << 20 } })).expect("update it");
    assert_eq!(look(&container, "own"), Seen { memory: 64 << 20, cpus: 1 });
    container.update(&json!({ "memory": { "limit": 1 << 30 } })).expect("update it");
    assert_eq!(look(&container, "above"), Seen { memory: 192 << 20, cpus: 1 });
}

/// Which files a process sees depends on where it opened them, not on its PID.
fn containers_of_a_pod_that_share_processes_see_each_its_own(containerd: Containerd) {
    let pod = containerd.pod_with("shared", |config| {
        let namespaces = pod_security(config).namespace_options.get_or_insert_default();
        namespaces.pid = NamespaceMode::Pod.into();
    });
    let other = Limits { memory: 128 << 20, ..LARGE };
    let first = limited_in_pod(&pod, "first", SMALL);
    let second = limited_in_pod(&pod, "second", other);
    for (container, limits) in [(&first, SMALL), (&second, other)] {
        assert_eq!(seen_in(&container.exec(LOOK).stdout), limits.seen());
        for path in ["/proc/self/root/proc/meminfo", "/proc/1/../meminfo", "/proc/../proc/meminfo"]
        {
            let meminfo = container.ask(&format!("cat {path}"));
            assert_eq!(total(&meminfo), limits.seen().memory, "{path}");
        }
    }
    // By the other's root, it reads what the other sees.
    let script = "for p in /proc/[0-9]*; do cat $p/root/proc/meminfo 2>/dev/null; done | \
                  grep MemTotal | sort -u";
    let all = first.ask(script);
    assert!(all.lines().any(|line| total(line) == other.seen().memory), "{all}");
}

fn a_pod_s_container_sees_its_limits_after_an_update(containerd: Containerd) {
    let pod = containerd.pod("resized");
    let container = limited_in_pod(&pod, "main", SMALL);
    assert_eq!(seen_in(&container.exec(LOOK).stdout), SMALL.seen());
    let limits = LinuxContainerResources {
        cpu_quota: LARGE.quota,
        cpu_period: 100_000,
        memory_limit_in_bytes: LARGE.memory,
        ..Default::default()
    };
    container.update(limits).expect("update it");
    assert_eq!(seen_in(&container.exec(LOOK).stdout), LARGE.seen());
}

fn a_container_of_docker_sees_its_limits_before_and_after_an_update(docker: Docker) {
    docker.detached(
        "limited",
        &["--cpus=0.5", "--memory=64m", "--memory-swap=64m"],
        ["sleep", "1000"],
    );
    assert_eq!(seen_in(&docker.ask("limited", LOOK)), SMALL.seen());
    docker.docker(["update", "--cpus=2", "--memory=1g", "--memory-swap=1g", "limited"]).succeeded();
    assert_eq!(seen_in(&docker.ask("limited", LOOK)), LARGE.seen());
}

/// What `top` does: it keeps the file open, and reads it again from its start.
#[test]
fn a_file_that_is_kept_open_over_an_update_says_the_new_limit() {
    let containerd = Containerd::start(Version::V2_1);
    let prepared = containerd.container("keeps", ["/views", "keep", "/proc/meminfo"]);
    let container = prepared.spec(|spec| SMALL.set(spec)).spec(add_reader).start();
    let line = |bytes: u64| format!("MemTotal: {:>14} kB\n", bytes / 1024);
    container.stdio().wait_for_output(&line(SMALL.seen().memory));
    container.update(&LARGE.resources()).expect("update it");
    container.stdio().wait_for_output(&line(LARGE.seen().memory));
}

/// Readers with small buffers get the same text: what was true at the first byte.
#[test]
fn a_file_is_read_in_pieces_of_any_size() {
    let containerd = Containerd::start(Version::V2_1);
    let container = limited(&containerd, "pieces", SMALL).start();
    for (number, file) in ["/proc/meminfo", "/proc/stat", "/proc/cpuinfo"].iter().enumerate() {
        let names = |text: &str| -> Vec<String> {
            text.lines()
                .map(|line| line.split([':', ' ']).next().unwrap_or("").to_owned())
                .collect()
        };
        let whole = ask(&container, &format!("whole-{number}"), &format!("cat {file}"));
        for size in [1, 7, 100] {
            let script = format!("dd if={file} bs={size} 2>/dev/null");
            let pieces = ask(&container, &format!("pieces-{number}-{size}"), &script);
            assert_eq!(names(&pieces), names(&whole), "{file} by {size} bytes");
            assert!(pieces.ends_with('\n'), "{file} by {size} bytes: {pieces}");
        }
    }
}

/// Parsers find the lines that the kernel has, in its order; nothing is made up.
#[test]
fn the_files_have_lines_of_the_kernel_s_in_its_order() {
    let containerd = Containerd::start(Version::V2_1);
    let container = limited(&containerd, "form", SMALL).start();
    let names = |text: &str| -> Vec<String> {
        let first = |line: &str| line.split([':', ' ']).next().unwrap_or("").trim().to_owned();
        text.lines().map(first).collect()
    };
    for (number, file) in ["/proc/meminfo", "/proc/stat", "/proc/swaps"].iter().enumerate() {
        let kernel_s = names(&std::fs::read_to_string(file).expect("read the kernel's"));
        let seen = names(&ask(&container, &number.to_string(), &format!("cat {file}")));
        assert!(!seen.is_empty(), "{file}");
        let mut left = kernel_s.iter();
        for name in &seen {
            assert!(left.any(|known| known == name), "{file}: {name} of {seen:?} in {kernel_s:?}");
        }
    }
    let block = |text: &str| -> Vec<String> {
        text.lines()
            .take_while(|line| !line.is_empty())
            .map(|line| line.split('\t').next().unwrap_or("").to_owned())
            .collect()
    };
    let kernel_s = std::fs::read_to_string("/proc/cpuinfo").expect("read the kernel's");
    assert_eq!(block(&ask(&container, "cpuinfo", "cat /proc/cpuinfo")), block(&kernel_s));
}

/// Prints how many seconds ago a process began that has just begun, the uptime, and how far
/// the start of the clock (`btime`) and the uptime together are from now.
const CLOCKS: &str = "sleep 5 & set -- $(cat /proc/$!/stat); shift 21; up=$(cut -d. -f1 /proc/uptime); \
    btime=$(sed -n 's/^btime //p' /proc/stat); \
    echo $((up - $1 / 100)) $up $(($(date +%s) - btime - up))";

/// `ps` and `uptime` take one from the other.
#[test]
fn the_uptime_is_the_container_s_and_fits_the_processes_start() {
    let containerd = Containerd::start(Version::V2_1);
    let clocks = |runtime: &str| {
        let container = limited(&containerd, runtime.split('.').nth(2).expect("a name"), SMALL);
        let container = container.runtime(runtime).start();
        let printed = ask(&container, "clocks", CLOCKS);
        let numbers: Vec<i64> =
            printed.split_whitespace().map(|n| n.parse().expect("seconds")).collect();
        <[i64; 3]>::try_from(numbers).unwrap_or_else(|_| panic!("three numbers in {printed}"))
    };
    let [age, uptime, off] = clocks(containerd.runtime_name());
    assert!((0..=2).contains(&age), "a process that has just begun began {age} s ago");
    assert!((0..=wait::deadline().as_secs().cast_signed()).contains(&uptime), "{uptime} s");
    assert!((-2..=2).contains(&off), "btime and uptime are {off} s from now");
    let host_s = std::fs::read_to_string("/proc/uptime").expect("read /proc/uptime");
    let host_s = host_s.split('.').next().and_then(|number| number.parse::<i64>().ok());
    let [.., control, _] = clocks(RUNC);
    assert!(control + 2 >= host_s.expect("seconds"), "runc's containers have the host's uptime");
}

/// A limit of processes is one of threads.
#[test]
fn a_limit_of_processes_is_the_most_threads() {
    let containerd = Containerd::start(Version::V2_1);
    let container = limited(&containerd, "few", SMALL).spec(|spec| {
        spec["linux"]["resources"]["pids"] = json!({ "limit": 77 });
    });
    let container = container.start();
    let read = |id: &str| ask(&container, id, "cat /proc/sys/kernel/threads-max");
    assert_eq!(read("before"), "77\n");
    container.update(&json!({ "pids": { "limit": 99 } })).expect("update it");
    assert_eq!(read("after"), "99\n");
}

/// What programs ask the kernel for says the same: `sysinfo` and `sched_getaffinity`.
#[test]
fn system_calls_say_what_the_files_say() {
    let containerd = Containerd::start(Version::V2_1);
    let container = limited(&containerd, "asks", SMALL).start();
    // BusyBox's nproc asks for the affinity, its free takes the total from sysinfo.
    let script = "nproc; free | sed -n 's/^Mem: *\\([0-9]*\\) .*/\\1/p'";
    let asked = |id: &str| {
        let output = ask(&container, id, script);
        let numbers: Vec<u64> =
            output.split_whitespace().map(|n| n.parse().expect("a number")).collect();
        Seen { cpus: numbers[0], memory: numbers[1] * 1024 }
    };
    assert_eq!(asked("before"), SMALL.seen());
    container.update(&LARGE.resources()).expect("update it");
    assert_eq!(asked("after"), LARGE.seen());
}
