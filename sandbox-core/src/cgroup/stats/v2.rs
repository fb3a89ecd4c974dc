//! Statistics of version 2, the numbers that containerd's cgroup2 package reads
//! (cgroup-v2.rst; psi.rst for pressure).

use std::path::Path;

use super::v1::flat_keyed;
use super::{HugetlbStat, PidsStat, RdmaStat, huge_page_sizes, rdma_entries};
use crate::cgroup::file;
use crate::error::Result;

/// `io.containerd.cgroups.v2.Metrics`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatsV2 {
    /// Processes and threads.
    pub pids: Option<PidsStat>,
    /// CPU.
    pub cpu: Option<CpuStatV2>,
    /// Memory.
    pub memory: Option<MemoryStatV2>,
    /// RDMA devices.
    pub rdma: Option<RdmaStat>,
    /// Block devices.
    pub io: Option<IoStat>,
    /// Huge pages of each size.
    pub hugetlb: Vec<HugetlbStat>,
    /// Events caused by a lack of memory.
    pub memory_events: Option<MemoryEvents>,
}

/// `PSIStats`: time lost by waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Psi {
    /// Time in which at least one process waited.
    pub some: PsiLine,
    /// Time in which all processes waited.
    pub full: PsiLine,
}

/// `PSIData`
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PsiLine {
    /// Percent of the last ten seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
    /// Total in microseconds.
    pub total: u64,
}

flat_keyed! {
    /// `CPUStat`: `cpu.stat`.
    CpuStatV2 {
        usage_usec = "usage_usec",
        user_usec = "user_usec",
        system_usec = "system_usec",
        nr_periods = "nr_periods",
        nr_throttled = "nr_throttled",
        throttled_usec = "throttled_usec",
        nr_bursts = "nr_bursts",
        burst_usec = "burst_usec",
    } {
        psi: Option<Psi> = "`cpu.pressure`",
    }
}

flat_keyed! {
    /// `MemoryEvents`: `memory.events`.
    #[derive(Eq)]
    MemoryEvents {
        low = "low",
        high = "high",
        max = "max",
        oom = "oom",
        oom_kill = "oom_kill",
        oom_group_kill = "oom_group_kill",
    } {}
}

flat_keyed! {
    /// `MemoryStat` of version 2: `memory.stat`, and usage and limits.
    MemoryStatV2 {
        anon = "anon",
        file = "file",
        kernel_stack = "kernel_stack",
        slab = "slab",
        sock = "sock",
        shmem = "shmem",
        file_mapped = "file_mapped",
        file_dirty = "file_dirty",
        file_writeback = "file_writeback",
        anon_thp = "anon_thp",
        inactive_anon = "inactive_anon",
        active_anon = "active_anon",
        inactive_file = "inactive_file",
        active_file = "active_file",
        unevictable = "unevictable",
        slab_reclaimable = "slab_reclaimable",
        slab_unreclaimable = "slab_unreclaimable",
        pgfault = "pgfault",
        pgmajfault = "pgmajfault",
        workingset_refault = "workingset_refault",
        workingset_activate = "workingset_activate",
        workingset_nodereclaim = "workingset_nodereclaim",
        pgrefill = "pgrefill",
        pgscan = "pgscan",
        pgsteal = "pgsteal",
        pgactivate = "pgactivate",
        pgdeactivate = "pgdeactivate",
        pglazyfree = "pglazyfree",
        pglazyfreed = "pglazyfreed",
        thp_fault_alloc = "thp_fault_alloc",
        thp_collapse_alloc = "thp_collapse_alloc",
    } {
        usage: u64 = "`memory.current`",
        usage_limit: u64 = "`memory.max`; the largest number without a limit",
        swap_usage: u64 = "`memory.swap.current`",
        swap_limit: u64 = "`memory.swap.max`",
        max_usage: u64 = "`memory.peak`",
        swap_max_usage: u64 = "`memory.swap.peak`",
        psi: Option<Psi> = "`memory.pressure`",
    }
}

/// `IOStat`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IoStat {
    /// The devices.
    pub usage: Vec<IoEntry>,
    /// `io.pressure`.
    pub psi: Option<Psi>,
}

/// `IOEntry`: a line of `io.stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoEntry {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Bytes read.
    pub rbytes: u64,
    /// Bytes written.
    pub wbytes: u64,
    /// Reads.
    pub rios: u64,
    /// Writes.
    pub wios: u64,
}

pub(super) fn read(dir: &Path) -> Result<StatsV2> {
    let text = |name: &str| file::read_if_any(&dir.join(name));
    let mut stats = StatsV2 {
        pids: pids(dir)?,
        cpu: text("cpu.stat")?.map(|t| CpuStatV2::parse(&t)),
        memory: memory(dir)?,
        rdma: rdma(dir)?,
        io: None,
        hugetlb: hugetlb(dir)?,
        memory_events: text("memory.events")?.map(|t| MemoryEvents::parse(&t)),
    };
    if let Some(cpu) = &mut stats.cpu {
        cpu.psi = psi(dir, "cpu.pressure")?;
    }
    if let Some(io) = text("io.stat")? {
        let usage = io.lines().filter_map(io_entry).collect();
        stats.io = Some(IoStat { usage, psi: psi(dir, "io.pressure")? });
    }
    Ok(stats)
}

