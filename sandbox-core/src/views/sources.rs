//! The files of the cgroups that views are made from.
//!
//! A limit counts at every level, a use only in the container's own cgroup. Every look reads each
//! file that it needs with one pread(2). A file that is missing means that the controller is not
//! enabled there: no limit, and nothing known of its use.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use super::cpus::told;
use super::host::Host;
use super::kernel_file::{self, USUAL, nonsense, utf8};
use crate::cpu_set::CpuSet;
use crate::types::ViewSource::{self, *};

pub(crate) use super::memory_stat::MemoryStat;

/// What the shim opened of one container's cgroups.
#[derive(Debug)]
pub(crate) struct Sources {
    v2: bool,
    own: Vec<(ViewSource, OwnedFd)>,
    above: Vec<(ViewSource, OwnedFd)>,
    from_quota: bool,
    minimum: u32,
}

/// The CPUs that a container is told it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus {
    /// The CPUs.
    pub(crate) told: CpuSet,
    /// Those that its programs may run on, out of which they are.
    pub(crate) effective: CpuSet,
    /// Whether a quota made them fewer than those that the kernel itself tells the container's
    /// programs of.
    pub(crate) by_quota: bool,
}

/// A container's memory, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// The smallest limit of all levels; `u64::MAX` without any.
    pub(crate) limit: u64,
    /// What it uses, with caches that can be reclaimed.
    pub(crate) usage: u64,
    /// The smallest limit of swap of all levels; `u64::MAX` without any.
    pub(crate) swap_limit: u64,
    /// What it has in swap.
    pub(crate) swap_usage: u64,
    /// What its memory is used for.
    pub(crate) stat: MemoryStat,
}

/// The time of CPUs that a container has used, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    /// In its programs, at the usual priority or above.
    pub(crate) user: u64,
    /// In its programs, at a lower priority, where that is known apart.
    pub(crate) nice: u64,
    /// In the kernel, for it.
    pub(crate) system: u64,
}

impl CpuTime {
    /// Returns all of it.
    pub(crate) fn sum(self) -> u64 {
        self.user.saturating_add(self.nice).saturating_add(self.system)
    }
}

/// The major and the minor number of a device.
pub(crate) type Device = (u32, u32);

/// What a container did with one block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeviceIo {
    /// Bytes read, written and discarded.
    pub(crate) bytes: [u64; 3],
    /// Operations that read, wrote and discarded.
    pub(crate) operations: [u64; 3],
}

/// The threads of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThreadsSample {
    /// Some of them, by their IDs in boot's PID namespace: those of the cgroup itself.
    pub(crate) some: Vec<i32>,
    /// The number of all, those of cgroups below included.
    pub(crate) all: u64,
}

/// At most this many threads are looked at for one answer.
const SAMPLE: usize = 256;
/// Limits from here on are none: version 1 writes 2^63 less a page.
const UNLIMITED: u64 = i64::MAX as u64 - (1 << 16);
/// The microseconds of a tick of `cpuacct.stat`, whose unit is that of times(2): 1/100 s on each
/// machine that Palisade runs on.
const TICK: u64 = 10_000;

impl Sources {
    /// Takes the files that the shim opened: of the container's own cgroup, and of those above,
    /// the nearest first.
    pub(crate) fn new(
        v2: bool,
        own: Vec<(ViewSource, OwnedFd)>,
        above: Vec<(ViewSource, OwnedFd)>,
    ) -> Sources {
        Sources { v2, own, above, from_quota: true, minimum: 1 }
    }

    /// Counts CPUs in another way: whether a quota lowers their number, and to what at least.
    pub(crate) fn counting(self, from_quota: bool, minimum: u32) -> Sources {
        Sources { from_quota, minimum: minimum.max(1), ..self }
    }

    /// Returns the CPUs that the container is told it has.
    pub(crate) fn cpus(&self, host: &mut Host) -> io::Result<Cpus> {
        let effective = match self.effective_cpus()? {
            Some(set) if !set.is_empty() => set,
            _ => host.online()?,
        };
        let quota = if self.from_quota { self.quota()? } else { None };
        let told = told(&effective, quota.map(|quota| quota.max(self.minimum)));
        Ok(Cpus { by_quota: told != effective, told, effective })
    }

    /// Returns the CPUs of the cpuset, or of the nearest one above.
    fn effective_cpus(&self) -> io::Result<Option<CpuSet>> {
        let Some(fd) = self.levels(Cpus).next() else {
            return Ok(None);
        };
        let text = text_of(fd, Cpus)?;
        CpuSet::parse(&text).map(Some).ok_or_else(|| unexpected(Cpus, "a list of CPUs", &text))
    }

