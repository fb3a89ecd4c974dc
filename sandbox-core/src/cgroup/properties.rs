//! Maps `linux.resources` to properties of a systemd unit
//! (systemd.resource-control(5)), as runc does.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::bandwidth::{PERIOD, per_second, requested_bandwidth};
use super::path::Unit;
use super::resources::{idle_of, io_weight, swap_beside, weight_of_shares};
use super::{Cgroup, file};
use crate::error::{Error, Result};
use crate::spec::plan::{PropertyValue, UnitProperty};
use crate::sys::child::Child;

/// The values that D-Bus carries.
mod value {
    #![allow(unreachable_pub, reason = "the macro makes its type pub")]
    rustbus::dbus_variant_sig!(Value, Text => String; Texts => Vec<String>; Flag => bool; Number => u64; Pids => Vec<u32>; Bits => Vec<u8>; I32 => i32; U32 => u32; I64 => i64);
}
pub(super) use value::Value;

/// A property and its value, `(sv)`.
pub(super) type Property = (String, Value);

/// "No limit" for systemd (`USEC_INFINITY`, `CGROUP_LIMIT_MAX`).
const INFINITY: u64 = u64::MAX;

/// The kernel's default weight of a cgroup's CPU time.
const WEIGHT: u64 = 100;

/// The systemd that takes the properties.
#[derive(Clone, Copy, Debug)]
pub(super) struct Systemd {
    /// Its version; 0 if unknown.
    pub(super) version: u32,
    /// Whether the host has cgroup version 2.
    pub(super) v2: bool,
}

impl Systemd {
    /// First version with `CPUWeight=idle`, which is a weight of 0 on the bus.
    const KNOWS_IDLE: u32 = 252;
    /// First version with `OOMPolicy=` of a scope.
    const KNOWS_OOM_POLICY: u32 = 253;
}

/// Returns the properties of the unit itself.
pub(super) fn of_unit(
    id: &str,
    unit: &Unit,
    systemd: Systemd,
    holder: Option<&Child>,
    resources: &LinuxResources,
) -> Vec<Property> {
    let io = if systemd.v2 { "IOAccounting" } else { "BlockIOAccounting" };
    let mut all = vec![text("Description", format!("Palisade container {id}"))];
    if let Some(holder) = holder {
        all.push(text("Slice", unit.slice.clone()));
        // systemd then leaves the cgroups below and the scope's controllers alone.
        all.push(flag("Delegate", true));
        all.push(("PIDs".to_owned(), Value::Pids(vec![holder.pid().cast_unsigned()])));
        // systemd forgets a scope whose processes failed like any other.
        all.push(text("CollectMode", "inactive-or-failed".to_owned()));
        all.extend(oom_policy(resources, systemd));
    } else {
        all.push(("Wants".to_owned(), Value::Texts(vec![unit.slice.clone()])));
    }
    for accounting in ["CPUAccounting", "MemoryAccounting", "TasksAccounting", io] {
        all.push(flag(accounting, true));
    }
    all.push(flag("DefaultDependencies", false));
    all
}

/// Converts an annotation's property.
pub(super) fn of_annotation(property: &UnitProperty) -> Property {
    let value = match &property.value {
        PropertyValue::Flag(flag) => Value::Flag(*flag),
        PropertyValue::Text(text) => Value::Text(text.clone()),
        PropertyValue::Texts(texts) => Value::Texts(texts.clone()),
        PropertyValue::I32(n) => Value::I32(*n),
        PropertyValue::U32(n) => Value::U32(*n),
        PropertyValue::I64(n) => Value::I64(*n),
        PropertyValue::U64(n) => Value::Number(*n),
    };
    (property.name.clone(), value)
}

/// Returns the policy for `memory.oom.group`, which systemd would otherwise set
/// to 0 whenever it looks at the unit again. systemd takes it only when the
/// unit starts; a later change goes to the file alone. The kernel kills the
/// whole scope in either case. With "kill", systemd does so as well if the
/// memory of a cgroup below was short.
fn oom_policy(resources: &LinuxResources, systemd: Systemd) -> Option<Property> {
    if !systemd.v2 || systemd.version < Systemd::KNOWS_OOM_POLICY {
        return None;
    }
    let policy = match resources.unified().as_ref()?.get("memory.oom.group")?.trim() {
        "0" => "continue",
        "1" => "kill",
        _ => return None,
    };
    Some(text("OOMPolicy", policy.to_owned()))
}

/// Returns the limits for which systemd has properties. For an update, `now` is
/// the cgroup, in which values that are not mentioned are looked up.
pub(super) fn of_resources(
    resources: &LinuxResources,
    systemd: Systemd,
    now: Option<&Cgroup>,
) -> Result<Vec<Property>> {
    let v2 = systemd.v2;
    let mut all: Vec<Property> = of_weight(resources, systemd, now).into_iter().collect();
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
        all.push(if v2 {
            number("IOWeight", io_weight(weight))
        } else {
            number("BlockIOWeight", weight.into())
        });
    }
    if v2 {
        for (name, value) in resources.unified().iter().flatten() {
            of_unified(name, value, &mut all);
        }
    }
    Ok(all)
}

