//! CPU bandwidth: a quota in a period, and as systemd counts it.

use std::path::Path;

use oci_spec::runtime::LinuxCpu;

use super::{Cgroup, file};

/// The kernel's default period of CPU bandwidth, microseconds.
pub(super) const PERIOD: u64 = 100_000;

/// No limit, as systemd has it.
const INFINITY: u64 = u64::MAX;

/// Returns quota and period if one of them is requested. The other keeps its
/// present value.
pub(super) fn requested_bandwidth(
    cpu: &LinuxCpu,
    v2: bool,
    now: Option<&Cgroup>,
) -> Option<(Option<u64>, u64)> {
    let (quota, period) = (cpu.quota().filter(|q| *q != 0), cpu.period().filter(|p| *p != 0));
    if quota.is_none() && period.is_none() {
        return None;
    }
    let (old_quota, old_period) = now.map(|cg| bandwidth(cg, v2)).unwrap_or_default();
    let quota = match quota {
        Some(quota) => u64::try_from(quota).ok(),
        None => old_quota,
    };
    Some((quota, period.or(old_period).unwrap_or(PERIOD)))
}

/// Returns the quota to write into the file of a unit: the value that systemd
/// will write when it next looks at the unit. `None` means the spec's value. On
/// version 1 it is always the spec's: a kubelet writes the exact quota into the
/// pod's cgroup, and the kernel allows no larger one below it.
pub(super) fn quota_of_unit(cg: &Cgroup, cpu: &LinuxCpu) -> Option<i64> {
    cg.saved.unit.as_ref().filter(|_| cg.saved.v2)?;
    let (quota, period) = requested_bandwidth(cpu, cg.saved.v2, Some(cg))?;
    i64::try_from(in_a_period(per_second(Some(quota?), period), period)).ok()
}

/// Computes the quota as systemd does.
fn in_a_period(per_second: u64, period: u64) -> u64 {
    per_second.saturating_mul(period) / 1_000_000
}

/// Returns microseconds per second, rounded up to the 10 ms in which systemd
/// counts, so that the file's value is never more than systemd allows.
pub(super) fn per_second(quota: Option<u64>, period: u64) -> u64 {
    const STEP: u64 = 10_000;
    quota.map_or(INFINITY, |quota| {
        (quota.saturating_mul(1_000_000) / period.max(1)).div_ceil(STEP).saturating_mul(STEP)
    })
}

/// Returns the present quota and period.
fn bandwidth(cg: &Cgroup, v2: bool) -> (Option<u64>, Option<u64>) {
    let Some(dir) = cg.dir("cpu") else {
        return (None, None);
    };
    let field = |path: &Path, nth: usize| {
        let text = file::read_io(path).ok()?;
        text.split_whitespace().nth(nth)?.parse().ok()
    };
    if v2 {
        let max = dir.join("cpu.max");
        return (field(&max, 0), field(&max, 1));
    }
    (field(&dir.join("cpu.cfs_quota_us"), 0), field(&dir.join("cpu.cfs_period_us"), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_counted_by_the_second_and_rounded_up() {
        assert_eq!(per_second(Some(50_000), 100_000), 500_000);
        assert_eq!(per_second(Some(33_333), 100_000), 340_000);
        assert_eq!(per_second(None, 100_000), INFINITY);
        // systemd does not round its own value again.
        for (quota, period, kept) in [(33_333, 100_000, 34_000), (7_777, 33_333, 7_999)] {
            assert_eq!(in_a_period(per_second(Some(quota), period), period), kept);
            assert_eq!(in_a_period(per_second(Some(kept), period), period), kept);
        }
    }
}
