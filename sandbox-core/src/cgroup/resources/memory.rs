//! `linux.resources.memory`

use std::path::{Path, PathBuf};

use cgroups_rs::fs::memory::MemController;
use oci_spec::runtime::{LinuxMemory, LinuxResources};

use super::{Steps, dir_for, put, unsupported};
use crate::cgroup::{Cgroup, file};
use crate::error::{Error, Result};

pub(super) fn apply(cg: &Cgroup, memory: &LinuxMemory) -> Result<()> {
    if memory.kernel().is_some() || memory.kernel_tcp().is_some() {
        log::debug!(
            "linux.resources.memory.kernel and kernelTCP are obsolete and ignored, as by runc"
        );
    }
    let rest = memory.limit().is_some()
        || memory.swap().is_some()
        || memory.reservation().is_some()
        || swappiness(memory).is_some()
        || memory.disable_oom_killer() == Some(true);
    if !rest {
        return Ok(());
    }
    let dir = dir_for(cg, "memory", "memory")?;
    if cg.saved.v2 { version_2(dir, memory) } else { version_1(dir, memory) }
}

/// Refuses what only version 1 has, and a swap limit below the memory limit that it
/// includes.
pub(super) fn check(v2: bool, memory: &LinuxMemory) -> Result<()> {
    if let Some(swappiness) = swappiness(memory).filter(|s| !v2 && *s > 100) {
        return Err(Error::invalid(format!(
            "linux.resources.memory.swappiness: {swappiness}, expected 0 to 100"
        )));
    }
    if !v2 {
        return Ok(());
    }
    if swappiness(memory).is_some() {
        return Err(unsupported("memory.swappiness", "cgroup version 2 has no swappiness"));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(unsupported(
            "memory.disableOOMKiller",
            "cgroup version 2 always has its OOM killer",
        ));
    }
    swap_beside(memory.limit().filter(|l| *l != 0), memory.swap()).map(drop)
}

/// Completes an update with the present value of the other limit, if it mentions only
/// one of memory and swap (version 2). In the spec, swap is a total that includes
/// memory. Without the other value the total would change with the memory, or could
/// not be computed.
pub(in crate::cgroup) fn completed(
    cg: &Cgroup,
    resources: &LinuxResources,
) -> Result<LinuxResources> {
    let mut whole = resources.clone();
    let Some(mut memory) = resources.memory().filter(|_| cg.saved.v2) else {
        return Ok(whole);
    };
    let given = |half: Option<i64>| half.filter(|h| *h != 0);
    let (limit, swap) = (given(memory.limit()), given(memory.swap()));
    if limit.is_some() != swap.is_some() {
        let dir = dir_for(cg, "memory", "memory")?;
        // `None` means no limit.
        let now = |name: &str| -> Result<Option<i64>> {
            let number = file::read_number(&dir.join(name))?;
            Ok(number.and_then(|n| i64::try_from(n).ok()))
        };
        match limit {
            Some(limit) => {
                let total = now("memory.max")?.zip(now("memory.swap.max")?);
                let total = total.map(|(memory, swap)| memory.saturating_add(swap));
                // With memory beyond the total, swap keeps its value, as with runc:
                // Docker requests unlimited swap by not mentioning it.
                memory.set_swap(total.filter(|total| (1..=*total).contains(&limit)));
            }
            None => drop(memory.set_limit(now("memory.max")?)),
        }
        whole.set_memory(Some(memory));
    }
    Ok(whole)
}

/// Returns the swappiness. Docker and runc write -1 for "not set", which as an unsigned
/// number is the largest.
fn swappiness(memory: &LinuxMemory) -> Option<u64> {
    memory.swappiness().filter(|swappiness| *swappiness != u64::MAX)
}

/// memory.rst. Zero means "not set", as with runc. Whether memory or swap must be
/// written first depends on whether they grow or shrink. [`Steps`] tries both orders.
fn version_1(dir: &Path, memory: &LinuxMemory) -> Result<()> {
    let set = &MemController::new(dir.to_owned(), PathBuf::new(), false);
    let mut steps = Steps::default();
    let limit = memory.limit().filter(|l| *l != 0);
    if let Some(limit) = limit {
        steps.library("memory.limit", move || set.set_limit(limit));
    }
    // Without a memory limit there is none on swap either, unless one is given.
    let implied =
        (limit == Some(-1) && dir.join("memory.memsw.limit_in_bytes").exists()).then_some(-1);
    if let Some(swap) = memory.swap().filter(|s| *s != 0).or(implied) {
        steps.library("memory.swap", move || set.set_memswap_limit(swap));
    }
    if let Some(reservation) = memory.reservation().filter(|r| *r != 0) {
        steps.library("memory.reservation", move || set.set_soft_limit(reservation));
    }
    if let Some(swappiness) = swappiness(memory) {
        steps.library("memory.swappiness", move || set.set_swappiness(swappiness));
    }
    if memory.disable_oom_killer() == Some(true) {
        steps.library("memory.disableOOMKiller", move || set.disable_oom_killer());
    }
    steps.settle()
}

