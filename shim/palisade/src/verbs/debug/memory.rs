//! `palisade debug memory`: what the kernel knows of the memory of a pod's processes.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use sandbox_inspect::memory::{self, OfCgroup, OfProcess, Usage};
use sandbox_inspect::processes::Process;
use serde::Serialize;

use crate::arguments::{Common, Format, Target};
use crate::node::{Container, Node};
use crate::verbs::ps;
use crate::{select, show};

/// Flags of `palisade debug memory`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "For each container what its cgroup is charged for, with its share of \
    all that is shown; for each process and mapping what is present. PROPORTIONAL counts a page \
    that several processes share as a part for each. The cgroup also counts what is in no mapping: \
    files that the kernel keeps in memory, and memory of the kernel itself (KERNEL: stacks, page \
    tables, inodes, sockets).\n\n\
    Reading it costs the kernel a walk over the page tables of each process, which waits while the \
    process maps memory."
)]
pub(crate) struct Memory {
    #[command(flatten)]
    target: Target,
    /// Shows so many mappings of each process, the largest first
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(0..))]
    mappings: u16,
}

/// The memory of one container.
#[derive(Serialize)]
struct OfContainer<'a> {
    container: &'a str,
    #[serde(skip)]
    called: &'a str,
    /// Null if nothing counts it.
    cgroup: Option<OfCgroup>,
    /// Its part of what all containers that are shown are charged for.
    share_percent: Option<f64>,
    processes: Vec<OneProcess>,
}

#[derive(Serialize)]
struct OneProcess {
    pid: i32,
    pid_inside: i32,
    command: String,
    #[serde(flatten)]
    memory: OfProcess,
}

/// Shows memory.
pub(crate) async fn memory(common: &Common, flags: &Memory) -> Result<ExitCode> {
    let node = Node::of(common)?;
    let selected = select::find(&node, &flags.target.id)?;
    let mut all =
        ps::containers(selected).into_iter().map(of_container).collect::<Result<Vec<_>>>()?;
    let sum: u64 = all.iter().filter_map(|of| Some(of.cgroup?.usage)).sum();
    for of in &mut all {
        let usage = of.cgroup.map(|cgroup| cgroup.usage as f64);
        of.share_percent = usage.filter(|_| sum > 0).map(|usage| 100.0 * usage / sum as f64);
    }
    if all.iter().all(|of| of.processes.is_empty()) {
        eprintln!("palisade: {} has no processes", selected.id());
    }
    match common.format {
        Format::Json => show::json(&all)?,
        Format::Table => print(&all, flags.mappings.into())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn of_container(container: &Container) -> Result<OfContainer<'_>> {
    let one = |process: Process| {
        let memory = memory::of_process(process.pid)?;
        let (pid, pid_inside) = (process.pid.0, process.inside);
        Some(OneProcess { pid, pid_inside, command: process.command, memory })
    };
    Ok(OfContainer {
        container: &container.id,
        called: ps::called(container),
        cgroup: memory::of_cgroup(&container.cgroup),
        share_percent: None,
        processes: Process::of(&container.cgroup)?.into_iter().filter_map(one).collect(),
    })
}

fn print(all: &[OfContainer<'_>], mappings: usize) -> Result<()> {
    let mut table = show::table(&[
        "CONTAINER",
        "SHARE%",
        "CHARGED",
        "LIMIT",
        "ANONYMOUS",
        "FILE",
        "SHARED",
        "SWAPPED",
        "KERNEL",
        "PAGE TABLES",
    ]);
    let some = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), show::bytes);
    for of in all {
        let share = of.share_percent.map_or_else(|| "-".to_owned(), |share| format!("{share:.1}"));
        let cgroup = of.cgroup;
        let get = |part: fn(&OfCgroup) -> u64| some(cgroup.as_ref().map(part));
        // Version 1 does not count them apart.
        let of_processes = of.processes.iter().map(|process| process.memory.page_tables).sum();
        let tables = cgroup.and_then(|cgroup| cgroup.page_tables).unwrap_or(of_processes);
        table.add_row([
            of.called.to_owned(),
            share,
            get(|of| of.usage),
            some(cgroup.and_then(|of| of.limit)),
            get(|of| of.anonymous),
            get(|of| of.file),
            get(|of| of.shared),
            get(|of| of.swapped),
            get(|of| of.kernel),
            show::bytes(tables),
        ]);
    }
    show::align_right(&mut table, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    show::print(&table)?;
    show::line("")?;
    let mut table = show::table(&[
        "PID",
        "RESIDENT",
        "PROPORTIONAL",
        "ANONYMOUS",
        "FILE",
        "SHARED",
        "SWAPPED",
        "PAGE TABLES",
        "COMMAND OR MAPPING",
    ]);
    for process in all.iter().flat_map(|of| &of.processes) {
        let OfProcess { total, page_tables, mappings: of } = &process.memory;
        let (pid, tables) = (process.pid.to_string(), show::bytes(*page_tables));
        table.add_row(row(pid, total, tables, process.command.clone()));
        let mut largest: Vec<_> =
            of.iter().filter(|(_, of)| of.resident + of.swapped > 0).collect();
        largest.sort_by_key(|(_, of)| std::cmp::Reverse(of.resident + of.swapped));
        for (name, usage) in largest.into_iter().take(mappings) {
            table.add_row(row(String::new(), usage, String::new(), format!("  {name}")));
        }
    }
    show::align_right(&mut table, &[0, 1, 2, 3, 4, 5, 6, 7]);
    show::print(&table)
}

fn row(pid: String, usage: &Usage, tables: String, name: String) -> [String; 9] {
    [
        pid,
        show::bytes(usage.resident),
        show::bytes(usage.proportional),
        show::bytes(usage.anonymous),
        show::bytes(usage.file),
        show::bytes(usage.shared),
        show::bytes(usage.swapped),
        tables,
        name,
    ]
}
