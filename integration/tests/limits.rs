//! The CPUs and the memory that a pod is told, from boot's command line:
//! `--cpu-num` and `--total-memory`. `sandbox-core/src/cgroup/derive.rs` holds
//! the rules. And the memory that its shim keeps for itself.

use std::fs;

use integration::cgroup::{self, Limits};
use integration::containerd::Containerd;
use integration::cri::resources;
use integration::{host, on_each_containerd, sandbox, wait};
use serde_json::{Value, json};

on_each_containerd!(
    without_limits_a_pod_gets_the_hosts_capacity,
    the_quota_lowers_the_count_but_not_below_two,
    a_cpuset_is_counted,
    quota_and_cpuset_together,
    the_memory_limit_is_the_pods_memory,
    a_limit_of_the_parent_counts,
    a_cpuset_of_the_parent_counts,
    the_pods_limits_count_and_not_the_containers,
    a_shim_gives_memory_back_that_starts_have_taken,
);

/// Returns the CPUs and the memory that boot is told for a container with these
/// resources.
fn capacity_with(containerd: &Containerd, id: &str, resources: Value) -> (u32, u64) {
    let container = containerd.container(id, ["sleep", "1000"]).spec(|s| {
        for (key, value) in resources.as_object().expect("an object") {
            s["linux"]["resources"][key] = value.clone();
        }
    });
    let container = container.start();
    capacity_of(container.shim())
}

fn capacity_of(shim: i32) -> (u32, u64) {
    let boot = sandbox::boot_of(shim);
    let cpus = sandbox::flag(&boot, "cpu-num").parse().expect("a number of CPUs");
    let memory = sandbox::flag(&boot, "total-memory").parse().expect("a number of bytes");
    (cpus, memory)
}

fn host_cpus() -> u32 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").expect("the host's CPUs");
    let count = |range: &str| match range.split_once('-') {
        Some((from, to)) => {
            to.parse::<u32>().expect("a CPU") - from.parse::<u32>().expect("a CPU") + 1
        }
        None => 1,
    };
    online.trim().split(',').map(count).sum()
}

/// Returns the host's memory. (No cgroup above the containers limits the
/// machine that runs the tests.)
fn host_memory() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|total| total.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.expect("MemTotal in kB") * 1024
}

fn quota(cpus: f64) -> Value {
    json!({ "cpu": { "period": 100_000, "quota": (cpus * 100_000.0) as i64 } })
}

fn without_limits_a_pod_gets_the_hosts_capacity(containerd: Containerd) {
    assert_eq!(capacity_with(&containerd, "free", json!({})), (host_cpus(), host_memory()));
}

/// n = ceil(quota / period), at least 2, never more than the cpuset has.
fn the_quota_lowers_the_count_but_not_below_two(containerd: Containerd) {
    let cpus = host_cpus();
    for (id, quota_of, wanted) in [("half", 0.5, 2), ("two-and-a-half", 2.5, 3), ("three", 3.0, 3)]
    {
        assert_eq!(capacity_with(&containerd, id, quota(quota_of)).0, cpus.min(wanted), "{id}");
    }
}

fn a_cpuset_is_counted(containerd: Containerd) {
    assert_eq!(capacity_with(&containerd, "first", json!({ "cpu": { "cpus": "0" } })).0, 1);
    let all = format!("0-{}", host_cpus() - 1);
    assert_eq!(capacity_with(&containerd, "all", json!({ "cpu": { "cpus": all } })).0, host_cpus());
}

fn quota_and_cpuset_together(containerd: Containerd) {
    for (id, quota_of) in [("half", 0.5), ("two-and-a-half", 2.5), ("three", 3.0)] {
        let mut resources = quota(quota_of);
        resources["cpu"]["cpus"] = json!("0");
        assert_eq!(capacity_with(&containerd, id, resources), (1, host_memory()), "{id}");
    }
}

fn the_memory_limit_is_the_pods_memory(containerd: Containerd) {
    let limited = json!({ "memory": { "limit": 64 << 20 } });
    assert_eq!(capacity_with(&containerd, "limited", limited), (host_cpus(), 64 << 20));
    let generous = json!({ "memory": { "limit": host_memory() * 4 } });
    assert_eq!(capacity_with(&containerd, "generous", generous), (host_cpus(), host_memory()));
}

/// Limits the cgroup above the pods', as the kubelet does for a class of service.
fn limit_all(containerd: &Containerd, limits: Limits) {
    cgroup::limit(containerd.slot(), &limits);
}

fn a_limit_of_the_parent_counts(containerd: Containerd) {
    let limits = Limits { memory: Some(96 << 20), quota: Some(150_000), cpus: None };
    limit_all(&containerd, limits);
    let (cpus, memory) = capacity_with(&containerd, "child", json!({}));
    assert_eq!((cpus, memory), (host_cpus().min(2), 96 << 20));
    let tighter = json!({ "memory": { "limit": 32 << 20 } });
    assert_eq!(capacity_with(&containerd, "tighter", tighter).1, 32 << 20);
    let looser = json!({ "memory": { "limit": 1 << 30 } });
    assert_eq!(capacity_with(&containerd, "looser", looser).1, 96 << 20);
}

fn a_cpuset_of_the_parent_counts(containerd: Containerd) {
    let limits = Limits { memory: Some(192 << 20), cpus: Some("0"), quota: None };
    limit_all(&containerd, limits);
    assert_eq!(capacity_with(&containerd, "child", json!({})), (1, 192 << 20));
    let three = quota(3.0);
    assert_eq!(capacity_with(&containerd, "three", three), (1, 192 << 20));
}

/// boot belongs to the pod: the limit of one container is not the pod's.
fn the_pods_limits_count_and_not_the_containers(containerd: Containerd) {
    limit_all(&containerd, Limits { memory: Some(128 << 20), quota: None, cpus: Some("0") });
    let pod = containerd.pod("limited");
    let container = pod.container("main", "sleep 1000", |config| {
        resources(config).memory_limit_in_bytes = 32 << 20;
    });
    assert_eq!(capacity_of(sandbox::shim_of(container.pid())), (1, 128 << 20));
    assert_eq!(host::memory_limit(container.pid()), 32 << 20);
}

/// Making a container takes more than 80 KiB of the shim's stack.
fn a_shim_gives_memory_back_that_starts_have_taken(containerd: Containerd) {
    let container = containerd.container("rests", ["sleep", "1000"]).start();
    let stack = || {
        let maps = fs::read_to_string(format!("/proc/{}/smaps", container.shim())).ok()?;
        let of_stack = maps.split_once("[stack]")?.1;
        let size = of_stack.lines().find_map(|line| line.strip_prefix("Rss:"))?;
        size.split_whitespace().next()?.parse::<u32>().ok()
    };
    wait::until("the shim's stack is small", || stack().filter(|kib| *kib <= 48));
}
