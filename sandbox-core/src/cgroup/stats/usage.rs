//! What a container uses, in numbers that are the same on both versions, read again and again
//! with few system calls: the directories stay open, so that no path is walked twice.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::v1::{self, MemoryStatV1};
use super::v2::{self, CpuStatV2, MemoryEvents, MemoryStatV2};
use super::{IoEntry, PidsStat, Psi};
use crate::cgroup::{Cgroup, Dir, file};
use crate::error::{Context, Result};

/// What a cgroup and those below it use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// The CPU time.
    pub cpu: Option<CpuTimes>,
    /// The memory.
    pub memory: Option<MemoryUsage>,
    /// The threads, and their limit.
    pub threads: Option<PidsStat>,
    /// The processes, without those of cgroups below.
    pub processes: u64,
    /// The processes that the kernel killed for lack of memory.
    pub oom_kills: Option<u64>,
    /// The block devices.
    pub io: Vec<IoEntry>,
    /// The time lost by waiting, if the kernel keeps account of it.
    pub pressure: Pressure,
}

/// CPU time, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// The whole time.
    pub total: u64,
    /// The time in user space.
    pub user: u64,
    /// The time in the kernel.
    pub system: u64,
    /// The periods of the quota.
    pub periods: u64,
    /// Those in which the quota was used up.
    pub throttled_periods: u64,
    /// The time for which its threads waited for the next period.
    pub throttled: u64,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// All that is charged.
    pub usage: u64,
    /// Pages of files that were not used lately, which the kernel takes back first.
    pub inactive_file: u64,
    /// Memory of no file.
    pub rss: u64,
    /// Pages of files.
    pub cache: u64,
    /// Pages of files that are mapped.
    pub mapped_file: u64,
    /// What is swapped out.
    pub swap: u64,
    /// The limit, if there is one.
    pub limit: Option<u64>,
    /// How often the limit was hit.
    pub failures: u64,
    /// Page faults.
    pub faults: u64,
    /// Page faults that waited for a device.
    pub major_faults: u64,
}

impl MemoryUsage {
    /// Returns the working set as the kubelet computes it, by which it evicts.
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }
}

/// Time lost by waiting, for each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// For a CPU.
    pub cpu: Option<Psi>,
    /// For memory.
    pub memory: Option<Psi>,
    /// For block devices.
    pub io: Option<Psi>,
}

/// The open directories of a cgroup, in the order of `HIERARCHIES`; a single one on version 2.
#[derive(Debug)]
pub struct Meter {
    v2: bool,
    directories: [Option<OwnedFd>; HIERARCHIES.len()],
    path: String,
}

/// The controllers that are read.
const HIERARCHIES: [&str; 5] = ["memory", "cpuacct", "cpu", "pids", "blkio"];

impl Cgroup {
    /// Opens the cgroup for [`Meter::read`]. `None` if it is gone, or was never made.
    ///
    /// # Errors
    /// The error names a directory that cannot be opened.
    pub fn meter(&self) -> Result<Option<Meter>> {
        let v2 = self.saved.v2;
        let of = |controller| self.entry(controller);
        let Some(main) = HIERARCHIES.into_iter().find_map(of) else { return Ok(None) };
        let mut directories = [const { None }; HIERARCHIES.len()];
        for (slot, controller) in directories.iter_mut().zip(HIERARCHIES) {
            let Some(dir) = of(controller) else { continue };
            match open(&dir.path)? {
                Some(opened) => *slot = Some(opened),
                None => return Ok(None),
            }
            if v2 {
                break;
            }
        }
        Ok(Some(Meter { v2, directories, path: below_mount(main) }))
    }

    /// Does the same for the cgroup above: in Kubernetes the pod's.
    ///
    /// # Errors
    /// As [`Cgroup::meter`].
    pub fn meter_of_parent(&self) -> Result<Option<Meter>> {
        self.above().meter()
    }
}

fn open(path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        other => other.map(Some).context(|| format!("open {}", path.display())),
    }
}

/// Returns the cgroup's path as `/proc/PID/cgroup` has it.
fn below_mount(dir: &Dir) -> String {
    let below = dir.path.strip_prefix(&dir.mount).unwrap_or(&dir.path);
    format!("/{}", below.display())
}

impl Meter {
    /// Returns the cgroup's path below the root of its hierarchy.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Reads what is used now. `None` if the cgroup is gone.
    ///
    /// # Errors
    /// The error names a file that cannot be read.
    pub fn read(&self) -> Result<Option<Usage>> {
        let any = self.directories.iter().flatten().next();
        let Some(any) = any else { return Ok(None) };
        let Some(processes) = file::read_at(any.as_fd(), "cgroup.procs")? else {
            return Ok(None);
        };
        let mut usage = if self.v2 { read_v2(any.as_fd())? } else { self.read_v1()? };
        usage.processes = processes.lines().count() as u64;
        Ok(Some(usage))
    }

