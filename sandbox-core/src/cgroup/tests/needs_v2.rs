//! Version 2.

use super::*;

#[test]
fn limits_arrive_in_the_files_of_version_2() {
    needs(is_v2(), "cgroup version 2");
    let cpu = LinuxCpuBuilder::default().shares(1024u64).quota(150_000i64).cpus("0").build();
    let memory = LinuxMemoryBuilder::default()
        .limit(64i64 << 20)
        .swap(96i64 << 20)
        .reservation(32i64 << 20)
        .build();
    let resources = LinuxResourcesBuilder::default()
        .cpu(cpu.unwrap())
        .memory(memory.unwrap())
        .pids(LinuxPidsBuilder::default().limit(77).build().unwrap())
        .unified([("memory.high".to_owned(), "50331648".to_owned())])
        .build()
        .unwrap();
    let scratch = Scratch::new(&resources);
    let mut expected = vec![
        ("cpu.weight", "100"),
        ("cpu.max", "150000 100000"),
        ("cpuset.cpus", "0"),
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("memory.high", "50331648"),
        ("pids.max", "77"),
    ];
    if scratch.cgroup.any_dir().unwrap().join("memory.swap.max").exists() {
        expected.push(("memory.swap.max", "33554432"));
    }
    for (name, value) in expected {
        assert_eq!(scratch.file("any", name), value, "{name}");
    }
    let capacity =
        scratch.cgroup.capacity(CapacityPolicy { cpu_from_quota: true, minimum: 1 }).unwrap();
    assert_eq!((capacity.cpus, capacity.memory), (1, 64 << 20));
    scratch.cgroup.update(&super::cpu(|c| c.period(50_000u64))).unwrap();
    assert_eq!(scratch.file("any", "cpu.max"), "150000 50000");
}

#[test]
fn a_limit_that_version_2_lacks_is_refused_by_name_and_leaves_nothing() {
    needs(is_v2(), "cgroup version 2");
    let memory =
        |m: LinuxMemoryBuilder| LinuxResourcesBuilder::default().memory(m.build().unwrap());
    let cases = [
        (memory(LinuxMemoryBuilder::default().swappiness(1u64)), "memory.swappiness"),
        (memory(LinuxMemoryBuilder::default().disable_oom_killer(true)), "memory.disableOOMKiller"),
        (
            LinuxResourcesBuilder::default().unified([("no.such".to_owned(), "1".to_owned())]),
            "unified.no.such",
        ),
        (
            LinuxResourcesBuilder::default().unified([("cgroup.kill".to_owned(), "1".to_owned())]),
            "unified",
        ),
        (
            LinuxResourcesBuilder::default()
                .cpu(LinuxCpuBuilder::default().realtime_runtime(1i64).build().unwrap()),
            "cpu.realtimeRuntime",
        ),
    ];
    for (builder, field) in cases {
        let parent = unique();
        let path = format!("/{parent}/c");
        let error = Cgroup::create("c", &path, Driver::Cgroupfs, &builder.build().unwrap(), &[]);
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with(&format!("linux.resources.{field}")), "{error}");
        assert!(!mount().unwrap().join(&parent).exists(), "{field}: {parent} is left");
    }
}

#[test]
fn an_out_of_memory_kill_is_reported_and_counted_on_version_2() {
    needs(is_v2(), "cgroup version 2");
    let mut scratch = Scratch::new(&memory(8 << 20));
    let mut watch = scratch.cgroup.oom_watch().unwrap();
    assert!(!readable(&watch, Duration::ZERO));
    scratch.run("exec tail /dev/zero");
    let mut kills = 0;
    while kills == 0 {
        assert!(readable(&watch, Duration::from_secs(20)));
        kills += watch.take(false).unwrap();
    }
    assert_eq!(kills, 1);
    let Stats::V2(stats) = scratch.cgroup.stats().unwrap() else { panic!("expected version 2") };
    assert_eq!(stats.memory_events.unwrap().oom_kill, 1);
    assert_eq!(stats.memory.unwrap().usage_limit, 8 << 20);
    assert!(stats.cpu.unwrap().usage_usec > 0);
    assert!(stats.pids.is_some() && stats.io.is_some());
}

#[test]
fn the_parents_statistics_are_the_cgroups_above_on_version_2() {
    needs(is_v2(), "cgroup version 2");
    let scratch = Scratch::new(&memory(8 << 20));
    let child = child_of(&scratch.cgroup);
    let Stats::V2(stats) = child.stats().unwrap() else { panic!("expected version 2") };
    assert!(stats.memory.is_none_or(|memory| memory.usage_limit != 8 << 20));
    let Stats::V2(stats) = child.stats_of_parent().unwrap() else { panic!("expected version 2") };
    assert_eq!(stats.memory.unwrap().usage_limit, 8 << 20);
}

