//! Tests against the real cgroups of the host. They need root, and what the
//! names of their modules mention.

mod needs_systemd;
mod needs_v1;
mod needs_v2;
mod needs_v2_mount;
mod views;

use crate::error::FailureKind;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxHugepageLimitBuilder, LinuxMemoryBuilder,
    LinuxPidsBuilder, LinuxResourcesBuilder,
};
use rustix::event::{PollFd, PollFlags, poll};

use super::stats::Stats;
use super::*;

/// Checks a test's needs. A test that needs more than root is in a module with
/// that need in its name, so that `ci/choose-tests` can leave it out, and print
/// that, on a host without it. If it is run anyway, it fails here.
fn needs(met: bool, what: &str) {
    assert!(rustix::process::geteuid().is_root(), "needs root");
    assert!(met, "needs {what}: ci/test leaves it out on this host");
}

fn is_v2() -> bool {
    Mode::of_host().unwrap().is_v2()
}

/// Returns the mount point of version 2, if there is one.
fn mount() -> Option<PathBuf> {
    let text = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap()).into_owned();
    let line = text.lines().find(|l| l.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

/// A cgroup that is removed on drop with all its processes.
struct Scratch {
    cgroup: Cgroup,
    children: Vec<Child>,
}

/// Makes a cgroup without limits of its own below another.
fn child_of(cgroup: &Cgroup) -> Cgroup {
    let mut saved = cgroup.saved().clone();
    saved.unit = None;
    for dir in &mut saved.dirs {
        dir.path.push("child");
        fs::create_dir(&dir.path).unwrap();
    }
    Cgroup::open(saved).unwrap()
}

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("palisade-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Scratch {
    fn new(resources: &LinuxResources) -> Scratch {
        let id = unique();
        let cgroup =
            Cgroup::create(&id, &format!("/{id}"), Driver::Cgroupfs, resources, &[]).unwrap();
        Scratch { cgroup, children: Vec::new() }
    }

    fn plain() -> Scratch {
        Self::new(&LinuxResources::default())
    }

    /// Runs a shell script that first joins by the files of [`Cgroup::procs`].
    fn run(&mut self, script: &str) -> u32 {
        let joins: String = self
            .cgroup
            .paths()
            .map(|p| format!("echo 0 > {}/cgroup.procs; ", p.display()))
            .collect();
        let mut child = Command::new("sh")
            .args(["-ec", &format!("{joins} echo in; {script}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        self.children.push(child);
        self.children.last().unwrap().id()
    }

    fn file(&self, controller: &str, name: &str) -> String {
        let path = self.cgroup.dir(controller).unwrap().join(name);
        fs::read_to_string(path).unwrap().trim().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let killed = self.cgroup.kill_all();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let removed = self.cgroup.remove();
        if !std::thread::panicking() {
            killed.unwrap();
            removed.unwrap();
            assert!(!self.cgroup.exists(), "a cgroup is left: {}", self.cgroup.name());
        }
    }
}

fn memory(limit: i64) -> LinuxResources {
    let memory = LinuxMemoryBuilder::default().limit(limit).build().unwrap();
    LinuxResourcesBuilder::default().memory(memory).build().unwrap()
}

fn cpu(shape: impl FnOnce(LinuxCpuBuilder) -> LinuxCpuBuilder) -> LinuxResources {
    let cpu = shape(LinuxCpuBuilder::default()).build().unwrap();
    LinuxResourcesBuilder::default().cpu(cpu).build().unwrap()
}

/// Waits for what is bound to become true.
fn until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within ten seconds");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn readable(fd: impl AsFd, timeout: Duration) -> bool {
    let fd = fd.as_fd();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&freeze::timespec(timeout))).unwrap() == 1
}
