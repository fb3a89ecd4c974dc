//! `--cpu-num` and `--total-memory` on the sandbox process's command line: what
//! a pod is told of the machine it is on.

use std::fs;

use integration::cgroup::{self, Limits};
use integration::containerd::{Containerd, Version};
use integration::host;
use serde_json::{Value, json};

/// What boot was told: CPUs and bytes of memory.
fn told(pid: i32) -> (u32, u64) {
    let mut process = host::process(pid).expect("a running process");
    while process.args[0] != "palisade-sandbox" {
        process = host::process(process.parent).expect("the sandbox process above it");
    }
    let flag = |name: &str| -> u64 {
        let value = process.args.iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
        value
            .unwrap_or_else(|| panic!("no {name} in {:?}", process.args))
            .parse()
            .expect("a number")
    };
    (flag("--cpu-num").try_into().expect("a small number"), flag("--total-memory"))
}

/// What the host has: the CPUs that tests may use, and all memory.
fn host() -> (u32, u64) {
    let online = fs::read_to_string("/proc/cpuinfo").expect("read cpuinfo");
    let cpus = online.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").expect("read meminfo");
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("a total");
    let kilobytes: u64 = total.trim().trim_end_matches(" kB").parse().expect("a number");
    (cpus.try_into().expect("a small number"), kilobytes * 1024)
}

fn told_with(containerd: &Containerd, id: &str, resources: Value) -> (u32, u64) {
    let change = |spec: &mut Value| {
        let all = spec["linux"]["resources"].as_object_mut().expect("resources");
        all.extend(resources.as_object().expect("an object").clone());
    };
    let container = containerd.container(id, ["sleep", "1000"]).spec(change).start();
    told(container.pid())
}

fn quota(cpus: f64) -> Value {
    #[allow(clippy::cast_possible_truncation)]
    let quota = (cpus * 100_000.0) as i64;
    json!({ "quota": quota, "period": 100_000 })
}

#[test]
fn cpus_follow_the_quota_and_the_cpuset() {
    let containerd = Containerd::start(Version::V2_1);
    let (cpus, memory) = host();
    assert_eq!(told_with(&containerd, "free", json!({})), (cpus, memory));
    for (name, wanted) in [("half", 0.5_f64), ("two-and-a-half", 2.5), ("three", 3.0)] {
        let by_quota = (wanted.ceil() as u32).max(2);
        let found = told_with(&containerd, name, json!({ "cpu": quota(wanted) }));
        assert_eq!(found, (by_quota.min(cpus), memory), "{wanted} CPUs");
        let mut cpu = quota(wanted);
        cpu["cpus"] = "1".into();
        let found = told_with(&containerd, &format!("{name}-pinned"), json!({ "cpu": cpu }));
        // A quota only ever lowers the count.
        assert_eq!(found, (1, memory), "{wanted} CPUs on one");
    }
}

#[test]
fn memory_follows_the_limit() {
    let containerd = Containerd::start(Version::V2_1);
    let (cpus, memory) = host();
    let limit = 128 << 20;
    let found = told_with(&containerd, "limited", json!({ "memory": { "limit": limit } }));
    assert_eq!(found, (cpus, limit));
    let more = json!({ "memory": { "limit": memory * 4 } });
    assert_eq!(told_with(&containerd, "generous", more), (cpus, memory));
}

/// The kubelet limits pods by the cgroup above their containers'.
fn limit_all(containerd: &Containerd) {
    let limits = Limits { memory: Some(192 << 20), cpus: Some("0"), quota: None };
    cgroup::limit(containerd.slot(), &limits);
}

#[test]
fn a_limit_of_the_parent_counts() {
    let containerd = Containerd::start(Version::V2_1);
    limit_all(&containerd);
    let run = |id: &str, resources: Value| told_with(&containerd, id, resources);
    assert_eq!(run("free", json!({})), (1, 192 << 20));
    assert_eq!(run("tighter", json!({ "memory": { "limit": 64 << 20 } })), (1, 64 << 20));
    assert_eq!(run("looser", json!({ "memory": { "limit": 256 << 20 } })), (1, 192 << 20));
}

#[test]
fn a_limit_of_the_pod_counts() {
    let containerd = Containerd::start(Version::V2_1);
    limit_all(&containerd);
    let pod = containerd.pod("limited");
    let container = pod.shell("main", "sleep 1000");
    assert_eq!(told(pod.pid()), (1, 192 << 20));
    assert_eq!(told(container.pid()), (1, 192 << 20));
}
