//! Statistics of version 1: the numbers that containerd's cgroup1 package
//! reads.

use std::collections::HashMap;
use std::path::Path;

use super::{HugetlbStat, PidsStat, RdmaStat, huge_page_sizes, rdma_entries};
use crate::cgroup::{Cgroup, file};
use crate::error::Result;

/// `io.containerd.cgroups.v1.Metrics`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatsV1 {
    /// Huge pages of each size.
    pub hugetlb: Vec<HugetlbStat>,
    /// Processes and threads.
    pub pids: Option<PidsStat>,
    /// CPU time (`CPUStat.usage`).
    pub cpu_usage: Option<CpuUsageV1>,
    /// CPU bandwidth (`CPUStat.throttling`).
    pub cpu_throttling: Option<Throttle>,
    /// Memory.
    pub memory: Option<MemoryStatV1>,
    /// Block devices, by the field's name in the message: all eight of
    /// `BlkIOStat`, except those without entries.
    pub blkio: HashMap<&'static str, Vec<BlkioEntry>>,
    /// RDMA devices.
    pub rdma: Option<RdmaStat>,
    /// The OOM killer.
    pub memory_oom_control: Option<MemoryOomControl>,
}

/// `CPUUsage`, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuUsageV1 {
    /// The whole time.
    pub total: u64,
    /// The time in the kernel.
    pub kernel: u64,
    /// The time in user space.
    pub user: u64,
    /// The time on each CPU.
    pub per_cpu: Vec<u64>,
}

/// `Throttle`, from `cpu.stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    /// `nr_periods`
    pub periods: u64,
    /// `nr_throttled`
    pub throttled_periods: u64,
    /// `throttled_time`, in nanoseconds.
    pub throttled_time: u64,
}

/// `MemoryEntry`: one kind of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEntry {
    /// `limit_in_bytes`
    pub limit: u64,
    /// `usage_in_bytes`
    pub usage: u64,
    /// `max_usage_in_bytes`
    pub max: u64,
    /// `failcnt`
    pub failcnt: u64,
}

/// `MemoryOomControl`, from `memory.oom_control`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryOomControl {
    /// 1 if the OOM killer is off.
    pub oom_kill_disable: u64,
    /// 1 when processes wait for memory.
    pub under_oom: u64,
    /// Number of processes killed.
    pub oom_kill: u64,
}

/// `BlkIOEntry`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkioEntry {
    /// The operation (`Read`, `Write`, ...); empty if the file does not
    /// distinguish them.
    pub op: String,
    /// The device's path, such as `/dev/sda`.
    pub device: String,
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Bytes, operations or nanoseconds.
    pub value: u64,
}

