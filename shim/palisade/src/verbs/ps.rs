//! `palisade ps`: the processes of a pod or a container.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use sandbox_inspect::processes::Process;
use serde::Serialize;

use crate::arguments::{Common, Format, Target};
use crate::node::{Container, Node};
use crate::select::{self, Selected, short};
use crate::show;

/// Flags of `palisade ps`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Shows what the kernel knows: neither the shim nor the sandbox is asked, so it also works \
    where these do not answer.\n\n\
    PID is the host's, INSIDE the one in the process's own PID namespace; USER is the number \
    inside. CPU is the share of one CPU since the process was started, as ps(1) counts it. \
    What is not printable in a command line is escaped. The sandbox process itself is among \
    the processes of the pod's root container."
)]
pub(crate) struct Ps {
    #[command(flatten)]
    target: Target,
}

/// A process, as it is printed in JSON.
#[derive(Serialize)]
struct Row<'a> {
    container: &'a str,
    pid: i32,
    pid_inside: i32,
    parent: i32,
    /// Of the user namespace of the process; null if that has no number for it.
    user: Option<u32>,
    user_of_host: u32,
    state: char,
    threads: u64,
    cpu_percent: f64,
    cpu_seconds: f64,
    memory: u64,
    swapped: u64,
    /// Seconds since 1970.
    started: u64,
    command: &'a str,
}

/// Lists processes.
pub(crate) async fn ps(common: &Common, flags: &Ps) -> Result<ExitCode> {
    let node = Node::of(common)?;
    let selected = select::find(&node, &flags.target.id)?;
    let mut found = Vec::new();
    for container in containers(selected) {
        let processes = Process::of(&container.cgroup)?;
        found.extend(processes.into_iter().map(|process| (container, process)));
    }
    if found.is_empty() {
        eprintln!("palisade: {} has no processes", selected.id());
    }
    match common.format {
        Format::Table => print(&found)?,
        Format::Json => show::json(&found.iter().map(row).collect::<Vec<_>>())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the container that is meant, or all of the pod.
pub(super) fn containers(selected: Selected<'_>) -> Vec<&Container> {
    match selected {
        Selected::Pod(pod) => pod.containers.iter().collect(),
        Selected::Container(_, container) => vec![container],
    }
}

/// Returns what a container is called in a table.
pub(super) fn called(container: &Container) -> &str {
    match container.name() {
        "" => short(&container.id),
        name => name,
    }
}

fn print(found: &[(&Container, Process)]) -> Result<()> {
    let mut table = show::table(&[
        "CONTAINER",
        "PID",
        "INSIDE",
        "USER",
        "CPU%",
        "MEMORY",
        "STARTED",
        "COMMAND",
    ]);
    for (container, process) in found {
        table.add_row([
            called(container).to_owned(),
            process.pid.0.to_string(),
            process.inside.to_string(),
            process.user_inside.map_or_else(|| "-".to_owned(), |user| user.to_string()),
            format!("{:.1}", percent(process)),
            show::bytes(process.memory),
            show::age(Some(process.started())) + " ago",
            process.command.clone(),
        ]);
    }
    show::align_right(&mut table, &[1, 2, 3, 4, 5]);
    show::print(&table)
}

fn row<'a>((container, process): &'a (&'a Container, Process)) -> Row<'a> {
    Row {
        container: &container.id,
        pid: process.pid.0,
        pid_inside: process.inside,
        parent: process.parent.0,
        user: process.user_inside,
        user_of_host: process.user,
        state: process.state,
        threads: process.threads,
        cpu_percent: (percent(process) * 10.0).round() / 10.0,
        cpu_seconds: process.cpu.as_secs_f64(),
        memory: process.memory,
        swapped: process.swapped,
        started: process.started().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        command: &process.command,
    }
}

/// Returns the share of one CPU since the start, in percent.
fn percent(process: &Process) -> f64 {
    let age = SystemTime::now().duration_since(process.started()).unwrap_or_default();
    match age.as_secs_f64() {
        age if age > 0.0 => 100.0 * process.cpu.as_secs_f64() / age,
        _ => 0.0,
    }
}
