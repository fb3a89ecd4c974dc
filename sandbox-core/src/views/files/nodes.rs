//! `/sys/devices/system/node/nodeN/meminfo`

use std::fmt::Write;
use std::io;

use super::meminfo::{self, Line, is_zero};
use super::memory::{self, kib};
use crate::views::kernel_file::nonsense;
use crate::views::sources::Sources;

/// Returns the text of a node's `meminfo`.
///
/// On a machine with one node that says what `/proc/meminfo` says. Of several nodes, a cgroup's
/// limits and uses do not name any: a node then has no more than the container, and what of it
/// is used for what is not known.
pub(super) fn meminfo(kernels: &str, sources: &Sources, machine: &str) -> io::Result<String> {
    let told = memory::told(sources, machine)?;
    if told.is_machines {
        return Ok(kernels.to_owned());
    }
    let of_node = |name| value(kernels, name).ok_or_else(|| nonsense(format!("node: no {name}")));
    let (total, free) = (of_node("MemTotal")?, of_node("MemFree")?);
    let is_all = kib(machine, "MemTotal") == Some(total);
    let total = total.min(told.total);
    let free = if is_all { told.free } else { free.min(told.free).min(total) };
    let mut text = String::with_capacity(kernels.len());
    for line in kernels.split_inclusive('\n') {
        let Some((node, name, found)) = parts(line) else {
            text.push_str(line);
            continue;
        };
        let own = match name {
            "MemTotal" => Line::Own(total),
            "MemFree" => Line::Own(free),
            "MemUsed" => Line::Own(total.saturating_sub(free)),
            "FilePages" => meminfo::of("Cached", &told),
            name => meminfo::of(name, &told),
        };
        match own {
            Line::Kernels => text.push_str(line),
            Line::Own(own) if is_all || matches!(name, "MemTotal" | "MemFree" | "MemUsed") => {
                let name = format!("{name}:");
                let _ = writeln!(text, "{node} {name:<16}{own:>8} kB");
            }
            _ if is_zero(found) => text.push_str(line),
            _ => {}
        }
    }
    Ok(text)
}

/// Splits a line such as `Node 0 MemTotal:       24684092 kB`.
fn parts(line: &str) -> Option<(&str, &str, &str)> {
    let (before, value) = line.split_once(':')?;
    let (node, name) = before.rsplit_once(' ')?;
    Some((node, name, value))
}

fn value(kernels: &str, name: &str) -> Option<u64> {
    let (_, _, value) = kernels.lines().filter_map(parts).find(|(_, found, _)| *found == name)?;
    value.trim().trim_end_matches(" kB").parse().ok()
}
