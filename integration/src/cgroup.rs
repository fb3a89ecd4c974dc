//! The cgroups of the tests' containers, and limits above them, with either
//! driver: `PALISADE_TEST_CGROUP_DRIVER` is `cgroupfs` (the default) or
//! `systemd`, with which each test has its own slice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::slot::Slot;
use crate::{host, wait};

/// The program that makes the cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Palisade, by mkdir.
    Cgroupfs,
    /// systemd, at Palisade's request.
    Systemd,
}

impl Driver {
    /// Returns the driver of this run of the tests.
    pub fn of_tests() -> Driver {
        match std::env::var("PALISADE_TEST_CGROUP_DRIVER").as_deref() {
            Err(_) | Ok("cgroupfs") => Driver::Cgroupfs,
            Ok("systemd") => Driver::Systemd,
            Ok(other) => {
                panic!("PALISADE_TEST_CGROUP_DRIVER={other}: neither cgroupfs nor systemd")
            }
        }
    }
}

/// Returns the name of the cgroup above all containers of a test. A dash in a
/// slice's name would mean a parent slice.
pub fn group(slot: &Slot) -> String {
    match Driver::of_tests() {
        Driver::Cgroupfs => slot.name(),
        Driver::Systemd => slice(slot),
    }
}

fn slice(slot: &Slot) -> String {
    format!("{}.slice", prefix(slot))
}

/// Returns a pod's cgroup parent, in CRI's form.
pub fn parent(slot: &Slot) -> String {
    format!("/{}", group(slot))
}

/// Returns a container's cgroup, in the form of a spec.
pub fn path(slot: &Slot, id: &str) -> String {
    match Driver::of_tests() {
        Driver::Cgroupfs => format!("/{}/{id}", group(slot)),
        Driver::Systemd => format!("{}:{}:{id}", group(slot), prefix(slot)),
    }
}

/// Returns the scope of a container. All units of a host share one set of
/// names.
pub fn scope(slot: &Slot, id: &str) -> String {
    format!("{}-{id}.scope", prefix(slot))
}

fn prefix(slot: &Slot) -> String {
    slot.name().replace('-', "_")
}

/// Whether a cgroup's path belongs to a test.
pub fn belongs(path: &str, slot: &Slot) -> bool {
    [slot.name(), slice(slot)].iter().any(|name| path.contains(&format!("/{name}/")))
}

/// Removes a test's cgroup with all below it. Returns whether it is gone.
pub fn clear_away(slot: &Slot) -> bool {
    let cgroups: Vec<_> =
        host::cgroups().into_iter().filter(|cgroup| cgroup.ends_with(slot.name())).collect();
    cgroups.iter().for_each(|cgroup| remove(cgroup));
    let slice = slice(slot);
    if host::cgroups().iter().any(|cgroup| cgroup.ends_with(&slice)) {
        let _ = Command::new("systemctl").args(["stop", &slice]).status();
        // Removes its properties, which the next test would inherit.
        let _ = Command::new("systemctl").args(["revert", &slice]).output();
    }
    cgroups.iter().all(|cgroup| !cgroup.exists())
}

fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

/// The limits of a node for a class of pods.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Microseconds of CPU in each 100 ms.
    pub quota: Option<u32>,
    /// A list of CPUs.
    pub cpus: Option<&'static str>,
}

/// Makes and limits the cgroup above all containers of a test before them, as
/// the kubelet does. It is removed at the test's end.
pub fn limit(slot: &Slot, limits: &Limits) {
    let name = group(slot);
    if Driver::of_tests() == Driver::Systemd {
        return limit_slice(&name, limits);
    }
    for (controller, files) in values(limits) {
        let group = hierarchy(controller).join(&name);
        fs::create_dir_all(&group).unwrap_or_else(|e| panic!("mkdir {}: {e}", group.display()));
        for (file, value) in files {
            let path = group.join(file);
            fs::write(&path, &value)
                .unwrap_or_else(|e| panic!("write {value} to {}: {e}", path.display()));
        }
    }
}

/// A cgroup with little memory below a test's, until it is dropped: of one pod, as the kubelet makes
/// it, or of other processes. Only where Palisade makes cgroups by mkdir.
#[derive(Debug)]
pub struct Narrow {
    /// Its path below the hierarchies.
    below: PathBuf,
}

