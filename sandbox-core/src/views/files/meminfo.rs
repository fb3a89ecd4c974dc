//! `/proc/meminfo`

use std::fmt::Write;
use std::io;

use super::memory::{self, Told};
use crate::views::sources::Sources;

/// What becomes of a line of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// It stays as it is.
    Kernels,
    /// It gets the container's number, in KiB.
    Own(u64),
    /// The machine has a number, and the container's is not known.
    Unknown,
}

/// Returns the text of `/proc/meminfo`, with the kernel's lines in the kernel's order.
pub(super) fn text(sources: &Sources, kernels: &str) -> io::Result<String> {
    let told = memory::told(sources, kernels)?;
    let mut text = String::with_capacity(kernels.len());
    for line in kernels.split_inclusive('\n') {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        match of(name, &told) {
            Line::Kernels => text.push_str(line),
            Line::Own(kib) => {
                let _ = writeln!(text, "{:<16}{kib:>8} kB", format_args!("{name}:").to_string());
            }
            // What nobody uses the container does not use.
            Line::Unknown if is_zero(value) => text.push_str(line),
            Line::Unknown => {}
        }
    }
    Ok(text)
}

/// Whether a value of the kernel's is nothing.
pub(super) fn is_zero(value: &str) -> bool {
    value.trim().trim_end_matches(" kB") == "0"
}

/// Decides on one line: meminfo in proc.rst.
pub(super) fn of(name: &str, told: &Told) -> Line {
    let swap = match name {
        "SwapTotal" => Some(told.swap_total),
        "SwapFree" => Some(told.swap_free),
        _ => None,
    };
    if let Some(kib) = swap {
        return if told.swap_is_machines { Line::Kernels } else { Line::Own(kib) };
    }
    if told.is_machines {
        return Line::Kernels;
    }
    let stat = &told.stat;
    let known = match name {
        "MemTotal" => return Line::Own(told.total),
        "MemFree" => return Line::Own(told.free),
        "MemAvailable" => return Line::Own(told.available),
        // Pages of block devices are page cache of the cgroup, like those of files.
        "Buffers" => return Line::Own(0),
        "Cached" => less(stat.file, stat.swap_cached.or(Some(0))),
        "SwapCached" => stat.swap_cached,
        "Active" => sum(stat.active_anon, stat.active_file),
        "Inactive" => sum(stat.inactive_anon, stat.inactive_file),
        "Active(anon)" => stat.active_anon,
        "Inactive(anon)" => stat.inactive_anon,
        "Active(file)" => stat.active_file,
        "Inactive(file)" => stat.inactive_file,
        "Unevictable" => stat.unevictable,
        "Zswap" => stat.zswap,
        "Zswapped" => stat.zswapped,
        "Dirty" => stat.file_dirty,
        "Writeback" => stat.file_writeback,
        "AnonPages" => stat.anon,
        "Mapped" => stat.file_mapped,
        "Shmem" => stat.shmem,
        "KReclaimable" | "SReclaimable" => stat.slab_reclaimable,
        "Slab" => sum(stat.slab_reclaimable, stat.slab_unreclaimable),
        "SUnreclaim" => stat.slab_unreclaimable,
        "KernelStack" => stat.kernel_stack,
        "PageTables" => stat.page_tables,
        "SecPageTables" => stat.sec_page_tables,
        "Percpu" => stat.percpu,
        "AnonHugePages" => stat.anon_thp,
        "ShmemHugePages" => stat.shmem_thp,
        "FileHugePages" => stat.file_thp,
        name if is_fact(name) => return Line::Kernels,
        _ => None,
    };
    known.map_or(Line::Unknown, |bytes| Line::Own(bytes / 1024))
}

/// Whether a line says how the machine is, not what is used of it.
fn is_fact(name: &str) -> bool {
    ["Vmalloc", "HugePages_", "Huge", "DirectMap", "Cma", "HardwareCorrupted", "Balloon"]
        .iter()
        .any(|start| name.starts_with(start))
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    Some(a?.saturating_add(b?))
}

fn less(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    Some(a?.saturating_sub(b?))
}
