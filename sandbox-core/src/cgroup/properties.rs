//! `linux.resources` as properties of a systemd unit
//! (systemd.resource-control(5)), mapped as runc does.

use std::path::Path;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::path::Unit;
use super::resources::{swap_beside, weight_of_shares};
use super::{Cgroup, file};
use crate::error::{Error, Result};
use crate::sys::cgroup::Holder;

/// What D-Bus carries.
mod value {
    #![allow(unreachable_pub)]
    rustbus::dbus_variant_sig!(Value, Text => String; Texts => Vec<String>; Flag => bool; Number => u64; Pids => Vec<u32>; Bits => Vec<u8>);
}
pub(super) use value::Value;

/// A property and its value, `(sv)`.
pub(super) type Property = (String, Value);

/// "No limit" for systemd (`USEC_INFINITY`, `CGROUP_LIMIT_MAX`).
const INFINITY: u64 = u64::MAX;

/// The kernel's default period of CPU bandwidth, microseconds.
const PERIOD: u64 = 100_000;

/// What the unit is.
pub(super) fn of_unit(id: &str, unit: &Unit, v2: bool, holder: Option<&Holder>) -> Vec<Property> {
    let io = if v2 { "IOAccounting" } else { "BlockIOAccounting" };
    let mut all = vec![text("Description", format!("Palisade container {id}"))];
    if let Some(holder) = holder {
        all.push(text("Slice", unit.slice.clone()));
        // systemd keeps its hands off what is below, and off our controllers.
        all.push(flag("Delegate", true));
        all.push(("PIDs".to_owned(), Value::Pids(vec![holder.pid().cast_unsigned()])));
        // A scope whose processes failed is forgotten like any other.
        all.push(text("CollectMode", "inactive-or-failed".to_owned()));
    } else {
        all.push(("Wants".to_owned(), Value::Texts(vec![unit.slice.clone()])));
    }
    for accounting in ["CPUAccounting", "MemoryAccounting", "TasksAccounting", io] {
        all.push(flag(accounting, true));
    }
    all.push(flag("DefaultDependencies", false));
    all
}

/// The limits that systemd has properties for. `now` is the cgroup that is
/// changed, to look up the half of a quota that is not mentioned.
pub(super) fn of_resources(
    resources: &LinuxResources,
    v2: bool,
    now: Option<&Cgroup>,
) -> Result<Vec<Property>> {
    let mut all = Vec::new();
    if let Some(cpu) = resources.cpu() {
        of_cpu(cpu, v2, now, &mut all)?;
    }
    if let Some(memory) = resources.memory() {
        of_memory(memory, v2, &mut all)?;
    }
    match resources.pids().as_ref().map(|p| p.limit()) {
        None | Some(0) => {}
        Some(limit) => all.push(number("TasksMax", limited(limit))),
    }
    if let Some(weight) =
        resources.block_io().as_ref().and_then(|io| io.weight()).filter(|w| *w != 0)
    {
        let name = if v2 { "IOWeight" } else { "BlockIOWeight" };
        all.push(number(name, weight.into()));
    }
    if v2 {
        for (name, value) in resources.unified().iter().flatten() {
            of_unified(name, value, &mut all);
        }
    }
    Ok(all)
}

fn of_cpu(cpu: &LinuxCpu, v2: bool, now: Option<&Cgroup>, all: &mut Vec<Property>) -> Result<()> {
    if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
        all.push(if v2 {
            number("CPUWeight", weight_of_shares(shares))
        } else {
            number("CPUShares", shares)
        });
    }
    let (quota, period) = (cpu.quota().filter(|q| *q != 0), cpu.period().filter(|p| *p != 0));
    if quota.is_some() || period.is_some() {
        let (old_quota, old_period) = now.map(|cg| bandwidth(cg, v2)).unwrap_or_default();
        let period = period.or(old_period).unwrap_or(PERIOD);
        let quota = match quota {
            Some(quota) => u64::try_from(quota).ok(),
            None => old_quota,
        };
        all.push(number("CPUQuotaPerSecUSec", per_second(quota, period)));
        all.push(number("CPUQuotaPeriodUSec", period));
    }
    let lists =
        [("AllowedCPUs", "cpu.cpus", cpu.cpus()), ("AllowedMemoryNodes", "cpu.mems", cpu.mems())];
    for (name, field, list) in lists {
        if let Some(list) = list.as_deref().filter(|l| v2 && !l.is_empty()) {
            let wrong = || {
                Error::invalid(format!(
                    "linux.resources.{field}: {list:?}, expected a list such as \"0-2,5\""
                ))
            };
            all.push((name.to_owned(), Value::Bits(bits(list).ok_or_else(wrong)?)));
        }
    }
    Ok(())
}

