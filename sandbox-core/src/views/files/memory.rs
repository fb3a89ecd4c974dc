//! A container's memory, as its limits and the machine's memory make it.

use std::io;

use crate::views::kernel_file::nonsense;
use crate::views::sources::{MemoryStat, Sources};

/// A container's memory, in KiB: `free <= available <= total`, `swap_free <= swap_total`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) total: u64,
    pub(super) free: u64,
    pub(super) available: u64,
    /// Whether `free` and the like are the machine's, since no limit says less.
    pub(super) is_machines: bool,
    pub(super) swap_total: u64,
    pub(super) swap_free: u64,
    /// Whether these are the machine's.
    pub(super) swap_is_machines: bool,
    /// What the memory is used for, in bytes.
    pub(super) stat: MemoryStat,
}

/// What the machine's `meminfo` says, in KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Machine {
    total: u64,
    free: u64,
    available: u64,
    swap_total: u64,
    swap_free: u64,
}

/// Returns the memory that a container has.
///
/// Of memory without a limit the container has what the machine has. With a limit there is what
/// the limit leaves, and what can be had at once by giving up caches, if the machine has as much.
pub(super) fn told(sources: &Sources, meminfo: &str) -> io::Result<Told> {
    let machine = Machine::parse(meminfo)?;
    let machines = Told {
        total: machine.total,
        free: machine.free,
        available: machine.available,
        is_machines: true,
        swap_total: machine.swap_total,
        swap_free: machine.swap_free.min(machine.swap_total),
        swap_is_machines: true,
        stat: MemoryStat::default(),
    };
    let Some(own) = sources.memory()? else {
        return Ok(machines);
    };
    let mut told = Told { stat: own.stat, ..machines };
    let limit = own.limit / 1024;
    if limit < machine.total {
        let left = own.limit.saturating_sub(own.usage);
        let parts = [own.stat.inactive_file, own.stat.active_file, own.stat.slab_reclaimable];
        let caches = parts.into_iter().flatten().fold(0, u64::saturating_add).min(own.usage);
        told.total = limit;
        told.available = (left.saturating_add(caches) / 1024).min(machine.available).min(limit);
        told.free = (left / 1024).min(told.available);
        told.is_machines = false;
    }
    let swap_limit = own.swap_limit / 1024;
    if swap_limit < machine.swap_total || !told.is_machines {
        told.swap_total = swap_limit.min(machine.swap_total);
        let left = told.swap_total.saturating_sub(own.swap_usage / 1024);
        told.swap_free = left.min(machine.swap_free);
        told.swap_is_machines = false;
    }
    Ok(told)
}

impl Told {
    /// Returns what of the memory is shared, in KiB, if that is known.
    pub(super) fn shared(&self) -> Option<u64> {
        self.stat.shmem.map(|bytes| bytes / 1024)
    }
}

impl Machine {
    fn parse(meminfo: &str) -> io::Result<Machine> {
        let value = |name| kib(meminfo, name);
        let wrong = || nonsense("meminfo: expected MemTotal and MemFree");
        let total = value("MemTotal").ok_or_else(wrong)?;
        let free = value("MemFree").ok_or_else(wrong)?;
        Ok(Machine {
            total,
            free,
            available: value("MemAvailable").unwrap_or(free),
            swap_total: value("SwapTotal").unwrap_or(0),
            swap_free: value("SwapFree").unwrap_or(0),
        })
    }
}

/// Returns the value of a line such as `MemTotal:  24684092 kB`.
pub(super) fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let mut lines = meminfo.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(found, _)| *found == name)?;
    value.trim().trim_end_matches(" kB").parse().ok()
}
