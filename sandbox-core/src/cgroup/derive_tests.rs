//! Derives the capacity from made-up trees.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::cgroup::SavedCgroup;

const GIB: u64 = 1 << 30;
const HOST: Host = Host { cpus: 2, memory: 8 * GIB };

/// A tree `root/pod/c` with files in it. `/` in a key separates the level.
struct Tree {
    root: tempfile::TempDir,
    v2: bool,
}

impl Tree {
    fn new(v2: bool, files: &[(&str, &str)]) -> Tree {
        let tree = Tree { root: tempfile::tempdir().unwrap(), v2 };
        fs::create_dir_all(tree.root.path().join("pod/c")).unwrap();
        for (path, content) in files {
            fs::write(tree.root.path().join(path), format!("{content}\n")).unwrap();
        }
        tree
    }

    fn capacity(&self, policy: CapacityPolicy) -> Capacity {
        let mount: PathBuf = self.root.path().to_owned();
        let path = mount.join("pod/c");
        let controllers = ["cpu", "cpuset", "memory"].map(str::to_owned).to_vec();
        let controllers = if self.v2 { Vec::new() } else { controllers };
        let dirs = vec![Dir { controllers, mount, path }];
        let cgroup =
            Cgroup::open(SavedCgroup { v2: self.v2, dirs, unit: None, resctrl: None }).unwrap();
        cgroup.capacity_on(HOST, policy).unwrap()
    }

    fn cpus(&self) -> u32 {
        self.capacity(CapacityPolicy::default()).cpus
    }
}

/// A container with a quota in thousands of microseconds, on two CPUs.
fn quota_v1(quota: i64, cpuset: &str) -> Tree {
    let quota = (quota * 1000).to_string();
    Tree::new(
        false,
        &[
            ("cpuset.effective_cpus", "0-1"),
            ("pod/c/cpuset.effective_cpus", cpuset),
            ("cpu.cfs_quota_us", "-1"),
            ("cpu.cfs_period_us", "100000"),
            ("pod/c/cpu.cfs_quota_us", &quota),
            ("pod/c/cpu.cfs_period_us", "100000"),
        ],
    )
}

#[test]
fn quotas_of_half_two_and_a_half_and_three_cpus_on_a_host_of_two() {
    for quota in [50, 250, 300] {
        assert_eq!(quota_v1(quota, "0-1").cpus(), 2, "{quota}");
        assert_eq!(quota_v1(quota, "1").cpus(), 1, "{quota} with a cpuset");
    }
}

#[test]
fn the_minimum_and_the_quota_are_options() {
    let half = quota_v1(50, "0-1");
    assert_eq!(half.capacity(CapacityPolicy { cpu_from_quota: true, minimum: 1 }).cpus, 1);
    assert_eq!(half.capacity(CapacityPolicy { cpu_from_quota: false, minimum: 1 }).cpus, 2);
    assert_eq!(half.capacity(CapacityPolicy { cpu_from_quota: true, minimum: 9 }).cpus, 2);
}

#[test]
fn a_quota_is_rounded_up() {
    let files = [("cpuset.cpus.effective", "0-7"), ("pod/c/cpu.max", "250000 100000")];
    assert_eq!(Tree::new(true, &files).cpus(), 3);
    let files = [("cpuset.cpus.effective", "0-7"), ("pod/c/cpu.max", "max 100000")];
    assert_eq!(Tree::new(true, &files).cpus(), 8);
}

#[test]
fn a_limit_on_the_parent_alone_counts() {
    let files = [
        ("cpuset.cpus.effective", "0-7"),
        ("pod/cpuset.cpus.effective", "0-5"),
        ("pod/cpu.max", "300000 100000"),
        ("pod/c/cpu.max", "900000 100000"),
        ("pod/memory.max", "1073741824"),
        ("pod/c/memory.max", "max"),
    ];
    let capacity = Tree::new(true, &files).capacity(CapacityPolicy::default());
    assert_eq!((capacity.cpus, capacity.memory), (3, GIB));
    let without = CapacityPolicy { cpu_from_quota: false, minimum: 2 };
    assert_eq!(Tree::new(true, &files).capacity(without).cpus, 6);
}

#[test]
fn what_the_kernel_tells_wrongly_is_known() {
    let limited = |files: &[(&str, &str)]| {
        let all = CapacityPolicy { cpu_from_quota: true, minimum: 9 };
        let Limited { cpus, memory } = Tree::new(true, files).capacity(all).limited;
        (cpus, memory)
    };
    // The kernel itself tells of a cpuset.
    assert_eq!(limited(&[("pod/c/cpuset.cpus.effective", "0")]), (false, false));
    assert_eq!(limited(&[("pod/c/cpu.max", "200000 100000")]), (false, false));
    assert_eq!(limited(&[("pod/c/cpu.max", "100000 100000")]), (true, false));
    assert_eq!(limited(&[("pod/cpu.max", "1000 100000")]), (true, false));
    let one = ("pod/c/cpuset.cpus.effective", "0");
    assert_eq!(limited(&[one, ("pod/c/cpu.max", "50000 100000")]), (false, false));
    assert_eq!(limited(&[("memory.max", "8589934591")]), (false, true));
    assert_eq!(limited(&[("memory.max", "8589934592")]), (false, false));
    let quota = [("pod/c/cpu.max", "50000 100000")];
    let policy = CapacityPolicy { cpu_from_quota: false, minimum: 1 };
    assert_eq!(Tree::new(true, &quota).capacity(policy).limited, Limited::default());
}

#[test]
fn no_memory_limit_means_the_host_s() {
    let unset = [("pod/c/memory.limit_in_bytes", "9223372036854771712")];
    assert_eq!(Tree::new(false, &unset).capacity(CapacityPolicy::default()).memory, 8 * GIB);
    let unset = [("pod/c/memory.max", "max")];
    assert_eq!(Tree::new(true, &unset).capacity(CapacityPolicy::default()).memory, 8 * GIB);
    assert_eq!(
        Tree::new(true, &[]).capacity(CapacityPolicy::default()),
        Capacity { cpus: 2, memory: 8 * GIB, limited: Limited::default() }
    );
}

#[test]
fn the_smallest_memory_limit_of_all_levels_counts() {
    let files = [("pod/memory.limit_in_bytes", "3000"), ("pod/c/memory.limit_in_bytes", "4000")];
    assert_eq!(Tree::new(false, &files).capacity(CapacityPolicy::default()).memory, 3000);
}

#[test]
fn an_unset_cpuset_is_the_parent_s() {
    let files = [("pod/cpuset.cpus", "0,4-5"), ("pod/c/cpuset.cpus", "")];
    assert_eq!(Tree::new(false, &files).cpus(), 3);
}
