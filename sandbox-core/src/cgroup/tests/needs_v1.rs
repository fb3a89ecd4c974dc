//! Version 1.

use super::*;

#[test]
fn limits_arrive_in_the_files_and_can_be_changed() {
    needs(!is_v2(), "cgroup version 1");
    let resources = LinuxResourcesBuilder::default()
        .cpu(
            LinuxCpuBuilder::default()
                .shares(512u64)
                .quota(150_000i64)
                .period(50_000u64)
                .burst(10_000u64)
                .cpus("0")
                .mems("0")
                .build()
                .unwrap(),
        )
        .memory(
            LinuxMemoryBuilder::default()
                .limit(64i64 << 20)
                .swap(128i64 << 20)
                .reservation(32i64 << 20)
                .swappiness(10u64)
                .kernel(1i64 << 20)
                .disable_oom_killer(true)
                .build()
                .unwrap(),
        )
        .pids(LinuxPidsBuilder::default().limit(77).build().unwrap())
        .build()
        .unwrap();
    let scratch = Scratch::new(&resources);
    let expected = [
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "150000"),
        ("cpu", "cpu.cfs_period_us", "50000"),
        ("cpu", "cpu.cfs_burst_us", "10000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("cpuset", "cpuset.mems", "0"),
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.memsw.limit_in_bytes", "134217728"),
        ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ("memory", "memory.swappiness", "10"),
        ("pids", "pids.max", "77"),
    ];
    for (controller, name, value) in expected {
        assert_eq!(scratch.file(controller, name), value, "{name}");
    }
    assert!(scratch.file("memory", "memory.oom_control").contains("oom_kill_disable 1"));

    // Raised beyond the old swap limit, and lowered below: both orders.
    for mib in [256i64, 16] {
        let memory =
            LinuxMemoryBuilder::default().limit(mib << 20).swap(mib << 21).build().unwrap();
        let update = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
        scratch.cgroup.update(&update).unwrap();
        assert_eq!(scratch.file("memory", "memory.limit_in_bytes"), (mib << 20).to_string());
        assert_eq!(scratch.file("memory", "memory.memsw.limit_in_bytes"), (mib << 21).to_string());
    }
    scratch.cgroup.update(&cpu(|c| c.quota(-1i64))).unwrap();
    assert_eq!(scratch.file("cpu", "cpu.cfs_quota_us"), "-1");
    assert_eq!(scratch.file("cpu", "cpu.shares"), "512");
}

#[test]
fn a_shorter_period_and_a_smaller_quota_may_come_together() {
    needs(!is_v2(), "cgroup version 1");
    let parent = Scratch::new(&cpu(|c| c.quota(100_000i64).period(100_000u64)));
    let path = parent.cgroup.dir("cpu").unwrap().join("c");
    let relative = path.strip_prefix("/sys/fs/cgroup/cpu").unwrap().to_owned();
    let child = Cgroup::create(
        "c",
        &format!("/{}", relative.display()),
        Driver::Cgroupfs,
        &cpu(|c| c.quota(50_000i64).period(100_000u64)),
        &[],
    );
    let child = Scratch { cgroup: child.unwrap(), children: Vec::new() };
    // Half the period alone would make it more than the parent has.
    child.cgroup.update(&cpu(|c| c.quota(10_000i64).period(20_000u64))).unwrap();
    assert_eq!(child.file("cpu", "cpu.cfs_quota_us"), "10000");
    drop(child);
}

