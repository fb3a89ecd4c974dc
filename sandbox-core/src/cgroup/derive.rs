//! The capacity of a container, derived from its cgroup and every ancestor. The
//! sandbox has that of its root container.

use std::path::Path;
use std::sync::OnceLock;

use super::{Cgroup, Dir, file};
use crate::cpu_set::CpuSet;
use crate::error::{Error, Result};
use crate::types::{Capacity, Limited};

/// The way to count CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapacityPolicy {
    /// Whether a CPU quota lowers the count.
    pub cpu_from_quota: bool,
    /// A quota never lowers the count below this.
    pub minimum: u32,
}

impl Default for CapacityPolicy {
    fn default() -> Self {
        Self { cpu_from_quota: true, minimum: 2 }
    }
}

/// The CPUs and memory of the host.
#[derive(Clone, Copy, Debug)]
struct Host {
    cpus: u32,
    memory: u64,
}

impl Cgroup {
    /// Derives the CPUs and memory from the cgroup's present limits.
    pub fn capacity(&self, policy: CapacityPolicy) -> Result<Capacity> {
        self.capacity_on(host()?, policy)
    }

    fn capacity_on(&self, host: Host, policy: CapacityPolicy) -> Result<Capacity> {
        let effective = match self.entry("cpuset") {
            Some(dir) => cpuset(dir, self.saved.v2)?.unwrap_or(host.cpus),
            None => host.cpus,
        };
        let quota = match self.entry("cpu") {
            Some(dir) if policy.cpu_from_quota => tightest_quota(dir, self.saved.v2)?,
            _ => None,
        };
        let cpus = quota.map_or(effective, |quota| effective.min(quota.max(policy.minimum)));
        let memory = match self.entry("memory") {
            Some(dir) => least_memory(dir, self.saved.v2)?.min(host.memory),
            None => host.memory,
        };
        let limited = Limited {
            cpus: quota.is_some_and(|quota| quota.max(1) < effective),
            memory: memory < host.memory,
        };
        Ok(Capacity { cpus: cpus.max(1), memory, limited })
    }
}

impl Dir {
    /// Returns the cgroup and every ancestor up to the root.
    pub(super) fn levels(&self) -> impl Iterator<Item = &Path> {
        self.path.ancestors().take_while(|p| p.starts_with(&self.mount))
    }
}

/// Counts the CPUs that are in the effective cpusets of all levels. `None` if
/// no level has one.
fn cpuset(dir: &Dir, v2: bool) -> Result<Option<u32>> {
    let mut common: Option<CpuSet> = None;
    for level in dir.levels() {
        let effective = if v2 { "cpuset.cpus.effective" } else { "cpuset.effective_cpus" };
        // Before Linux 3.17 version 1 had no effective cpuset.
        for name in [effective, "cpuset.cpus"] {
            let path = level.join(name);
            let Some(text) = file::read_if_any(&path)? else {
                continue;
            };
            if text.trim().is_empty() {
                break;
            }
            let wrong = || {
                Error::internal(format!(
                    "{}: expected a list of CPUs, found {text:?}",
                    path.display()
                ))
            };
            let set = CpuSet::parse(&text).ok_or_else(wrong)?;
            common = Some(match common {
                Some(others) => others.and(&set),
                None => set,
            });
            break;
        }
    }
    Ok(common.map(|set| set.count()))
}

/// Returns the tightest quota of all levels in whole CPUs, rounded up.
fn tightest_quota(dir: &Dir, v2: bool) -> Result<Option<u32>> {
    let mut tightest: Option<u64> = None;
    for level in dir.levels() {
        let (quota, period) = if v2 { cpu_max(level)? } else { cfs_quota(level)? };
        if let (Some(quota), Some(period)) = (quota, period)
            && period > 0
        {
            let cpus = quota.div_ceil(period);
            tightest = Some(tightest.map_or(cpus, |t| t.min(cpus)));
        }
    }
    Ok(tightest.map(|t| u32::try_from(t).unwrap_or(u32::MAX)))
}

/// Reads `cpu.max`: "max 100000" or "quota period" (cgroup-v2.rst).
fn cpu_max(level: &Path) -> Result<(Option<u64>, Option<u64>)> {
    let text = file::read_if_any(&level.join("cpu.max"))?.unwrap_or_default();
    let mut fields = text.split_whitespace().map(|f| f.parse().ok());
    Ok((fields.next().flatten(), fields.next().flatten()))
}

/// Reads quota and period. A quota of -1 means none (sched-bwc.rst).
fn cfs_quota(level: &Path) -> Result<(Option<u64>, Option<u64>)> {
    let number = |name| -> Result<Option<u64>> {
        let text = file::read_if_any(&level.join(name))?;
        Ok(text.and_then(|t| t.trim().parse().ok()))
    };
    Ok((number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?))
}

/// Returns the smallest limit of all levels. Without a limit the number is
/// larger than any host's memory: on version 1 it is 2^63 less a page.
fn least_memory(dir: &Dir, v2: bool) -> Result<u64> {
    let name = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
    let mut least = u64::MAX;
    for level in dir.levels() {
        if let Some(limit) = file::read_number(&level.join(name))? {
            least = least.min(limit);
        }
    }
    Ok(least)
}

/// Reads the host's CPUs and memory once. They change only by hotplug.
fn host() -> Result<Host> {
    static HOST: OnceLock<Host> = OnceLock::new();
    if let Some(host) = HOST.get() {
        return Ok(*host);
    }
    let path = Path::new("/sys/devices/system/cpu/online");
    let text = file::read(path)?;
    let wrong =
        || Error::internal(format!("{}: expected a list of CPUs, found {text:?}", path.display()));
    let cpus = CpuSet::parse(&text).ok_or_else(wrong)?.count();
    let info = rustix::system::sysinfo();
    let memory = info.totalram.saturating_mul(info.mem_unit.into());
    Ok(*HOST.get_or_init(|| Host { cpus, memory }))
}

#[cfg(test)]
#[path = "derive_tests.rs"]
mod tests;