/// Returns the share of the CPUs. For systemd idle is a weight as well, from
/// which it sets `cpu.idle` each time. The kernel has no weight for an idle
/// cgroup. So systemd gets only one of the two.
fn of_weight(
    resources: &LinuxResources,
    systemd: Systemd,
    now: Option<&Cgroup>,
) -> Option<Property> {
    let shares = resources.cpu().as_ref().and_then(|cpu| cpu.shares()).filter(|s| *s != 0);
    if !systemd.v2 {
        return shares.map(|shares| number("CPUShares", shares));
    }
    let is_idle = now.and_then(|cg| file::read_io(&cg.dir("cpu")?.join("cpu.idle")).ok());
    let is_idle = is_idle.is_some_and(|idle| idle.trim() == "1");
    let unified = resources.unified().as_ref().and_then(|u| file::number(u.get("cpu.weight")?));
    let weight = match idle_of(resources) {
        Some(1) => (systemd.version >= Systemd::KNOWS_IDLE).then_some(0),
        // An idle cgroup stays idle until an update changes that. The file
        // refuses a weight.
        None if is_idle => None,
        // The kernel forgets the weight of a cgroup that becomes idle.
        _ => unified.or(shares.map(weight_of_shares)).or(is_idle.then_some(WEIGHT)),
    };
    weight.map(|weight| number("CPUWeight", weight))
}

fn of_cpu(cpu: &LinuxCpu, v2: bool, now: Option<&Cgroup>, all: &mut Vec<Property>) -> Result<()> {
    if let Some((quota, period)) = requested_bandwidth(cpu, v2, now) {
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

/// Converts files of version 2 that systemd would otherwise reset. A value that
/// systemd cannot take is left to the file, whose error is better.
fn of_unified(name: &str, value: &str, all: &mut Vec<Property>) {
    let property = match name {
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "io.weight" => "IOWeight",
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
        // Lines about one device go to the file alone.
        "IOWeight" => default_weight(value).map(Value::Number),
        // systemd does not take zero. A limit of 1 has the same effect, since
        // one process is there already.
        "TasksMax" => file::number(value).map(|max| Value::Number(max.max(1))),
        _ => file::number(value).map(Value::Number),
    };
    if let Some(value) = value {
        all.push((property.to_owned(), value));
    }
}

/// Returns the weight in `io.weight` that holds for all devices: `default 100`
/// or `100`.
fn default_weight(value: &str) -> Option<u64> {
    value.lines().find_map(|line| line.strip_prefix("default ").unwrap_or(line).trim().parse().ok())
}

/// Parses a list such as `0-2,5` into a bit map, lowest bit first.
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

/// Converts a limit. A negative number means no limit.
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

    const NOW: Systemd = Systemd { version: 257, v2: true };

    /// Returns the properties for these files of version 2 and these shares.
    fn of_files(files: &[(&str, &str)], shares: u64, systemd: Systemd) -> Vec<Property> {
        let unified = files.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let unified: std::collections::HashMap<String, String> = unified.collect();
        let cpu = LinuxCpuBuilder::default().shares(shares).build().unwrap();
        let resources = LinuxResourcesBuilder::default().unified(unified).cpu(cpu).build().unwrap();
        let mut all = of_resources(&resources, systemd, None).unwrap();
        all.extend(oom_policy(&resources, systemd));
        all
    }

    #[test]
    fn idle_is_a_weight_and_excludes_others() {
        let idle = |systemd| of_files(&[("cpu.idle", "1"), ("cpu.weight", "7")], 1024, systemd);
        assert_eq!(idle(NOW), [number("CPUWeight", 0)]);
        assert_eq!(idle(Systemd { version: 251, v2: true }), []);
        let weighed = of_files(&[("cpu.idle", "0"), ("cpu.weight", "7")], 1024, NOW);
        assert_eq!(weighed, [number("CPUWeight", 7)]);
    }

    #[test]
    fn killing_together_is_a_policy() {
        let together = |systemd| of_files(&[("memory.oom.group", "1")], 0, systemd);
        assert_eq!(together(NOW), [text("OOMPolicy", "kill".to_owned())]);
        assert_eq!(together(Systemd { version: 252, v2: true }), []);
        let alone = of_files(&[("memory.oom.group", "0\n")], 0, NOW);
        assert_eq!(alone, [text("OOMPolicy", "continue".to_owned())]);
    }

    #[test]
    fn weights_of_disks_are_converted_for_version_2() {
        let io = oci_spec::runtime::LinuxBlockIoBuilder::default().weight(505u16).build().unwrap();
        let resources = LinuxResourcesBuilder::default().block_io(io).build().unwrap();
        assert_eq!(of_resources(&resources, NOW, None).unwrap(), [number("IOWeight", 5000)]);
        let version_1 = Systemd { v2: false, ..NOW };
        let properties = of_resources(&resources, version_1, None).unwrap();
        assert_eq!(properties, [number("BlockIOWeight", 505)]);
        for value in ["200", "8:0 300\ndefault 200"] {
            assert_eq!(of_files(&[("io.weight", value)], 0, NOW), [number("IOWeight", 200)]);
        }
        assert_eq!(of_files(&[("io.weight", "8:0 300")], 0, NOW), []);
    }

    #[test]
    fn zero_tasks_become_one_for_systemd() {
        assert_eq!(of_files(&[("pids.max", "0")], 0, NOW), [number("TasksMax", 1)]);
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
        let all = of_resources(&resources, NOW, None).unwrap();
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
    fn files_of_version_2_become_properties_if_systemd_has_them() {
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