#[test]
fn an_impossible_limit_is_refused_by_name_and_leaves_nothing() {
    needs(!is_v2(), "cgroup version 1");
    let hugepages =
        LinuxHugepageLimitBuilder::default().page_size("2MB").limit(1i64).build().unwrap();
    let cases = [
        (
            LinuxResourcesBuilder::default().hugepage_limits(vec![hugepages]),
            "linux.resources.hugepageLimits",
        ),
        (
            LinuxResourcesBuilder::default().unified([("memory.high".to_owned(), "1".to_owned())]),
            "linux.resources.unified.memory.high",
        ),
        (
            LinuxResourcesBuilder::default()
                .block_io(LinuxBlockIoBuilder::default().leaf_weight(100u16).build().unwrap()),
            "linux.resources.blockIO.leafWeight",
        ),
        (
            LinuxResourcesBuilder::default()
                .cpu(LinuxCpuBuilder::default().quota(1i64).build().unwrap()),
            "linux.resources.cpu.quota",
        ),
        (
            LinuxResourcesBuilder::default()
                .cpu(LinuxCpuBuilder::default().cpus("0-9999").build().unwrap()),
            "linux.resources.cpu.cpus",
        ),
        (
            LinuxResourcesBuilder::default()
                .memory(LinuxMemoryBuilder::default().swappiness(101u64).build().unwrap()),
            "linux.resources.memory.swappiness",
        ),
    ];
    for (builder, field) in cases {
        // A parent that was made as well is removed again.
        let parent = unique();
        let path = format!("/{parent}/c");
        let error = Cgroup::create("c", &path, Driver::Cgroupfs, &builder.build().unwrap(), &[])
            .unwrap_err();
        assert!(error.to_string().starts_with(field), "{error}");
        assert_eq!(error.kind, FailureKind::Invalid, "{error}");
        for hierarchy in &hierarchy::Hierarchies::of_host().unwrap().all {
            assert!(!hierarchy.mount.join(&parent).exists(), "{field}: {parent} is left");
        }
    }
}

#[test]
fn an_update_that_is_refused_changes_nothing() {
    needs(!is_v2(), "cgroup version 1");
    let scratch = Scratch::new(&cpu(|c| c.shares(512u64)));
    let mut update = cpu(|c| c.shares(256u64));
    update.set_memory(Some(LinuxMemoryBuilder::default().swappiness(101u64).build().unwrap()));
    let error = scratch.cgroup.update(&update).unwrap_err().to_string();
    assert!(error.starts_with("linux.resources.memory.swappiness"), "{error}");
    assert_eq!(scratch.file("cpu", "cpu.shares"), "512");
}

#[test]
fn only_the_default_devices_are_open() {
    needs(!is_v2(), "cgroup version 1");
    let scratch = Scratch::plain();
    let list = scratch.file("devices", "devices.list");
    assert!(list.contains("c 1:3 rwm") && list.contains("c 136:* rwm"), "{list}");
    assert!(!list.contains("a *:*"), "{list}");
}

#[test]
fn processes_join_by_the_descriptors_and_are_listed() {
    needs(!is_v2(), "cgroup version 1");
    let mut scratch = Scratch::plain();
    let hierarchies = hierarchy::Hierarchies::of_host().unwrap().all.len();
    let procs = scratch.cgroup.procs().unwrap();
    assert_eq!(procs.len(), hierarchies);
    let child = Command::new("sleep").arg("60").spawn().unwrap();
    for fd in procs {
        fs::File::from(fd).write_all(child.id().to_string().as_bytes()).unwrap();
    }
    let seen = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    let name = scratch.cgroup.any_dir().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(seen.lines().filter(|l| l.ends_with(&name)).count(), hierarchies, "{seen}");
    assert_eq!(scratch.cgroup.pids().unwrap(), [crate::types::HostPid(child.id().cast_signed())]);
    assert!(scratch.cgroup.dir_fd().unwrap().is_none());
    scratch.children.push(child);
    scratch.cgroup.kill_all().unwrap();
    assert_eq!(scratch.cgroup.pids().unwrap(), [], "a zombie does not count");
}

#[test]
fn a_cgroup_is_reused_when_empty_and_refused_when_not() {
    needs(!is_v2(), "cgroup version 1");
    let mut first = Scratch::plain();
    let name = first.cgroup.any_dir().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let again = || Cgroup::create(&name, "", Driver::Cgroupfs, &LinuxResources::default(), &[]);
    again().unwrap();
    first.cgroup.freeze().unwrap();
    let error = again().unwrap_err();
    assert!(error.to_string().contains("is frozen"), "{error}");
    first.cgroup.thaw().unwrap();
    first.run("exec sleep 60");
    let error = again().unwrap_err();
    assert!(error.to_string().contains("has 1 processes"), "{error}");
    assert_eq!(error.kind, FailureKind::Exists);
    assert!(first.cgroup.exists(), "a refused create must not remove what was there");
}