#[test]
fn swap_is_a_total_also_when_memory_or_swap_comes_alone() {
    needs(is_v2(), "cgroup version 2");
    let set = |memory: LinuxMemoryBuilder| {
        LinuxResourcesBuilder::default().memory(memory.build().unwrap()).build().unwrap()
    };
    let both = LinuxMemoryBuilder::default().limit(64i64 << 20).swap(96i64 << 20);
    let scratch = Scratch::new(&set(both));
    let have = |max: u64, swap: u64| {
        assert_eq!(scratch.file("any", "memory.max"), (max << 20).to_string());
        assert_eq!(scratch.file("any", "memory.swap.max"), (swap << 20).to_string());
    };
    have(64, 32);
    scratch.cgroup.update(&memory(32 << 20)).unwrap();
    have(32, 64);
    scratch.cgroup.update(&set(LinuxMemoryBuilder::default().swap(80i64 << 20))).unwrap();
    have(32, 48);
    // More than the total leaves swap alone, as with runc.
    scratch.cgroup.update(&memory(100 << 20)).unwrap();
    have(100, 48);
    let less = set(LinuxMemoryBuilder::default().swap(16i64 << 20));
    let less = scratch.cgroup.update(&less).unwrap_err().to_string();
    assert!(less.starts_with("linux.resources.memory.swap: "), "{less}");
    have(100, 48);
}

#[test]
fn swap_needs_a_limit_of_memory_and_nothing_is_changed_without_one() {
    needs(is_v2(), "cgroup version 2");
    let scratch = Scratch::new(&cpu(|c| c.shares(1024u64)));
    let mut update = cpu(|c| c.shares(2048u64));
    update.set_memory(Some(LinuxMemoryBuilder::default().swap(80i64 << 20).build().unwrap()));
    let error = scratch.cgroup.update(&update).unwrap_err().to_string();
    assert!(error.starts_with("linux.resources.memory.swap"), "{error}");
    assert_eq!(scratch.file("cpu", "cpu.weight"), "100");
}

#[test]
fn an_update_that_is_refused_changes_nothing() {
    needs(is_v2(), "cgroup version 2");
    let scratch = Scratch::new(&memory(64 << 20));
    let mut update = memory(32 << 20);
    update.set_unified(Some([("cgroup.kill".to_owned(), "1".to_owned())].into()));
    let error = scratch.cgroup.update(&update).unwrap_err().to_string();
    assert!(error.starts_with("linux.resources.unified"), "{error}");
    assert_eq!(scratch.file("any", "memory.max"), (64 << 20).to_string());
}

#[test]
fn how_many_cgroups_there_may_be_is_a_limit_too() {
    needs(is_v2(), "cgroup version 2");
    let files = [("cgroup.max.depth", "3"), ("cgroup.max.descendants", "7")];
    let unified = files.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let scratch = Scratch::new(&LinuxResourcesBuilder::default().unified(unified).build().unwrap());
    for (name, value) in files {
        assert_eq!(scratch.file("any", name), value, "{name}");
    }
}

/// A cgroup with a sibling, as of two containers of a pod.
#[test]
fn a_user_may_clone_into_a_cgroup_that_allows_births() {
    use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
    use std::os::fd::AsFd;
    needs(is_v2(), "cgroup version 2");
    const USER: u32 = 70_123;
    let pod = Scratch::plain();
    let [boots, containers] = ["boot", "container"].map(|name| {
        let mut saved = pod.cgroup.saved().clone();
        saved.dirs[0].path.push(name);
        fs::create_dir(&saved.dirs[0].path).unwrap();
        Cgroup::open(saved).unwrap()
    });
    // A child in boot's cgroup, as that user, clones one more into the container's.
    let born_by = |directory: std::os::fd::BorrowedFd<'_>| {
        let alone = SingleThreaded::in_a_test();
        let place = boots.dir_fd().unwrap().unwrap();
        match clone_into(&alone, nix::sched::CloneFlags::empty(), Some(place.as_fd())).unwrap() {
            Cloned::Parent { pidfd, .. } => {
                let id = rustix::process::WaitId::PidFd(pidfd.as_fd());
                let exited = rustix::process::WaitIdOptions::EXITED;
                rustix::process::waitid(id, exited).unwrap().unwrap().exit_status() == Some(0)
            }
            Cloned::Child => {
                let id = nix::unistd::Uid::from_raw(USER);
                let become_user = nix::unistd::setresuid(id, id, id);
                let cloned = become_user.is_ok()
                    && clone_into(&alone, nix::sched::CloneFlags::empty(), Some(directory)).is_ok();
                crate::sys::process::exit_now((!cloned).into())
            }
        }
    };
    assert!(containers.birthplace().is_none());
    let directory = containers.dir_fd().unwrap().unwrap();
    assert!(!born_by(directory.as_fd()), "it may not before");
    assert!(containers.allow_births(&boots, USER).unwrap());
    let born = || born_by(containers.birthplace().unwrap());
    assert!(born());
    assert!(!containers.allow_births(&boots, USER + 1).unwrap(), "it is taken");
    boots.forbid_births(USER + 1).unwrap();
    assert!(born(), "nobody takes what is another's");
    boots.forbid_births(USER).unwrap();
    assert!(!born(), "it is taken back");
}