    /// Returns the tightest quota of all levels in whole CPUs, rounded up.
    fn quota(&self) -> io::Result<Option<u32>> {
        let mut tightest: Option<u64> = None;
        let mut periods = self.levels(CpuPeriod);
        for fd in self.levels(CpuQuota) {
            let mut text = text_of(fd, CpuQuota)?;
            if !self.v2 {
                // Each level has both.
                let period = periods.next().map(|fd| text_of(fd, CpuPeriod));
                text = format!("{} {}", text.trim(), period.transpose()?.unwrap_or_default());
            }
            let wrong = || unexpected(CpuQuota, "a quota and its period", &text);
            let (quota, period) = text.trim().split_once(' ').ok_or_else(wrong)?;
            let period: u64 = period.trim().parse().map_err(|_| wrong())?;
            if let Some(quota) = limit(quota).ok_or_else(wrong)?
                && period > 0
            {
                let cpus = quota.div_ceil(period);
                tightest = Some(tightest.map_or(cpus, |least| least.min(cpus)));
            }
        }
        Ok(tightest.map(|cpus| u32::try_from(cpus).unwrap_or(u32::MAX)))
    }

    /// Returns the container's memory. `None` if nothing counts it.
    pub(crate) fn memory(&self) -> io::Result<Option<Memory>> {
        let (Some(usage), Some(stat)) = (self.number(MemoryUsage)?, self.find(MemoryStat)) else {
            return Ok(None);
        };
        let stat = MemoryStat::parse(&text_of(stat, MemoryStat)?, self.v2);
        let (limit, swap_limit, swap_usage);
        if self.v2 {
            limit = self.smallest(MemoryLimit)?;
            swap_limit = self.smallest(SwapLimit)?;
            swap_usage = self.number(SwapUsage)?.unwrap_or(0);
        } else {
            limit = stat.limit.filter(|limit| *limit < UNLIMITED).unwrap_or(u64::MAX);
            // Memory and swap are limited together.
            swap_limit = match stat.memsw_limit {
                Some(both) if both < UNLIMITED => both.saturating_sub(limit),
                _ => u64::MAX,
            };
            swap_usage = stat.swap.unwrap_or(0);
        }
        Ok(Some(Memory { limit, usage, swap_limit, swap_usage, stat }))
    }