fn pids(dir: &Path) -> Result<Option<PidsStat>> {
    let Some(current) = file::read_number(&dir.join("pids.current"))? else {
        return Ok(None);
    };
    let limit = file::read_number(&dir.join("pids.max"))?.unwrap_or(u64::MAX);
    Ok(Some(PidsStat { current, limit }))
}

fn memory(dir: &Path) -> Result<Option<MemoryStatV2>> {
    let Some(text) = file::read_if_any(&dir.join("memory.stat"))? else {
        return Ok(None);
    };
    let mut stat = MemoryStatV2::parse(&text);
    // Linux 5.9 renamed these when anonymous memory got its own counter.
    if stat.workingset_refault == 0 {
        let part = |key| file::value_of(&text, key).unwrap_or(0);
        stat.workingset_refault = part("workingset_refault_anon") + part("workingset_refault_file");
        stat.workingset_activate =
            part("workingset_activate_anon") + part("workingset_activate_file");
    }
    let value = |name: &str| file::read_number(&dir.join(name));
    stat.usage = value("memory.current")?.unwrap_or(0);
    stat.usage_limit = value("memory.max")?.unwrap_or(u64::MAX);
    stat.swap_usage = value("memory.swap.current")?.unwrap_or(0);
    stat.swap_limit = value("memory.swap.max")?.unwrap_or(0);
    stat.max_usage = value("memory.peak")?.unwrap_or(0);
    stat.swap_max_usage = value("memory.swap.peak")?.unwrap_or(0);
    stat.psi = psi(dir, "memory.pressure")?;
    Ok(Some(stat))
}

fn rdma(dir: &Path) -> Result<Option<RdmaStat>> {
    let Some(current) = file::read_if_any(&dir.join("rdma.current"))? else {
        return Ok(None);
    };
    let limit = file::read_if_any(&dir.join("rdma.max"))?.unwrap_or_default();
    Ok(Some(RdmaStat { current: rdma_entries(&current), limit: rdma_entries(&limit) }))
}

fn hugetlb(dir: &Path) -> Result<Vec<HugetlbStat>> {
    let mut all = Vec::new();
    for size in huge_page_sizes() {
        let path = |name: &str| dir.join(format!("hugetlb.{size}.{name}"));
        let Some(usage) = file::read_number(&path("current"))? else {
            continue;
        };
        let max = file::read_number(&path("max"))?.unwrap_or(u64::MAX);
        let events = file::read_if_any(&path("events"))?.unwrap_or_default();
        let failcnt = file::value_of(&events, "max").unwrap_or(0);
        all.push(HugetlbStat { usage, max, failcnt, pagesize: size.clone() });
    }
    Ok(all)
}

/// Parses a line such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
pub(super) fn io_entry(line: &str) -> Option<IoEntry> {
    let mut fields = line.split_whitespace();
    let (major, minor) = fields.next()?.split_once(':')?;
    let mut entry =
        IoEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, ..IoEntry::default() };
    for (key, value) in fields.filter_map(|f| f.split_once('=')) {
        let value = value.parse().unwrap_or(0);
        match key {
            "rbytes" => entry.rbytes = value,
            "wbytes" => entry.wbytes = value,
            "rios" => entry.rios = value,
            "wios" => entry.wios = value,
            _ => {}
        }
    }
    Some(entry)
}

/// Reads a pressure file. `None` if the kernel keeps no account of pressure.
fn psi(dir: &Path, name: &str) -> Result<Option<Psi>> {
    Ok(file::read_if_any(&dir.join(name))?.map(|text| parse_psi(&text)))
}

pub(super) fn parse_psi(text: &str) -> Psi {
    let mut psi = Psi::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let target = match fields.next() {
            Some("some") => &mut psi.some,
            Some("full") => &mut psi.full,
            _ => continue,
        };
        for (key, value) in fields.filter_map(|f| f.split_once('=')) {
            match key {
                "avg10" => target.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => target.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => target.avg300 = value.parse().unwrap_or(0.0),
                "total" => target.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    psi
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read() {
        let psi = parse_psi(
            "some avg10=1.50 avg60=0.00 avg300=0.25 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
        );
        assert_eq!(
            (psi.some.avg10, psi.some.avg300, psi.some.total, psi.full.total),
            (1.5, 0.25, 12, 7)
        );
    }

    #[test]
    fn io_lines_may_have_unknown_keys() {
        let entry = io_entry("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6").unwrap();
        assert_eq!((entry.rbytes, entry.wbytes, entry.rios, entry.wios), (1, 2, 3, 4));
    }
}