#[test]
fn frozen_processes_stand_still_and_can_be_killed() {
    needs(!is_v2(), "cgroup version 1");
    let mut scratch = Scratch::plain();
    scratch.run("while :; do :; done");
    scratch.cgroup.freeze().unwrap();
    assert!(scratch.cgroup.is_frozen().unwrap());
    let used = || scratch.file("cpuacct", "cpuacct.usage");
    let before = used();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(used(), before);
    scratch.cgroup.thaw().unwrap();
    until(|| used() != before);
    scratch.cgroup.freeze().unwrap();
}

#[test]
fn killing_reaches_forking_processes_and_cgroups_below() {
    needs(!is_v2(), "cgroup version 1");
    let pids = LinuxPidsBuilder::default().limit(60).build().unwrap();
    let mut scratch = Scratch::new(&LinuxResourcesBuilder::default().pids(pids).build().unwrap());
    let below = scratch.cgroup.any_dir().unwrap().join("nested");
    scratch.run(&format!(
        "mkdir {0}; (echo 0 > {0}/cgroup.procs; sleep 60) & \
         f() {{ while :; do (:) & done; }}; f & f & sleep 60",
        below.display()
    ));
    until(|| scratch.cgroup.pids().unwrap().len() >= 3);
    scratch.cgroup.kill_all().unwrap();
    assert_eq!(scratch.cgroup.pids().unwrap(), []);
    assert!(below.exists());
    scratch.cgroup.remove().unwrap();
    assert!(!scratch.cgroup.exists());
}

