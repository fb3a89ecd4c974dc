//! Features of version 2 that need no controllers, and so can be tested on a
//! hybrid host as well, in the version 2 mount beside version 1.

use std::os::fd::AsRawFd;

use super::*;
use crate::types::HostPid;

/// Makes a cgroup of version 2, with [`Cgroup::create`] if that leads there.
pub(super) fn scratch(resources: &LinuxResources) -> Scratch {
    needs(mount().is_some(), "a mount of cgroup version 2");
    if is_v2() {
        return Scratch::new(resources);
    }
    let mount = mount().unwrap();
    let path = mount.join(unique());
    fs::create_dir(&path).unwrap();
    let dirs = vec![Dir { controllers: Vec::new(), mount, path }];
    let cgroup = Cgroup::open(SavedCgroup { v2: true, dirs, unit: None, resctrl: None }).unwrap();
    let scratch = Scratch { cgroup, children: Vec::new() };
    resources::apply(&scratch.cgroup, resources).unwrap();
    resources::allow_devices(&scratch.cgroup, resources).unwrap();
    scratch
}

/// Whether a process in the cgroup can open a node with a device number.
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
    let mut scratch = scratch(&LinuxResources::default());
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
    let mut allow = |rules: Vec<_>| {
        let resources = LinuxResourcesBuilder::default().devices(rules).build().unwrap();
        resources::allow_devices(&scratch.cgroup, &resources).unwrap();
        let dir = scratch.cgroup.dir_fd().unwrap().unwrap();
        let programs = crate::sys::bpf::device_programs(dir.as_fd()).unwrap();
        assert_eq!(programs.len(), 1, "the earlier program is gone");
        (opens(&mut scratch, 'c', 1, 11), opens(&mut scratch, 'c', 1, 3))
    };
    assert_eq!(allow(vec![rule(true, 11, "r")]), (true, true));
    assert_eq!(allow(vec![rule(true, 11, "w")]), (false, true));
    assert_eq!(allow(vec![everything.clone()]), (true, true));
    assert_eq!(allow(vec![everything, rule(false, 11, "r")]), (false, true));
}

#[test]
fn processes_are_frozen_and_killed_at_once() {
    let mut scratch = scratch(&LinuxResources::default());
    let below = scratch.cgroup.any_dir().unwrap().join("nested");
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
    let scratch = scratch(&LinuxResources::default());
    let fd = scratch.cgroup.dir_fd().unwrap().unwrap();
    let seen = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    assert_eq!(seen, scratch.cgroup.any_dir().unwrap());
    assert_eq!(scratch.cgroup.procs().unwrap().len(), 1);
}

/// The container may nest cgroups until no path reaches them.
#[test]
fn cgroups_deeper_than_any_path_are_listed_killed_and_removed() {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let mut scratch = scratch(&LinuxResources::default());
    let mut here = scratch.cgroup.dir_fd().unwrap().unwrap();
    let name = "n".repeat(200);
    for _ in 0..30 {
        mkdirat(&here, &name, Mode::from_raw_mode(0o755)).unwrap();
        here = openat(&here, &name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    let inside = scratch.run("exec sleep 60");
    let procs =
        openat(&here, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    rustix::io::write(&procs, inside.to_string().as_bytes()).unwrap();
    assert_eq!(
        fs::read_to_string(scratch.cgroup.any_dir().unwrap().join("cgroup.procs")).unwrap(),
        ""
    );
    assert_eq!(scratch.cgroup.pids().unwrap(), [HostPid(inside.try_into().unwrap())]);
    drop((here, procs));
    scratch.cgroup.kill_all().unwrap();
    scratch.cgroup.remove().unwrap();
    assert!(!scratch.cgroup.exists());
}
