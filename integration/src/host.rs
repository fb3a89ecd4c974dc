//! Reads processes, mounts and cgroups from the host's kernel.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A process of the host.
#[derive(Clone, Debug)]
pub struct HostProcess {
    /// Its process ID.
    pub pid: i32,
    /// Its parent's process ID.
    pub parent: i32,
    /// Its command line.
    pub args: Vec<String>,
    /// The content of `/proc/PID/cgroup`.
    pub cgroup: String,
}

/// Returns all processes of the host except the kernel's own, without those
/// that end meanwhile.
pub fn processes() -> Vec<HostProcess> {
    let entries = fs::read_dir("/proc").expect("read /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(process).collect()
}

/// Returns a process, unless it has ended (as a zombie has) or is a kernel
/// thread.
pub fn process(pid: i32) -> Option<HostProcess> {
    // The name in brackets is followed by the state, the parent, and later the
    // flags.
    let stat = read(pid, "stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let of_kernel = fields.get(6)?.parse::<u32>().ok()? & PF_KTHREAD != 0;
    if of_kernel || ["Z", "X"].contains(&fields[0]) {
        return None;
    }
    Some(HostProcess {
        pid,
        parent: fields[1].parse().ok()?,
        args: read(pid, "cmdline")?.split_terminator('\0').map(str::to_owned).collect(),
        cgroup: read(pid, "cgroup")?,
    })
}

/// From `linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// Reads a file of `/proc/PID` with as few system calls as possible: with
/// enough room from the start, and without stat. Each test reads those of all
/// processes several times.
fn read(pid: i32, name: &str) -> Option<String> {
    let file = File::open(format!("/proc/{pid}/{name}")).ok()?;
    let mut content = Vec::with_capacity(4096);
    file.take(u64::MAX).read_to_end(&mut content).ok()?;
    Some(String::from_utf8_lossy(&content).into_owned())
}

/// Returns the value of a line of `/proc/PID/status`, such as `CapEff`.
pub fn status(pid: i32, name: &str) -> String {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {path}: {e}"));
    field(&status, name).unwrap_or_else(|| panic!("no {name} in {path}"))
}

fn field(status: &str, name: &str) -> Option<String> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Returns the open descriptors of a process: each number and its target.
pub fn descriptors(pid: i32) -> BTreeMap<u32, String> {
    let path = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&path).unwrap_or_else(|e| panic!("read {path}: {e}")).flatten();
    let target = |path: &Path| fs::read_link(path).map(|to| to.to_string_lossy().into_owned());
    let described = entries.filter_map(|entry| {
        Some((entry.file_name().to_str()?.parse().ok()?, target(&entry.path()).ok()?))
    });
    described.collect()
}

/// Returns the mount points of this mount namespace.
pub fn mount_points() -> Vec<String> {
    let mounts = fs::read("/proc/self/mountinfo").expect("read mountinfo");
    let mounts = String::from_utf8_lossy(&mounts);
    mounts.lines().filter_map(|line| Some(line.split(' ').nth(4)?.to_owned())).collect()
}

/// Returns the children of a process.
pub fn children(pid: i32) -> Vec<HostProcess> {
    processes().into_iter().filter(|process| process.parent == pid).collect()
}

/// Returns the directory of a process's cgroup for one controller (`memory`,
/// `cpu`, ...): of cgroup v1 if that hierarchy is mounted, of v2 otherwise.
pub fn cgroup_directory(pid: i32, controller: &str) -> PathBuf {
    let process = process(pid).unwrap_or_else(|| panic!("process {pid} has ended"));
    cgroup_directory_of(&process, controller)
}

/// The same of a process that may have ended since it was seen.
pub fn cgroup_directory_of(process: &HostProcess, controller: &str) -> PathBuf {
    let pid = process.pid;
    let lines = process.cgroup.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        rest.split_once(':')
    });
    let lines: Vec<(&str, &str)> = lines.collect();
    let of = |wanted: &str| {
        lines.iter().find(|(names, _)| names.split(',').any(|name| name == wanted)).map(|(_, p)| *p)
    };
    match of(controller) {
        Some(path) => {
            Path::new("/sys/fs/cgroup").join(controller).join(path.trim_start_matches('/'))
        }
        None => {
            let path = of("").unwrap_or_else(|| panic!("process {pid} has no cgroup"));
            Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'))
        }
    }
}

/// Returns the trimmed content of a file of the cgroup of a process's container. The init of
/// a container that may divide its cgroup (as Docker's may, with userns-remap) is in a leaf below.
pub fn cgroup_value(pid: i32, controller: &str, file: &str) -> String {
    let own = cgroup_directory(pid, controller);
    let of_container = if own.ends_with("init.scope") { own.parent() } else { None };
    let path = of_container.unwrap_or(&own).join(file);
    let value =
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    value.trim().to_owned()
}

/// Returns the memory limit of a process's cgroup, in bytes.
pub fn memory_limit(pid: i32) -> u64 {
    let file = if has_cgroup_v2_only() { "memory.max" } else { "memory.limit_in_bytes" };
    let value = cgroup_value(pid, "memory", file);
    value.parse().unwrap_or(u64::MAX)
}

/// Returns the CPU quota and the period of a process's cgroup, in microseconds.
/// -1 means no quota.
pub fn cpu_quota(pid: i32) -> (i64, i64) {
    let number = |text: &str| text.parse().unwrap_or(-1);
    if has_cgroup_v2_only() {
        let value = cgroup_value(pid, "cpu", "cpu.max");
        let (quota, period) = value.split_once(' ').expect("cpu.max has two numbers");
        return (number(quota), number(period));
    }
    let value = |file| number(&cgroup_value(pid, "cpu", file));
    (value("cpu.cfs_quota_us"), value("cpu.cfs_period_us"))
}

/// Returns the CPU shares of a process's cgroup, or on cgroup version 2 its
/// weight.
pub fn cpu_shares(pid: i32) -> String {
    let file = if has_cgroup_v2_only() { "cpu.weight" } else { "cpu.shares" };
    cgroup_value(pid, "cpu", file)
}

/// Whether this host's kernel knows a type of file systems.
pub fn knows_file_system(name: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").expect("read /proc/filesystems");
    known.lines().any(|line| line.trim_start_matches("nodev").trim() == name)
}

/// Whether this host has the unified hierarchy only.
pub fn has_cgroup_v2_only() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Returns all cgroups of all hierarchies.
pub fn cgroups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = left.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        let entries = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        left.extend(entries.map(|entry| entry.path()));
        found.push(directory);
    }
    found
}

/// Returns the CPU time that a process has used.
pub fn cpu_time(pid: i32) -> std::time::Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("a process");
    let nanoseconds = stat.split(' ').next().and_then(|number| number.parse().ok());
    std::time::Duration::from_nanos(nanoseconds.expect("its time"))
}
