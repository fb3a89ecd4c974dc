//! The kernel's figures of the processes of a pod: memory, CPU time, wake-ups.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Returns the proportional set size in MiB: pages that several processes share
/// are divided between them. A process that has ended meanwhile has none.
pub fn pss(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let rollup = match fs::read_to_string(&path) {
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ESRCH)) => {
            return Ok(0.0);
        }
        read => read.with_context(|| format!("read {path}"))?,
    };
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib: f64 = line.context("no Pss")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Returns the memory in MiB that the kernel could give to a new program
/// without swapping.
pub fn memory_available() -> Result<f64> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: f64 = line.context("no MemAvailable")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Returns these processes and all below them.
pub fn with_descendants(roots: &[i32]) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = roots.to_vec();
    let mut at = 0;
    while at < found.len() {
        found.extend(children.remove(&found[at]).unwrap_or_default());
        at += 1;
    }
    found
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything. The state and the parent
    // follow.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// CPU time and wake-ups of a process so far, of all its threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// Time on a CPU.
    pub cpu: Duration,
    /// Number of context switches, voluntary or not.
    pub switches: u64,
}

/// Returns the sum over these processes.
pub fn activity(pids: &[i32]) -> Activity {
    let mut sum = Activity::default();
    for pid in pids {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let schedstat = read("schedstat");
            let on_cpu = schedstat.split(' ').next().and_then(|nanos| nanos.parse().ok());
            sum.cpu += Duration::from_nanos(on_cpu.unwrap_or(0));
            let status = read("status");
            let switches = status.lines().filter(|line| line.contains("ctxt_switches:"));
            let numbers =
                switches.filter_map(|line| line.split_once(':')?.1.trim().parse::<u64>().ok());
            sum.switches += numbers.sum::<u64>();
        }
    }
    sum
}