/// Microseconds a second, rounded up to the 10 ms that systemd counts in, so
/// that what the file says is never more than what systemd allows.
fn per_second(quota: Option<u64>, period: u64) -> u64 {
    const STEP: u64 = 10_000;
    quota.map_or(INFINITY, |quota| {
        (quota.saturating_mul(1_000_000) / period.max(1)).div_ceil(STEP).saturating_mul(STEP)
    })
}

/// Quota and period as they are now.
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

fn of_memory(memory: &LinuxMemory, v2: bool, all: &mut Vec<Property>) -> Result<()> {
    let limit = memory.limit().filter(|l| *l != 0);
    if let Some(limit) = limit {
        all.push(number(if v2 { "MemoryMax" } else { "MemoryLimit" }, limited(limit)));
    }
    if !v2 {
        return Ok(());
    }
    if let Some(reservation) = memory.reservation().filter(|r| *r != 0) {
        all.push(number("MemoryLow", limited(reservation)));
    }
    if let Some(swap) = swap_beside(limit, memory.swap())? {
        all.push(number("MemorySwapMax", limited(swap)));
    }
    Ok(())
}

/// Files of version 2 that systemd would otherwise set back. A value that it
/// cannot take is left to the file, whose error is the better one.
fn of_unified(name: &str, value: &str, all: &mut Vec<Property>) {
    let property = match name {
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "cpu.weight" => "CPUWeight",
        "cpuset.cpus" => "AllowedCPUs",
        "cpuset.mems" => "AllowedMemoryNodes",
        "cpu.max" => {
            let mut fields = value.split_whitespace();
            let quota = fields.next().and_then(|q| q.parse().ok());
            let period = fields.next().and_then(|p| p.parse().ok()).unwrap_or(PERIOD);
            all.push(number("CPUQuotaPerSecUSec", per_second(quota, period)));
            all.push(number("CPUQuotaPeriodUSec", period));
            return;
        }
        _ => return,
    };
    let value = match property {
        "AllowedCPUs" | "AllowedMemoryNodes" => bits(value).map(Value::Bits),
        _ => file::number(value).map(Value::Number),
    };
    if let Some(value) = value {
        all.push((property.to_owned(), value));
    }
}

/// A list such as `0-2,5` as a bit map, lowest first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for range in list.trim().split(',').filter(|r| !r.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        for bit in first..=last.min(1 << 16) {
            if bytes.len() <= bit / 8 {
                bytes.resize(bit / 8 + 1, 0);
            }
            bytes[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(bytes)
}

/// Negative numbers mean no limit.
fn limited(limit: i64) -> u64 {
    u64::try_from(limit).unwrap_or(INFINITY)
}

fn text(name: &str, value: String) -> Property {
    (name.to_owned(), Value::Text(value))
}

fn flag(name: &str, value: bool) -> Property {
    (name.to_owned(), Value::Flag(value))
}

fn number(name: &str, value: u64) -> Property {
    (name.to_owned(), Value::Number(value))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};

    use super::*;

    #[test]
    fn a_quota_is_told_by_the_second_and_rounded_up() {
        assert_eq!(per_second(Some(50_000), 100_000), 500_000);
        assert_eq!(per_second(Some(33_333), 100_000), 340_000);
        assert_eq!(per_second(None, 100_000), INFINITY);
    }

    #[test]
    fn limits_become_properties() {
        let cpu = LinuxCpuBuilder::default().shares(1024u64).quota(150_000i64).cpus("0,9").build();
        let memory = LinuxMemoryBuilder::default().limit(100i64).swap(150i64).build();
        let resources = LinuxResourcesBuilder::default()
            .cpu(cpu.unwrap())
            .memory(memory.unwrap())
            .build()
            .unwrap();
        let all = of_resources(&resources, true, None).unwrap();
        let expected = [
            number("CPUWeight", 100),
            number("CPUQuotaPerSecUSec", 1_500_000),
            number("CPUQuotaPeriodUSec", 100_000),
            ("AllowedCPUs".to_owned(), Value::Bits(vec![1, 2])),
            number("MemoryMax", 100),
            number("MemorySwapMax", 50),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn files_of_version_2_become_properties_where_there_are_any() {
        let mut all = Vec::new();
        of_unified("memory.max", "max", &mut all);
        of_unified("cpu.max", "50000 100000", &mut all);
        of_unified("io.latency", "8:0 target=1", &mut all);
        let expected = [
            number("MemoryMax", INFINITY),
            number("CPUQuotaPerSecUSec", 500_000),
            number("CPUQuotaPeriodUSec", 100_000),
        ];
        assert_eq!(all, expected);
    }
}