/// cgroup-v2.rst, "Memory Interface Files".
fn version_2(dir: &Path, memory: &LinuxMemory) -> Result<()> {
    let limit = memory.limit().filter(|l| *l != 0);
    let set = &MemController::new(dir.to_owned(), PathBuf::new(), true);
    let mut steps = Steps::default();
    if let Some(swap) = swap_beside(limit, memory.swap())? {
        write_swap(dir, swap)?;
    }
    if let Some(limit) = limit {
        steps.library("memory.limit", move || set.set_limit(limit));
    }
    if let Some(reservation) = memory.reservation().filter(|r| *r != 0) {
        let low = if reservation < 0 { "max".to_owned() } else { reservation.to_string() };
        steps.plain("memory.reservation", dir.join("memory.low"), low);
    }
    steps.settle()
}

/// Converts the spec's swap, which includes memory, to version 2, which counts swap
/// alone. `None` if there is nothing to write, -1 for no limit.
pub(in crate::cgroup) fn swap_beside(limit: Option<i64>, swap: Option<i64>) -> Result<Option<i64>> {
    match (limit, swap.filter(|s| *s != 0)) {
        (Some(-1), None) => Ok(Some(-1)),
        (_, None) => Ok(None),
        (_, Some(-1)) => Ok(Some(-1)),
        (Some(-1), Some(swap)) => Ok(Some(swap)),
        (Some(limit), Some(swap)) if limit > 0 && swap >= limit => Ok(Some(swap - limit)),
        (limit, Some(swap)) => Err(Error::invalid(format!(
            "linux.resources.memory.swap: {swap}, expected at least memory.limit, which is {}",
            limit.map_or_else(|| "not set".to_owned(), |l| l.to_string())
        ))),
    }
}

/// Writes the swap limit. A host without swap accounting has no file for it.
/// There, no swap and unlimited swap count as written.
fn write_swap(dir: &Path, swap: i64) -> Result<()> {
    let path = dir.join("memory.swap.max");
    let value = if swap == -1 { "max".to_owned() } else { swap.to_string() };
    match put(&path, &value) {
        Err(e) if e.errno == Some(rustix::io::Errno::NOENT) && matches!(swap, -1 | 0) => Ok(()),
        result => result.map_err(|e| e.of("memory.swap")),
    }
}

/// Refuses a limit below the present usage (`checkBeforeUpdate`), which would
/// kill at once. Version 1 refuses it by itself.
pub(in crate::cgroup) fn check_usage(cg: &Cgroup, resources: &LinuxResources) -> Result<()> {
    let Some(memory) = resources.memory().filter(|m| m.check_before_update() == Some(true)) else {
        return Ok(());
    };
    if !cg.saved.v2 {
        return Ok(());
    }
    let dir = dir_for(cg, "memory", "memory")?;
    let used = file::read_number(&dir.join("memory.current"))?.unwrap_or(0);
    let swapped = file::read_number(&dir.join("memory.swap.current"))?.unwrap_or(0);
    fits("memory.limit", memory.limit(), used)?;
    fits("memory.swap", memory.swap(), used + swapped)
}

/// Refuses a limit that is not above the usage. Zero and less mean no limit.
fn fits(field: &str, limit: Option<i64>, used: u64) -> Result<()> {
    match limit.and_then(|l| u64::try_from(l).ok()).filter(|l| *l != 0) {
        Some(limit) if limit <= used => Err(Error::invalid(format!(
            "linux.resources.{field}: {limit}, expected more than the {used} bytes in use (checkBeforeUpdate)"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{fits, swap_beside};

    #[test]
    fn the_usage_must_be_below_the_limit() {
        for (limit, used) in [(None, 9), (Some(-1), 9), (Some(0), 9), (Some(10), 9)] {
            fits("memory.limit", limit, used).unwrap();
        }
        for (limit, used) in [(9, 9), (1, 9)] {
            let error = fits("memory.swap", Some(limit), used).unwrap_err().to_string();
            assert!(error.starts_with("linux.resources.memory.swap: "), "{error}");
        }
    }

    #[test]
    fn swap_of_the_spec_includes_memory() {
        let cases = [
            (None, None, None),
            (Some(100), None, None),
            (Some(100), Some(0), None),
            (Some(100), Some(100), Some(0)),
            (Some(100), Some(250), Some(150)),
            (Some(100), Some(-1), Some(-1)),
            (Some(-1), None, Some(-1)),
            (Some(-1), Some(70), Some(70)),
        ];
        for (limit, swap, beside) in cases {
            assert_eq!(swap_beside(limit, swap).unwrap(), beside, "{limit:?} {swap:?}");
        }
        for (limit, swap) in [(Some(100), Some(50)), (None, Some(50))] {
            let error = swap_beside(limit, swap).unwrap_err().to_string();
            assert!(error.contains("linux.resources.memory.swap"), "{error}");
        }
    }
}
