//! Version 2. What needs no controller is tested on a hybrid host as well, in
//! the version 2 mount beside version 1; the rest needs a version 2 host.

use std::os::fd::AsRawFd;

use super::*;

/// Where version 2 is mounted, if it is.
fn mount() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = text.lines().find(|l| l.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

/// A cgroup of version 2, by the public road where that leads there.
fn scratch(resources: &LinuxResources) -> Option<Scratch> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT RUN: needs root");
        return None;
    }
    if Mode::of_host().unwrap().is_v2() {
        return Some(Scratch::new(resources));
    }
    let Some(mount) = mount() else {
        eprintln!("NOT RUN: needs a mount of cgroup version 2");
        return None;
    };
    let path = mount.join(unique());
    fs::create_dir(&path).unwrap();
    let dirs = vec![Dir { controllers: Vec::new(), mount, path }];
    let cgroup = Cgroup::open(SavedCgroup { v2: true, dirs, unit: None }).unwrap();
    let scratch = Scratch { cgroup, children: Vec::new() };
    resources::apply(&scratch.cgroup, resources, resources::Occasion::Create).unwrap();
    Some(scratch)
}

macro_rules! v2_host_or_return {
    () => {
        if !rustix::process::geteuid().is_root() || !Mode::of_host().unwrap().is_v2() {
            eprintln!("NOT RUN: needs root on a host with cgroup version 2");
            return;
        }
    };
}

/// Whether a process in the cgroup can open a node of a device number.
fn opens(scratch: &mut Scratch, kind: char, major: u32, minor: u32) -> bool {
    let node = std::env::temp_dir().join(unique());
    let node = node.display();
    let made = Command::new("mknod")
        .args([node.to_string(), kind.to_string(), major.to_string(), minor.to_string()])
        .status();
    assert!(made.unwrap().success());
    scratch.run(&format!("exec 3<{node}"));
    let status = scratch.children.pop().unwrap().wait().unwrap();
    fs::remove_file(node.to_string()).unwrap();
    status.success()
}

#[test]
fn devices_are_closed_but_the_default_ones_by_a_program() {
    let Some(mut scratch) = scratch(&LinuxResources::default()) else { return };
    assert!(opens(&mut scratch, 'c', 1, 3), "null");
    assert!(opens(&mut scratch, 'c', 1, 5), "zero");
    assert!(!opens(&mut scratch, 'c', 1, 11), "kmsg");

    let rule = |allow: bool, minor: i64, access: &str| {
        let builder = oci_spec::runtime::LinuxDeviceCgroupBuilder::default().allow(allow);
        let builder = builder.typ(oci_spec::runtime::LinuxDeviceType::C).major(1);
        builder.minor(minor).access(access).build().unwrap()
    };
    let everything = oci_spec::runtime::LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .access("rwm")
        .build()
        .unwrap();
    let mut update = |rules: Vec<_>| {
        let resources = LinuxResourcesBuilder::default().devices(rules).build().unwrap();
        scratch.cgroup.update(&resources).unwrap();
        let dir = scratch.cgroup.dir_fd().unwrap().unwrap();
        let programs = crate::sys::cgroup::device_programs(dir.as_fd()).unwrap();
        assert_eq!(programs.len(), 1, "the earlier program is gone");
        (opens(&mut scratch, 'c', 1, 11), opens(&mut scratch, 'c', 1, 3))
    };
    assert_eq!(update(vec![rule(true, 11, "r")]), (true, true));
    assert_eq!(update(vec![rule(true, 11, "w")]), (false, true));
    assert_eq!(update(vec![everything.clone()]), (true, true));
    assert_eq!(update(vec![everything, rule(false, 3, "r")]), (true, false));
}

#[test]
fn processes_are_frozen_and_killed_at_once() {
    let Some(mut scratch) = scratch(&LinuxResources::default()) else { return };
    let below = scratch.cgroup.any_dir().join("nested");
    scratch.run(&format!("mkdir {0}; echo 0 > {0}/cgroup.procs; exec sleep 60", below.display()));
    scratch.run("exec sleep 60");
    until(|| fs::read_to_string(below.join("cgroup.procs")).is_ok_and(|p| !p.is_empty()));
    assert_eq!(scratch.cgroup.pids().unwrap().len(), 2);
    scratch.cgroup.freeze().unwrap();
    assert!(scratch.cgroup.is_frozen().unwrap());
    scratch.cgroup.kill_all().unwrap();
    assert_eq!(scratch.cgroup.pids().unwrap(), []);
    scratch.cgroup.remove().unwrap();
    assert!(!scratch.cgroup.exists());
}

#[test]
fn the_directory_is_given_for_cloning_into() {
    let Some(scratch) = scratch(&LinuxResources::default()) else { return };
    let fd = scratch.cgroup.dir_fd().unwrap().unwrap();
    let seen = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    assert_eq!(seen, scratch.cgroup.any_dir());
    assert_eq!(scratch.cgroup.procs().unwrap().len(), 1);
}

#[test]
fn limits_arrive_in_the_files_of_version_2() {
    v2_host_or_return!();
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
    if scratch.cgroup.any_dir().join("memory.swap.max").exists() {
        expected.push(("memory.swap.max", "33554432"));
    }
    for (name, value) in expected {
        assert_eq!(scratch.file("any", name), value, "{name}");
    }
    let told = scratch.cgroup.limits(LimitsPolicy { cpu_from_quota: true, minimum: 1 }).unwrap();
    assert_eq!(told, Limits { cpus: 1, memory: 64 << 20 });
    scratch.cgroup.update(&super::cpu(|c| c.period(50_000u64))).unwrap();
    assert_eq!(scratch.file("any", "cpu.max"), "150000 50000");
}

#[test]
fn what_version_2_cannot_do_is_refused_by_name_and_leaves_nothing() {
    v2_host_or_return!();
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
        let error = Cgroup::create("c", &path, Driver::Cgroupfs, &builder.build().unwrap());
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with(&format!("linux.resources.{field}")), "{error}");
        assert!(!mount().unwrap().join(&parent).exists(), "{field}: {parent} is left");
    }
}

#[test]
fn an_out_of_memory_kill_is_told_and_counted_on_version_2() {
    v2_host_or_return!();
    let mut scratch = Scratch::new(&memory(8 << 20));
    let mut watch = scratch.cgroup.oom_watch().unwrap();
    assert!(!readable(&watch, Duration::ZERO));
    scratch.run("exec tail /dev/zero");
    let mut told = 0;
    while told == 0 {
        assert!(readable(&watch, Duration::from_secs(20)));
        told += watch.take().unwrap();
    }
    assert_eq!(told, 1);
    let Stats::V2(stats) = scratch.cgroup.stats().unwrap() else { panic!("expected version 2") };
    assert_eq!(stats.memory_events.unwrap().oom_kill, 1);
    assert_eq!(stats.memory.unwrap().usage_limit, 8 << 20);
    assert!(stats.cpu.unwrap().usage_usec > 0);
    assert!(stats.pids.is_some() && stats.io.is_some());
}
