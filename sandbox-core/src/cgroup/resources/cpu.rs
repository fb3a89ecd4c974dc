//! `linux.resources.cpu`

use std::path::{Path, PathBuf};

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use oci_spec::runtime::{LinuxCpu, LinuxResources};

use super::{Steps, dir_for, unsupported};
use crate::cgroup::Cgroup;
use crate::cgroup::bandwidth::quota_of_unit;
use crate::error::Result;

/// Returns whether the container is to be idle. `unified` takes precedence.
pub(in crate::cgroup) fn idle_of(resources: &LinuxResources) -> Option<i64> {
    let unified = resources.unified().as_ref().and_then(|u| u.get("cpu.idle")?.trim().parse().ok());
    unified.or_else(|| resources.cpu().as_ref()?.idle())
}

/// Refuses real-time scheduling on version 2, which has none.
pub(super) fn check(v2: bool, cpu: &LinuxCpu) -> Result<()> {
    let realtime = cpu.realtime_runtime().is_some_and(|r| r != 0)
        || cpu.realtime_period().is_some_and(|p| p != 0);
    if v2 && realtime {
        return Err(unsupported(
            "cpu.realtimeRuntime",
            "cgroup version 2 limits no real-time scheduling",
        ));
    }
    Ok(())
}

/// Returns the values to write. An `idle` cgroup gets no weight: the kernel
/// refuses one from then on, and systemd may have made it idle before these
/// files are written.
fn as_written(cg: &Cgroup, cpu: &LinuxCpu, idle: bool) -> LinuxCpu {
    let mut written = cpu.clone();
    written.set_shares(cpu.shares().filter(|_| !idle));
    written.set_quota(quota_of_unit(cg, cpu).or(cpu.quota()));
    written
}

pub(super) fn apply(cg: &Cgroup, cpu: &LinuxCpu, idle: bool) -> Result<()> {
    if cpu.cpus().is_some() || cpu.mems().is_some() {
        cpuset(dir_for(cg, "cpuset", "cpu.cpus")?, cpu)?;
    }
    let rest = cpu.shares().is_some()
        || cpu.quota().is_some()
        || cpu.period().is_some()
        || cpu.burst().is_some()
        || cpu.idle().is_some()
        || cpu.realtime_runtime().is_some()
        || cpu.realtime_period().is_some();
    if !rest {
        return Ok(());
    }
    let dir = dir_for(cg, "cpu", "cpu")?;
    let cpu = &as_written(cg, cpu, idle);
    if cg.saved.v2 { version_2(dir, cpu) } else { version_1(dir, cpu) }
}

fn cpuset(dir: &Path, cpu: &LinuxCpu) -> Result<()> {
    let set = CpuSetController::new(dir.to_owned(), PathBuf::new(), false);
    let mut steps = Steps::default();
    for (field, list) in [("cpu.cpus", cpu.cpus()), ("cpu.mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|l| !l.is_empty()) {
            let set = &set;
            match field {
                "cpu.cpus" => steps.library(field, move || set.set_cpus(list)),
                _ => steps.library(field, move || set.set_mems(list)),
            }
        }
    }
    steps.settle()
}

/// sched-bwc.rst and sched-design-CFS.rst. Zero means "not set", as with runc.
fn version_1(dir: &Path, cpu: &LinuxCpu) -> Result<()> {
    let set = &CpuController::new(dir.to_owned(), PathBuf::new(), false);
    let mut steps = Steps::default();
    if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
        steps.library("cpu.shares", move || set.set_shares(shares));
    }
    if let Some(period) = cpu.period().filter(|p| *p != 0) {
        steps.library("cpu.period", move || set.set_cfs_period(period));
    }
    if let Some(quota) = cpu.quota().filter(|q| *q != 0) {
        steps.library("cpu.quota", move || set.set_cfs_quota(quota));
    }
    if let Some(burst) = cpu.burst() {
        steps.plain("cpu.burst", dir.join("cpu.cfs_burst_us"), burst);
    }
    if let Some(period) = cpu.realtime_period().filter(|p| *p != 0) {
        steps.library("cpu.realtimePeriod", move || set.set_rt_period_us(period));
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|r| *r != 0) {
        steps.library("cpu.realtimeRuntime", move || set.set_rt_runtime(runtime));
    }
    if let Some(idle) = cpu.idle() {
        steps.plain("cpu.idle", dir.join("cpu.idle"), idle);
    }
    steps.settle()
}

/// cgroup-v2.rst, "CPU Interface Files".
fn version_2(dir: &Path, cpu: &LinuxCpu) -> Result<()> {
    let set = &CpuController::new(dir.to_owned(), PathBuf::new(), true);
    let mut steps = Steps::default();
    if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
        steps.library("cpu.shares", move || set.set_shares(weight_of_shares(shares)));
    }
    let (quota, period) = (cpu.quota().filter(|q| *q != 0), cpu.period().filter(|p| *p != 0));
    if quota.is_some() || period.is_some() {
        steps.library("cpu.quota", move || set.set_cfs_quota_and_period(quota, period));
    }
    if let Some(burst) = cpu.burst() {
        steps.plain("cpu.burst", dir.join("cpu.max.burst"), burst);
    }
    if let Some(idle) = cpu.idle() {
        steps.plain("cpu.idle", dir.join("cpu.idle"), idle);
    }
    steps.settle()
}

/// Converts shares of version 1 (2 to 262144, usually 1024) to a weight of
/// version 2 (1 to 10000, usually 100). runc 1.3.2, crun and the kubelet agree
/// on this curve, which maps those three values onto one another.
pub(in crate::cgroup) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            let weight = 10f64.powf(exponent).ceil() as u64;
            weight.clamp(1, 10_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::weight_of_shares;

    #[test]
    fn shares_keep_their_extremes_and_their_default() {
        let pairs = [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)];
        for (shares, weight) in pairs {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }
}