#[test]
fn removal_waits_for_the_dying_and_ends_when_they_do_not() {
    needs(!is_v2(), "cgroup version 1");
    let mut scratch = Scratch::plain();
    scratch.run("exec sleep 0.2");
    scratch.cgroup.remove().unwrap();
    assert!(!scratch.cgroup.exists());
    scratch.cgroup.remove().unwrap();

    let mut scratch = Scratch::plain();
    scratch.run("exec sleep 60");
    let begun = Instant::now();
    let error = scratch.cgroup.remove().unwrap_err().to_string();
    assert!(error.contains("with 1 processes"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_out_of_memory_kill_is_reported_once() {
    needs(!is_v2(), "cgroup version 1");
    let mut scratch = Scratch::new(&memory(8 << 20));
    let mut watch = scratch.cgroup.oom_watch().unwrap();
    assert!(!readable(&watch, Duration::ZERO));
    scratch.run("exec tail /dev/zero");
    assert!(readable(&watch, Duration::from_secs(10)));
    let mut kills = watch.take(false).unwrap();
    for child in &mut scratch.children {
        child.wait().unwrap();
    }
    // The event precedes the count on version 1.
    kills += watch.take(false).unwrap();
    assert_eq!(kills, 1);
    assert!(!readable(&watch, Duration::ZERO));
}

#[test]
fn statistics_carry_what_containerd_wants() {
    needs(!is_v2(), "cgroup version 1");
    let pids = LinuxPidsBuilder::default().limit(50).build().unwrap();
    let memory = LinuxMemoryBuilder::default().limit(64i64 << 20).build().unwrap();
    let both = LinuxResourcesBuilder::default().pids(pids).memory(memory).build().unwrap();
    let mut scratch = Scratch::new(&both);
    scratch.run("while :; do :; done");
    // The kernel accounts at the next tick.
    until(|| scratch.file("cpuacct", "cpuacct.usage") != "0");
    let Stats::V1(stats) = scratch.cgroup.stats().unwrap() else { panic!("expected version 1") };
    assert_eq!(stats.pids.unwrap(), stats::PidsStat { current: 1, limit: 50 });
    let cpu = stats.cpu_usage.unwrap();
    assert!(cpu.total > 0 && !cpu.per_cpu.is_empty());
    let memory = stats.memory.unwrap();
    assert_eq!(memory.usage.unwrap().limit, 64 << 20);
    assert_eq!(memory.hierarchical_memory_limit, 64 << 20);
    assert!(memory.usage.unwrap().usage > 0 && memory.usage.unwrap().max > 0);
    assert!(memory.swap.is_some() && memory.kernel.is_some() && memory.kernel_tcp.is_some());
    assert_eq!(stats.memory_oom_control.unwrap().oom_kill, 0);
    assert!(stats.cpu_throttling.is_some());
}

#[test]
fn the_parents_statistics_are_the_cgroups_above() {
    needs(!is_v2(), "cgroup version 1");
    let pids = LinuxPidsBuilder::default().limit(50).build().unwrap();
    let scratch = Scratch::new(&LinuxResourcesBuilder::default().pids(pids).build().unwrap());
    let child = child_of(&scratch.cgroup);
    let limit = |stats: Stats| match stats {
        Stats::V1(stats) => stats.pids.unwrap().limit,
        Stats::V2(_) => panic!("expected version 1"),
    };
    assert_eq!(limit(child.stats().unwrap()), 0);
    assert_eq!(limit(child.stats_of_parent().unwrap()), 50);
}

#[test]
fn statistics_of_a_cgroup_that_is_gone_are_empty() {
    needs(!is_v2(), "cgroup version 1");
    let scratch = Scratch::plain();
    scratch.cgroup.remove().unwrap();
    let Stats::V1(stats) = scratch.cgroup.stats().unwrap() else { panic!("expected version 1") };
    assert_eq!(*stats, stats::StatsV1::default());
    assert_eq!(scratch.cgroup.pids().unwrap(), []);
    scratch.cgroup.thaw().unwrap_err();
    scratch.cgroup.thaw_if_there().unwrap();
}

#[test]
fn the_capacity_follows_each_change_of_limits() {
    needs(!is_v2(), "cgroup version 1");
    let scratch = Scratch::new(&memory(32 << 20));
    let capacity = || scratch.cgroup.capacity(CapacityPolicy::default()).unwrap();
    assert_eq!(capacity().memory, 32 << 20);
    scratch.cgroup.update(&memory(48 << 20)).unwrap();
    assert_eq!(capacity().memory, 48 << 20);
    scratch.cgroup.update(&memory(-1)).unwrap();
    assert_eq!(capacity().memory, {
        let info = rustix::system::sysinfo();
        info.totalram * u64::from(info.mem_unit)
    });
    scratch.cgroup.update(&cpu(|c| c.cpus("0"))).unwrap();
    assert_eq!(capacity().cpus, 1);
}

#[test]
fn another_process_finds_it_again() {
    needs(!is_v2(), "cgroup version 1");
    let scratch = Scratch::plain();
    let text = serde_json::to_string(scratch.cgroup.saved()).unwrap();
    let found = Cgroup::open(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(found.saved(), scratch.cgroup.saved());
    found.remove().unwrap();
    assert!(!scratch.cgroup.exists());
    for bad in ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu/../x", "/etc"] {
        let dirs =
            vec![Dir { controllers: vec![], mount: "/sys/fs/cgroup/cpu".into(), path: bad.into() }];
        assert!(
            Cgroup::open(SavedCgroup { v2: false, dirs, unit: None, resctrl: None }).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn a_relative_path_is_below_the_caller_s_own() {
    needs(!is_v2(), "cgroup version 1");
    let id = unique();
    let cgroup =
        Cgroup::create(&id, &id, Driver::Cgroupfs, &LinuxResources::default(), &[]).unwrap();
    let scratch = Scratch { cgroup, children: Vec::new() };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let line = own.lines().find(|l| l.split(':').nth(1) == Some("memory")).unwrap();
    let expected = format!(
        "/sys/fs/cgroup/memory{}/{id}",
        line.splitn(3, ':').nth(2).unwrap().trim_end_matches('/')
    );
    assert_eq!(scratch.cgroup.dir("memory").unwrap(), Path::new(&expected));
}

#[test]
fn fifty_cgroups_come_and_go() {
    needs(!is_v2(), "cgroup version 1");
    for _ in 0..50 {
        drop(Scratch::new(&memory(16 << 20)));
    }
}
