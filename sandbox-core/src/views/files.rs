//! The texts of the files, each in the kernel's format.
//!
//! Where the container has a number of its own, the text says that. A fact of the kernel, such as
//! the size of a huge page or the number of interrupts, stays as the kernel says it. What only
//! the machine has a number for, though each container uses some of it, is left out.

mod cpuinfo;
mod diskstats;
mod load;
mod meminfo;
mod memory;
mod nodes;
mod stat;
mod swaps;
mod sysinfo;
mod times;

use std::io;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::File;
use super::cpus::possible;
use super::host::Host;
use super::kernel_file::nonsense;
use super::sources::Sources;
use crate::cpu_set::CpuSet;
use crate::types::ViewSource;

pub(crate) use sysinfo::{SystemInfo, sysinfo};

/// What is kept of a container from one look to the next, since the kernel's files count on from
/// where they were.
#[derive(Debug)]
pub(crate) struct OwnState {
    times: times::Times,
    load: load::Load,
    forks: stat::Forks,
}

impl Default for OwnState {
    /// Returns the state of a container that has just begun.
    fn default() -> Self {
        let load = load::Load::since(Instant::now());
        OwnState { times: Default::default(), load, forks: Default::default() }
    }
}

/// Returns the text of a file that is made from what the cgroup and boot's proc say.
pub(crate) fn text(
    file: File,
    sources: &Sources,
    host: &mut Host,
    own: &mut OwnState,
) -> io::Result<Vec<u8>> {
    let text = match file {
        File::Cpuinfo => {
            let told = sources.cpus(host)?.told;
            host.cpuinfo(&told, cpuinfo::blocks_of)?
        }
        File::Diskstats => diskstats::text(&host.read_lines("diskstats")?, &sources.io()?),
        File::Loadavg => load::text(sources, host, &mut own.load, Instant::now())?,
        File::Meminfo => meminfo::text(sources, &host.read("meminfo")?)?,
        File::Stat => stat::text(sources, host, own, uptime())?,
        File::Swaps => swaps::text(sources, host)?,
        File::Uptime => times::uptime_text(sources, host, &mut own.times, uptime())?,
        File::PressureCpu => pressure(sources, host, ViewSource::CpuPressure, "pressure/cpu")?,
        File::PressureIo => pressure(sources, host, ViewSource::IoPressure, "pressure/io")?,
        File::PressureMemory => {
            pressure(sources, host, ViewSource::MemoryPressure, "pressure/memory")?
        }
        File::ThreadsMax => threads_max(sources, host)?,
        File::CpuOnline | File::CpuPresent => format!("{}\n", sources.cpus(host)?.told.list()),
        File::CpuPossible | File::NodeCpulist(_) | File::NodeCpumap(_) | File::NodeMeminfo(_) => {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    };
    Ok(text.into_bytes())
}

/// Returns the text of a file that is made from the kernel's text of it, which stands in sysfs.
pub(crate) fn text_of_kernels(
    file: File,
    kernels: &[u8],
    sources: &Sources,
    host: &mut Host,
) -> io::Result<Vec<u8>> {
    let wrong = || nonsense(format!("the kernel's text of {file:?}"));
    let kernels = str::from_utf8(kernels).map_err(|_| wrong())?;
    let text = match file {
        File::CpuPossible => {
            let kernels = CpuSet::parse(kernels).ok_or_else(wrong)?;
            let told = sources.cpus(host)?.told;
            // A container that has all CPUs could get those that are still to come.
            let has_all = told == host.online()?;
            let possible = if has_all { kernels } else { possible(&told, &kernels) };
            format!("{}\n", possible.list())
        }
        File::NodeCpulist(_) => {
            let of_node = CpuSet::parse(kernels).ok_or_else(wrong)?;
            format!("{}\n", of_node.and(&sources.cpus(host)?.told).list())
        }
        File::NodeCpumap(_) => {
            let of_node = CpuSet::parse_mask(kernels).ok_or_else(wrong)?;
            format!("{}\n", of_node.and(&sources.cpus(host)?.told).mask_like(kernels))
        }
        File::NodeMeminfo(_) => nodes::meminfo(kernels, sources, &host.read("meminfo")?)?,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    Ok(text.into_bytes())
}

/// Returns the time since the pod started, or since the machine started if the pod has no time
/// namespace.
fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

/// Returns the text of the cgroup's own pressure. Version 1 has none, and the kernel can be told
/// to count none: then the kernel's own file counts.
fn pressure(
    sources: &Sources,
    host: &mut Host,
    kind: ViewSource,
    kernels: &'static str,
) -> io::Result<String> {
    match sources.pressure(kind)? {
        Some(text) => super::kernel_file::utf8(text, kernels),
        None => host.read(kernels),
    }
}

/// Returns the number of threads that there can be.
fn threads_max(sources: &Sources, host: &mut Host) -> io::Result<String> {
    let name = "sys/kernel/threads-max";
    let kernels: u64 = host.read(name)?.trim().parse().map_err(|_| nonsense(name))?;
    Ok(format!("{}\n", kernels.min(sources.pids_limit()?)))
}

#[cfg(test)]
mod tests;