/// Defines a struct of numbers that are lines of a flat keyed file.
macro_rules! flat_keyed {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $key:literal,)* } { $($more:ident : $kind:ty = $more_doc:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct $name {
            $(#[doc = concat!("`", $key, "`")] pub $field: u64,)*
            $(#[doc = $more_doc] pub $more: $kind,)*
        }
        impl $name {
            pub(super) fn parse(text: &str) -> Self {
                let mut stat = Self::default();
                for (key, value) in $crate::cgroup::file::keyed(text) {
                    match key {
                        $($key => stat.$field = value,)*
                        _ => {}
                    }
                }
                stat
            }
        }
    };
}
pub(super) use flat_keyed;

flat_keyed! {
    /// `MemoryStat` of version 1: `memory.stat`, and four kinds of memory.
    #[derive(Eq)]
    MemoryStatV1 {
        cache = "cache",
        rss = "rss",
        rss_huge = "rss_huge",
        mapped_file = "mapped_file",
        dirty = "dirty",
        writeback = "writeback",
        pg_pg_in = "pgpgin",
        pg_pg_out = "pgpgout",
        pg_fault = "pgfault",
        pg_maj_fault = "pgmajfault",
        inactive_anon = "inactive_anon",
        active_anon = "active_anon",
        inactive_file = "inactive_file",
        active_file = "active_file",
        unevictable = "unevictable",
        hierarchical_memory_limit = "hierarchical_memory_limit",
        hierarchical_swap_limit = "hierarchical_memsw_limit",
        total_cache = "total_cache",
        total_rss = "total_rss",
        total_rss_huge = "total_rss_huge",
        total_mapped_file = "total_mapped_file",
        total_dirty = "total_dirty",
        total_writeback = "total_writeback",
        total_pg_pg_in = "total_pgpgin",
        total_pg_pg_out = "total_pgpgout",
        total_pg_fault = "total_pgfault",
        total_pg_maj_fault = "total_pgmajfault",
        total_inactive_anon = "total_inactive_anon",
        total_active_anon = "total_active_anon",
        total_inactive_file = "total_inactive_file",
        total_active_file = "total_active_file",
        total_unevictable = "total_unevictable",
    } {
        usage: Option<MemoryEntry> = "Memory.",
        swap: Option<MemoryEntry> = "Memory and swap.",
        kernel: Option<MemoryEntry> = "Kernel memory.",
        kernel_tcp: Option<MemoryEntry> = "Kernel memory of TCP buffers.",
    }
}

pub(super) fn read(cg: &Cgroup) -> Result<StatsV1> {
    let mut stats = StatsV1::default();
    if let Some(dir) = cg.dir("cpuacct") {
        stats.cpu_usage = cpu_usage(dir)?;
    }
    if let Some(dir) = cg.dir("cpu") {
        stats.cpu_throttling = file::read_if_any(&dir.join("cpu.stat"))?.map(|t| throttling(&t));
    }
    if let Some(dir) = cg.dir("memory") {
        stats.memory = memory(dir)?;
        stats.memory_oom_control =
            file::read_if_any(&dir.join("memory.oom_control"))?.map(|t| oom(&t));
    }
    if let Some(dir) = cg.dir("pids") {
        stats.pids = pids(dir)?;
    }
    if let Some(dir) = cg.dir("blkio") {
        stats.blkio = blkio(dir)?;
    }
    if let Some(dir) = cg.dir("hugetlb") {
        stats.hugetlb = hugetlb(dir)?;
    }
    if let Some(dir) = cg.dir("rdma") {
        let entries = |name: &str| -> Result<_> {
            Ok(file::read_if_any(&dir.join(name))?.map(|t| rdma_entries(&t)).unwrap_or_default())
        };
        stats.rdma =
            Some(RdmaStat { current: entries("rdma.current")?, limit: entries("rdma.max")? });
    }
    Ok(stats)
}

/// Reads the use of CPUs (cpuacct.rst).
fn cpu_usage(dir: &Path) -> Result<Option<CpuUsageV1>> {
    let Some(total) = file::read_number(&dir.join("cpuacct.usage"))? else {
        return Ok(None);
    };
    let per_cpu = file::read_if_any(&dir.join("cpuacct.usage_percpu"))?.unwrap_or_default();
    let stat = file::read_if_any(&dir.join("cpuacct.stat"))?.unwrap_or_default();
    let (user, kernel) = user_and_system(&stat);
    Ok(Some(CpuUsageV1 {
        total,
        kernel,
        user,
        per_cpu: per_cpu.split_whitespace().filter_map(|n| n.parse().ok()).collect(),
    }))
}

/// Returns the two times of `cpuacct.stat` in nanoseconds. It counts in ticks; user space sees
/// 100 a second on x86-64.
pub(super) fn user_and_system(text: &str) -> (u64, u64) {
    const TICK: u64 = 1_000_000_000 / 100;
    let ticks = |key| file::value_of(text, key).unwrap_or(0).saturating_mul(TICK);
    (ticks("user"), ticks("system"))
}

pub(super) fn throttling(text: &str) -> Throttle {
    let value = |key| file::value_of(text, key).unwrap_or(0);
    Throttle {
        periods: value("nr_periods"),
        throttled_periods: value("nr_throttled"),
        throttled_time: value("throttled_time"),
    }
}

fn oom(text: &str) -> MemoryOomControl {
    let value = |key| file::value_of(text, key).unwrap_or(0);
    MemoryOomControl {
        oom_kill_disable: value("oom_kill_disable"),
        under_oom: value("under_oom"),
        oom_kill: value("oom_kill"),
    }
}

fn memory(dir: &Path) -> Result<Option<MemoryStatV1>> {
    let Some(text) = file::read_if_any(&dir.join("memory.stat"))? else {
        return Ok(None);
    };
    let mut stat = MemoryStatV1::parse(&text);
    stat.usage = memory_entry(dir, "memory")?;
    stat.swap = memory_entry(dir, "memory.memsw")?;
    stat.kernel = memory_entry(dir, "memory.kmem")?;
    stat.kernel_tcp = memory_entry(dir, "memory.kmem.tcp")?;
    Ok(Some(stat))
}

fn memory_entry(dir: &Path, kind: &str) -> Result<Option<MemoryEntry>> {
    let value = |name: &str| file::read_number(&dir.join(format!("{kind}.{name}")));
    // Kernels without swap accounting lack one kind entirely.
    let Some(usage) = value("usage_in_bytes")? else {
        return Ok(None);
    };
    Ok(Some(MemoryEntry {
        usage,
        limit: value("limit_in_bytes")?.unwrap_or(0),
        max: value("max_usage_in_bytes")?.unwrap_or(0),
        failcnt: value("failcnt")?.unwrap_or(0),
    }))
}

fn pids(dir: &Path) -> Result<Option<PidsStat>> {
    let Some(current) = file::read_number(&dir.join("pids.current"))? else {
        return Ok(None);
    };
    let limit = file::read_number(&dir.join("pids.max"))?.filter(|l| *l != u64::MAX);
    Ok(Some(PidsStat { current, limit: limit.unwrap_or(0) }))
}

fn hugetlb(dir: &Path) -> Result<Vec<HugetlbStat>> {
    let mut all = Vec::new();
    for size in huge_page_sizes() {
        let value = |name: &str| file::read_number(&dir.join(format!("hugetlb.{size}.{name}")));
        let Some(usage) = value("usage_in_bytes")? else {
            continue;
        };
        let max = value("max_usage_in_bytes")?.unwrap_or(0);
        let failcnt = value("failcnt")?.unwrap_or(0);
        all.push(HugetlbStat { usage, max, failcnt, pagesize: size.clone() });
    }
    Ok(all)
}

/// Reads the statistics of block devices. Each scheduler writes its numbers to
/// its own files: cfq (before Linux 5.0), bfq, and the throttling layer if
/// neither is in use. containerd reads the first of them that has entries.
fn blkio(dir: &Path) -> Result<HashMap<&'static str, Vec<BlkioEntry>>> {
    const ALL: [(&str, &str); 8] = [
        ("io_service_bytes_recursive", "io_service_bytes_recursive"),
        ("io_serviced_recursive", "io_serviced_recursive"),
        ("io_queued_recursive", "io_queued_recursive"),
        ("io_service_time_recursive", "io_service_time_recursive"),
        ("io_wait_time_recursive", "io_wait_time_recursive"),
        ("io_merged_recursive", "io_merged_recursive"),
        ("io_time_recursive", "time_recursive"),
        ("sectors_recursive", "sectors_recursive"),
    ];
    for prefix in ["blkio.", "blkio.bfq.", "blkio.throttle."] {
        let mut stats = HashMap::new();
        // The throttling layer has only the first two.
        let fields = if prefix == "blkio.throttle." { &ALL[..2] } else { &ALL[..] };
        for (field, name) in fields {
            let Some(text) = file::read_if_any(&dir.join(format!("{prefix}{name}")))? else {
                break;
            };
            let entries: Vec<_> = text.lines().filter_map(blkio_entry).collect();
            if !entries.is_empty() {
                stats.insert(*field, entries);
            }
        }
        if !stats.is_empty() {
            name_devices(&mut stats)?;
            return Ok(stats);
        }
    }
    Ok(HashMap::new())
}

/// Parses a line such as `8:0 Read 4096`, or one without the operation. The
/// grand total has no device.
pub(super) fn blkio_entry(line: &str) -> Option<BlkioEntry> {
    let mut fields = line.split_whitespace();
    let (major, minor) = fields.next()?.split_once(':')?;
    let (second, third) = (fields.next()?, fields.next());
    let (op, value) = third.map_or(("", second), |value| (second, value));
    Some(BlkioEntry {
        op: op.to_owned(),
        device: String::new(),
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        value: value.parse().ok()?,
    })
}

fn name_devices(stats: &mut HashMap<&'static str, Vec<BlkioEntry>>) -> Result<()> {
    let text = file::read(Path::new("/proc/diskstats"))?;
    let name = |line: &str| {
        let mut fields = line.split_whitespace();
        let number = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((number, format!("/dev/{}", fields.next()?)))
    };
    let names: HashMap<(u64, u64), String> = text.lines().filter_map(name).collect();
    for entry in stats.values_mut().flatten() {
        if let Some(name) = names.get(&(entry.major, entry.minor)) {
            entry.device.clone_from(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_device_lines_come_with_and_without_an_operation() {
        let entry = blkio_entry("8:16 Read 42").unwrap();
        assert_eq!((entry.op.as_str(), entry.major, entry.minor, entry.value), ("Read", 8, 16, 42));
        assert_eq!(blkio_entry("8:0 7").unwrap().value, 7);
        assert_eq!(blkio_entry("Total 49"), None);
    }

    #[test]
    fn memory_stat_finds_its_fields() {
        let stat = MemoryStatV1::parse("cache 5\npgpgin 7\ntotal_rss 9\nnew_in_linux_9 1\n");
        assert_eq!((stat.cache, stat.pg_pg_in, stat.total_rss), (5, 7, 9));
    }
}