    fn read_v1(&self) -> Result<Usage> {
        let [memory, cpuacct, cpu, pids, blkio] = &self.directories;
        let mut usage = Usage::default();
        if let Some(dir) = memory {
            (usage.memory, usage.oom_kills) = memory_v1(dir.as_fd())?;
        }
        if let Some(dir) = cpuacct {
            usage.cpu = cpu_v1(dir.as_fd(), cpu.as_ref().map(AsFd::as_fd))?;
        }
        if let Some(dir) = pids {
            usage.threads = threads(dir.as_fd(), 0)?;
        }
        if let Some(dir) = blkio {
            usage.io = io_v1(dir.as_fd())?;
        }
        Ok(usage)
    }
}

fn number(dir: BorrowedFd<'_>, name: &str) -> Result<Option<u64>> {
    Ok(file::read_at(dir, name)?.as_deref().and_then(file::number))
}

fn threads(dir: BorrowedFd<'_>, without_limit: u64) -> Result<Option<PidsStat>> {
    let Some(current) = number(dir, "pids.current")? else { return Ok(None) };
    let limit = number(dir, "pids.max")?.filter(|limit| *limit != u64::MAX);
    Ok(Some(PidsStat { current, limit: limit.unwrap_or(without_limit) }))
}

fn memory_v1(dir: BorrowedFd<'_>) -> Result<(Option<MemoryUsage>, Option<u64>)> {
    let Some(text) = file::read_at(dir, "memory.stat")? else { return Ok((None, None)) };
    let stat = MemoryStatV1::parse(&text);
    let value = |name| Ok::<_, crate::Error>(number(dir, name)?.unwrap_or(0));
    let memory = MemoryUsage {
        usage: value("memory.usage_in_bytes")?,
        inactive_file: stat.total_inactive_file,
        rss: stat.total_rss,
        cache: stat.total_cache,
        mapped_file: stat.total_mapped_file,
        swap: file::value_of(&text, "total_swap").unwrap_or(0),
        // Without a limit it is 2^63 less a page.
        limit: Some(value("memory.limit_in_bytes")?).filter(|limit| *limit < 1 << 62),
        failures: value("memory.failcnt")?,
        faults: stat.total_pg_fault,
        major_faults: stat.total_pg_maj_fault,
    };
    let control = file::read_at(dir, "memory.oom_control")?;
    let kills = control.and_then(|text| file::value_of(&text, "oom_kill"));
    Ok((Some(memory), kills))
}

fn cpu_v1(cpuacct: BorrowedFd<'_>, cpu: Option<BorrowedFd<'_>>) -> Result<Option<CpuTimes>> {
    let Some(total) = number(cpuacct, "cpuacct.usage")? else { return Ok(None) };
    let stat = file::read_at(cpuacct, "cpuacct.stat")?.unwrap_or_default();
    let (user, system) = v1::user_and_system(&stat);
    let throttling = cpu.map(|dir| file::read_at(dir, "cpu.stat")).transpose()?.flatten();
    let throttling = v1::throttling(&throttling.unwrap_or_default());
    Ok(Some(CpuTimes {
        total,
        user,
        system,
        periods: throttling.periods,
        throttled_periods: throttling.throttled_periods,
        throttled: throttling.throttled_time,
    }))
}

/// Reads the numbers of the throttling layer, which all devices have.
fn io_v1(dir: BorrowedFd<'_>) -> Result<Vec<IoEntry>> {
    let mut all: Vec<IoEntry> = Vec::new();
    for (name, is_bytes) in [
        ("blkio.throttle.io_service_bytes_recursive", true),
        ("blkio.throttle.io_serviced_recursive", false),
    ] {
        let text = file::read_at(dir, name)?.unwrap_or_default();
        for entry in text.lines().filter_map(v1::blkio_entry) {
            let same = |one: &IoEntry| (one.major, one.minor) == (entry.major, entry.minor);
            let at = all.iter().position(same).unwrap_or_else(|| {
                let (major, minor) = (entry.major, entry.minor);
                all.push(IoEntry { major, minor, ..IoEntry::default() });
                all.len() - 1
            });
            match (entry.op.as_str(), is_bytes) {
                ("Read", true) => all[at].rbytes = entry.value,
                ("Write", true) => all[at].wbytes = entry.value,
                ("Read", false) => all[at].rios = entry.value,
                ("Write", false) => all[at].wios = entry.value,
                _ => {}
            }
        }
    }
    Ok(all)
}