    /// Returns the CPU time that the container has used. `None` if nothing counts it.
    pub(crate) fn cpu_time(&self) -> io::Result<Option<CpuTime>> {
        let Some(fd) = self.find(CpuStat) else {
            return Ok(None);
        };
        let text = text_of(fd, CpuStat)?;
        let value = |key: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(' '));
            fields.find(|(name, _)| *name == key).and_then(|(_, value)| value.parse::<u64>().ok())
        };
        let (names, unit) =
            if self.v2 { (["user_usec", "system_usec"], 1) } else { (["user", "system"], TICK) };
        let [Some(user), Some(system)] = names.map(value) else {
            return Err(unexpected(CpuStat, "times of user and system", &text));
        };
        let nice = if self.v2 { value("nice_usec").unwrap_or(0) } else { 0 };
        let user = user.saturating_sub(nice);
        let micros = |value: u64| value.saturating_mul(unit);
        Ok(Some(CpuTime { user: micros(user), nice, system: micros(system) }))
    }

    /// Returns what the container did with block devices, by their numbers, those left out that
    /// it has not touched.
    pub(crate) fn io(&self) -> io::Result<BTreeMap<Device, DeviceIo>> {
        let mut devices = BTreeMap::new();
        let Some(fd) = self.find(IoBytes) else {
            return Ok(devices);
        };
        let text = text_of(fd, IoBytes)?;
        if self.v2 {
            devices.extend(text.lines().filter_map(device_of_v2));
        } else {
            add_of_v1(&mut devices, &text, |device| &mut device.bytes);
            if let Some(fd) = self.find(IoOperations) {
                let text = text_of(fd, IoOperations)?;
                add_of_v1(&mut devices, &text, |device| &mut device.operations);
            }
        }
        devices.retain(|_, device| *device != DeviceIo::default());
        Ok(devices)
    }

    /// Returns the smallest limit of threads of all levels; `u64::MAX` without any.
    pub(crate) fn pids_limit(&self) -> io::Result<u64> {
        self.smallest(PidsLimit)
    }

    /// Returns the text of the cgroup's own pressure, which version 1 has not.
    pub(crate) fn pressure(&self, kind: ViewSource) -> io::Result<Option<Vec<u8>>> {
        self.find(kind).map(|fd| kernel_file::read(fd, USUAL)).transpose()
    }

    /// Returns some of the container's threads, spread over those that one read returns, and
    /// the number of all. `None` if nothing lists them.
    pub(crate) fn threads(&self, host: &Host) -> io::Result<Option<ThreadsSample>> {
        let Some(fd) = self.find(Threads) else {
            return Ok(None);
        };
        // Version 1 makes the list at the first read after an open. Further reads get the same
        // one until nobody has read for a second (`cgroup_pidlist_start`).
        let anew = if self.v2 { None } else { host.open_anew(fd)? };
        let fd = anew.as_ref().unwrap_or(fd);
        let mut buffer = [0; USUAL];
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut buffer, 0))?;
        // A line that the buffer cuts is not a whole number.
        let lines = buffer.get(..read).unwrap_or_default().split_inclusive(|b| *b == b'\n');
        let whole = lines.filter_map(|line| str::from_utf8(line.strip_suffix(b"\n")?).ok());
        // 0 stands for a thread that boot's PID namespace does not have.
        let ids = whole.filter_map(|line| line.trim().parse().ok()).filter(|id: &i32| *id > 0);
        let seen: Vec<i32> = ids.collect();
        let known = seen.len() as u64;
        let all = self.number(PidsUsage)?.unwrap_or(known).max(known);
        let step = seen.len().div_ceil(SAMPLE).max(1);
        Ok(Some(ThreadsSample { some: seen.into_iter().step_by(step).collect(), all }))
    }

    /// Returns a file of the container's own cgroup.
    fn find(&self, source: ViewSource) -> Option<&OwnedFd> {
        self.own.iter().find(|(found, _)| *found == source).map(|(_, fd)| fd)
    }

    /// Returns this file of all levels that have it.
    fn levels(&self, source: ViewSource) -> impl Iterator<Item = &OwnedFd> {
        let all = self.own.iter().chain(&self.above);
        all.filter(move |(found, _)| *found == source).map(|(_, fd)| fd)
    }

    fn number(&self, source: ViewSource) -> io::Result<Option<u64>> {
        let Some(fd) = self.find(source) else {
            return Ok(None);
        };
        let text = text_of(fd, source)?;
        text.trim().parse().map(Some).map_err(|_| unexpected(source, "a number", &text))
    }

    fn smallest(&self, source: ViewSource) -> io::Result<u64> {
        let mut least = u64::MAX;
        for fd in self.levels(source) {
            let text = text_of(fd, source)?;
            let found = limit(text.trim()).ok_or_else(|| unexpected(source, "a limit", &text))?;
            least = least.min(found.unwrap_or(u64::MAX));
        }
        Ok(least)
    }
}

/// Parses a limit. The inner `None` means that there is none. The outer one, that it is no limit.
fn limit(text: &str) -> Option<Option<u64>> {
    match text {
        "max" | "-1" => Some(None),
        text => text.parse().ok().map(|limit: u64| (limit < UNLIMITED).then_some(limit)),
    }
}

/// Parses a line of `io.stat`: `254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn device_of_v2(line: &str) -> Option<(Device, DeviceIo)> {
    let mut fields = line.split(' ');
    let device = numbers(fields.next()?)?;
    let mut found = DeviceIo::default();
    for (key, value) in fields.filter_map(|field| field.split_once('=')) {
        let place = match key {
            "rbytes" => &mut found.bytes[0],
            "wbytes" => &mut found.bytes[1],
            "dbytes" => &mut found.bytes[2],
            "rios" => &mut found.operations[0],
            "wios" => &mut found.operations[1],
            "dios" => &mut found.operations[2],
            _ => continue,
        };
        *place = value.parse().unwrap_or(0);
    }
    Some((device, found))
}

/// Adds what a file of the controller blkio says: lines such as `254:0 Read 4096`.
fn add_of_v1(
    devices: &mut BTreeMap<Device, DeviceIo>,
    text: &str,
    part: impl Fn(&mut DeviceIo) -> &mut [u64; 3],
) {
    for line in text.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(kind), Some(value)) =
            (fields.next().and_then(numbers), fields.next(), fields.next())
        else {
            continue;
        };
        let found = part(devices.entry(device).or_default());
        let place = match kind {
            "Read" => &mut found[0],
            "Write" => &mut found[1],
            "Discard" => &mut found[2],
            _ => continue,
        };
        *place = value.parse().unwrap_or(0);
    }
}

fn numbers(device: &str) -> Option<Device> {
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn text_of(fd: &OwnedFd, source: ViewSource) -> io::Result<String> {
    utf8(kernel_file::read(fd, USUAL)?, &format!("{source:?} of a cgroup"))
}

fn unexpected(source: ViewSource, expected: &str, found: &str) -> io::Error {
    let some: String = found.chars().take(40).collect();
    nonsense(format!("{source:?} of a cgroup: expected {expected}, found {some:?}"))
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