impl Narrow {
    /// Makes it, with a limit in bytes.
    pub fn new(slot: &Slot, name: &str, bytes: u64) -> Narrow {
        let narrow = Narrow { below: Path::new(&group(slot)).join(name) };
        let directory = narrow.directory();
        fs::create_dir_all(&directory).expect("make a cgroup");
        let bytes = bytes.to_string();
        if host::has_cgroup_v2_only() {
            let above = directory.parent().expect("the test's").join("cgroup.subtree_control");
            fs::write(above, "+memory").expect("let it limit memory");
            fs::write(directory.join("memory.max"), bytes).expect("limit its memory");
        } else {
            fs::write(directory.join("memory.limit_in_bytes"), &bytes).expect("limit its memory");
            // Where the kernel counts swap.
            let _ = fs::write(directory.join("memory.memsw.limit_in_bytes"), &bytes);
        }
        narrow
    }

    /// Returns it in the form of a pod's `cgroup_parent`.
    pub fn parent(&self) -> String {
        format!("/{}", self.below.display())
    }

    /// Moves a process in. Returns whether it was there.
    pub fn take(&self, pid: i32) -> bool {
        fs::write(self.directory().join("cgroup.procs"), pid.to_string()).is_ok()
    }

    /// Moves all processes to another cgroup.
    pub fn let_go(&self, to: &Path) {
        let inside = fs::read_to_string(self.directory().join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            // It may have ended meanwhile.
            let _ = fs::write(to.join("cgroup.procs"), pid);
        }
    }

    fn directory(&self) -> PathBuf {
        hierarchy("memory").join(&self.below)
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        let is_gone = || {
            let all = host::cgroups().into_iter().filter(|cgroup| cgroup.ends_with(&self.below));
            all.inspect(|cgroup| remove(cgroup)).filter(|cgroup| cgroup.exists()).count() == 0
        };
        // A process that was killed is in it for a while.
        let gone = wait::try_until(wait::patience(10), || is_gone().then_some(()));
        if gone.is_none() {
            eprintln!("cgroup {} is busy", self.below.display());
        }
    }
}

/// Freezes all containers of a test until it is dropped, including those that
/// are not made yet.
#[derive(Debug)]
pub struct Frozen {
    state: PathBuf,
}

impl Frozen {
    /// Freezes the cgroup above them, which it makes. It is removed at the
    /// test's end.
    pub fn new(slot: &Slot) -> Frozen {
        let group = hierarchy("freezer").join(group(slot));
        match Driver::of_tests() {
            Driver::Cgroupfs => fs::create_dir_all(&group).expect("make the test's cgroup"),
            Driver::Systemd => systemctl(&["start", &slice(slot)]),
        }
        let file = if host::has_cgroup_v2_only() { "cgroup.freeze" } else { "freezer.state" };
        let frozen = Frozen { state: group.join(file) };
        frozen.write("1", "FROZEN").expect("freeze the test's cgroup");
        frozen
    }

    fn write(&self, v2: &str, v1: &str) -> std::io::Result<()> {
        fs::write(&self.state, if host::has_cgroup_v2_only() { v2 } else { v1 })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.write("0", "THAWED").expect("thaw the test's cgroup");
    }
}

fn systemctl(args: &[&str]) {
    let ran = Command::new("systemctl").args(args).output().expect("run systemctl");
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "systemctl {}: {stderr}", args.join(" "));
}

fn limit_slice(slice: &str, limits: &Limits) {
    let properties = [
        limits.memory.map(|bytes| format!("MemoryMax={bytes}")),
        limits.quota.map(|quota| format!("CPUQuota={}%", quota / 1000)),
        limits.cpus.map(|cpus| format!("AllowedCPUs={cpus}")),
    ];
    systemctl(&["start", slice]);
    for property in properties.iter().flatten() {
        systemctl(&["set-property", "--runtime", slice, property]);
    }
}

fn hierarchy(controller: &str) -> PathBuf {
    let root = PathBuf::from("/sys/fs/cgroup");
    if host::has_cgroup_v2_only() { root } else { root.join(controller) }
}

/// Returns files and their values by controller, in the order of writing.
fn values(limits: &Limits) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let v2 = host::has_cgroup_v2_only();
    let mut all = Vec::new();
    if let Some(bytes) = limits.memory {
        let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
        all.push(("memory", vec![(file, bytes.to_string())]));
    }
    if let Some(quota) = limits.quota {
        all.push((
            "cpu",
            match v2 {
                true => vec![("cpu.max", format!("{quota} 100000"))],
                false => vec![("cpu.cfs_quota_us", quota.to_string())],
            },
        ));
    }
    if let Some(cpus) = limits.cpus {
        let mut files = vec![("cpuset.cpus", cpus.to_owned())];
        if !v2 {
            // A v1 cpuset cannot be used before it has memory as well.
            let mems = fs::read_to_string("/sys/fs/cgroup/cpuset/cpuset.mems");
            files.push(("cpuset.mems", mems.expect("the host's cpuset.mems").trim().to_owned()));
        }
        all.push(("cpuset", files));
    }
    all
}