fn read_v2(dir: BorrowedFd<'_>) -> Result<Usage> {
    let text = |name| file::read_at(dir, name);
    let pressure =
        |name| Ok::<_, crate::Error>(text(name)?.map(|pressure| v2::parse_psi(&pressure)));
    let events = text("memory.events")?.map(|events| MemoryEvents::parse(&events));
    let io = text("io.stat")?.unwrap_or_default();
    Ok(Usage {
        cpu: text("cpu.stat")?.map(|stat| cpu_v2(&CpuStatV2::parse(&stat))),
        memory: memory_v2(dir, events.as_ref())?,
        threads: threads(dir, 0)?,
        processes: 0,
        oom_kills: events.map(|events| events.oom_kill),
        io: io.lines().filter_map(v2::io_entry).collect(),
        pressure: Pressure {
            cpu: pressure("cpu.pressure")?,
            memory: pressure("memory.pressure")?,
            io: pressure("io.pressure")?,
        },
    })
}

fn cpu_v2(stat: &CpuStatV2) -> CpuTimes {
    let nanos = |micros: u64| micros.saturating_mul(1000);
    CpuTimes {
        total: nanos(stat.usage_usec),
        user: nanos(stat.user_usec),
        system: nanos(stat.system_usec),
        periods: stat.nr_periods,
        throttled_periods: stat.nr_throttled,
        throttled: nanos(stat.throttled_usec),
    }
}

fn memory_v2(dir: BorrowedFd<'_>, events: Option<&MemoryEvents>) -> Result<Option<MemoryUsage>> {
    let Some(text) = file::read_at(dir, "memory.stat")? else { return Ok(None) };
    let stat = MemoryStatV2::parse(&text);
    let value = |name| Ok::<_, crate::Error>(number(dir, name)?.unwrap_or(0));
    Ok(Some(MemoryUsage {
        usage: value("memory.current")?,
        inactive_file: stat.inactive_file,
        rss: stat.anon,
        cache: stat.file,
        mapped_file: stat.file_mapped,
        swap: value("memory.swap.current")?,
        limit: number(dir, "memory.max")?.filter(|limit| *limit != u64::MAX),
        failures: events.map_or(0, |events| events.max),
        faults: stat.pgfault,
        major_faults: stat.pgmajfault,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(files: &[(&str, &str)]) -> (tempfile::TempDir, OwnedFd) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let opened = open(folder.path()).unwrap().unwrap();
        (folder, opened)
    }

    fn meter(v2: bool, directories: [Option<OwnedFd>; 5]) -> Meter {
        Meter { v2, directories, path: String::new() }
    }

    #[test]
    fn both_versions_say_the_same() {
        let (_first, all) = written(&[
            ("cgroup.procs", "7\n8\n"),
            ("memory.stat", "total_rss 5\ntotal_cache 6\ntotal_swap 1\ntotal_inactive_file 4\n"),
            ("memory.usage_in_bytes", "20\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.failcnt", "3\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("cpuacct.usage", "2000000000\n"),
            ("cpuacct.stat", "user 100\nsystem 50\n"),
            ("cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 7000\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 4096\n8:0 Write 512\nTotal 4608\n",
            ),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 2\n8:0 Write 1\nTotal 3\n"),
        ]);
        let copy = || Some(all.try_clone().unwrap());
        let of_v1 = meter(false, [copy(), copy(), copy(), copy(), copy()]).read().unwrap().unwrap();
        let (_second, only) = written(&[
            ("cgroup.procs", "7\n8\n"),
            ("memory.stat", "anon 5\nfile 6\ninactive_file 4\n"),
            ("memory.current", "20\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "1\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\n"),
            (
                "cpu.stat",
                "usage_usec 2000000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 9\n\
                 nr_throttled 4\nthrottled_usec 7\n",
            ),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\n"),
        ]);
        let of_v2 = meter(true, [Some(only), None, None, None, None]).read().unwrap().unwrap();
        assert_eq!(of_v1, of_v2);
        assert_eq!(of_v1.memory.unwrap().working_set(), 16);
        assert_eq!((of_v1.processes, of_v1.oom_kills), (2, Some(2)));
        assert_eq!(of_v1.memory.unwrap().limit, None);
    }

    #[test]
    fn a_cgroup_that_is_gone_uses_nothing() {
        let (_folder, empty) = written(&[]);
        assert_eq!(meter(true, [Some(empty), None, None, None, None]).read().unwrap(), None);
        assert!(open(Path::new("/nowhere")).unwrap().is_none());
    }
}
