//! What sysinfo(2) says, of the same numbers as the files.

use std::io;
use std::time::Instant;

use super::memory::{self, kib};
use super::{OwnState, load, uptime};
use crate::views::host::Host;
use crate::views::sources::Sources;

/// The bits after the point of sysinfo's averages (`SI_LOAD_SHIFT`).
const LOAD_BITS: u32 = 16;

/// The fields of `struct sysinfo` that mean something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SystemInfo {
    /// Seconds since the start.
    pub(crate) uptime: u64,
    /// The averages of the load, with 16 bits after the point.
    pub(crate) loads: [u64; 3],
    /// Memory, in units.
    pub(crate) totalram: u64,
    /// Free memory, in units.
    pub(crate) freeram: u64,
    /// Shared memory, in units.
    pub(crate) sharedram: u64,
    /// Memory of buffers, in units.
    pub(crate) bufferram: u64,
    /// Swap, in units.
    pub(crate) totalswap: u64,
    /// Free swap, in units.
    pub(crate) freeswap: u64,
    /// The number of threads.
    pub(crate) procs: u16,
    /// The bytes of a unit.
    pub(crate) mem_unit: u32,
}

/// Returns what sysinfo(2) says of a container.
pub(crate) fn sysinfo(
    sources: &Sources,
    host: &mut Host,
    own: &mut OwnState,
) -> io::Result<SystemInfo> {
    let meminfo = host.read("meminfo")?;
    let told = memory::told(sources, &meminfo)?;
    let of_machine = |name| kib(&meminfo, name).unwrap_or(0);
    let (shared, buffers) = if told.is_machines {
        (of_machine("Shmem"), of_machine("Buffers"))
    } else {
        (told.shared().unwrap_or(0), 0)
    };
    let (loads, threads) = match own.load.look(sources, host, Instant::now())? {
        Some(running) => (own.load.averages(LOAD_BITS), running.all),
        None => load::of_machine(host, LOAD_BITS)?,
    };
    let up = uptime();
    let bytes = |kib: u64| kib.saturating_mul(1024);
    Ok(SystemInfo {
        // Rounded up, as the kernel does.
        uptime: up.as_secs() + u64::from(up.subsec_nanos() > 0),
        loads,
        totalram: bytes(told.total),
        freeram: bytes(told.free),
        sharedram: bytes(shared),
        bufferram: bytes(buffers),
        totalswap: bytes(told.swap_total),
        freeswap: bytes(told.swap_free),
        procs: u16::try_from(threads).unwrap_or(u16::MAX),
        mem_unit: 1,
    })
}

impl Sources {
    /// Whether a limit makes sysinfo(2) say anything else than the kernel's.
    pub(crate) fn has_memory_limit(&self, host: &mut Host) -> io::Result<bool> {
        let told = memory::told(self, &host.read("meminfo")?)?;
        Ok(!told.is_machines || !told.swap_is_machines)
    }
}
