//! `palisade top`: what pods or containers use, live.

mod screen;
mod usage;

use std::cmp::Reverse;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::{self, Common, Format};
use crate::node::Node;
use crate::{select, show};

use screen::Screen;
use usage::{Row, Sample};

/// Flags of `palisade top`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Reads the cgroups of all pods, or of those named, again and again.\n\n\
    CPU is in percent of one CPU. MEMORY is what cannot be given back at once: without the \
    pages of files that were not used lately. LIMIT is the least that holds for the container, \
    those of the cgroups above included. BLOCK is what was read from and written to devices. \
    NETWORK is what the whole pod has received and sent; a pod in the host's network has none \
    of its own.\n\n\
    On a terminal, q ends, and c, m, p, b and n sort by CPU, memory, processes, block and \
    network. Otherwise it prints a table each time, or one JSON document a line."
)]
pub(crate) struct Top {
    /// Only these pods or containers
    #[arg(value_name = "ID", add = ArgValueCompleter::new(arguments::names))]
    ids: Vec<String>,
    /// What is one line
    #[arg(long, value_enum, default_value_t = By::Container)]
    by: By,
    /// What comes first
    #[arg(long, value_enum, default_value_t = Sort::Cpu)]
    sort: Sort,
    /// The time between two looks, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    interval: Duration,
    /// Prints once and ends: after one interval, for which the CPUs are counted
    #[arg(long)]
    once: bool,
}

/// What is one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// A container
    Container,
    /// A pod, with all its containers
    Pod,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// What uses most of the CPUs
    Cpu,
    /// What has most memory
    Memory,
    /// What has most processes
    Processes,
    /// What has read and written most
    Block,
    /// What has received and sent most
    Network,
    /// In the order of the alphabet
    Name,
}

fn interval(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected seconds from 0.1 to 3600, as in 0.5, not {text:?}");
    let seconds: f64 = text.trim_end_matches('s').parse().map_err(|_| expected())?;
    let whole = (0.1..=3600.0).contains(&seconds);
    if whole { Ok(Duration::from_secs_f64(seconds)) } else { Err(expected()) }
}

/// What the terminal tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Typed(u8),
    /// Its window has another size.
    Resized,
}

/// Shows what is used until a key or a signal ends it.
pub(crate) async fn top(common: &Common, flags: &Top) -> Result<ExitCode> {
    let mut sort = flags.sort;
    let mut before = Sample::take(&chosen(common, flags)?);
    // Before the terminal is taken, which no signal may leave as it is then.
    let mut ends = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
    let mut hangup = signal(SignalKind::hangup())?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut screen = match common.format {
        Format::Table if !flags.once && std::io::stdout().is_terminal() => Some(Screen::begin()?),
        _ => None,
    };
    let mut next = Instant::now() + flags.interval;
    loop {
        let [interrupt, terminate] = &mut ends;
        let at_once = tokio::select! {
            () = tokio::time::sleep_until(next.into()) => None,
            key = Screen::key(&mut screen) => Some(Told::Typed(key)),
            _ = resized.recv(), if screen.is_some() => Some(Told::Resized),
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
            _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            _ = hangup.recv() => return Ok(ExitCode::SUCCESS),
        };
        match at_once {
            Some(Told::Typed(b'q')) => return Ok(ExitCode::SUCCESS),
            Some(Told::Typed(key)) => sort = sort_of(key).unwrap_or(sort),
            Some(Told::Resized) | None => {}
        }
        // A key shows what is known in another order at once, and a window is filled at once.
        let node = chosen(common, flags)?;
        let now = Sample::take(&node);
        let mut rows = now.rows(&before, &node, flags.by == By::Pod);
        order(&mut rows, sort);
        match (common.format, &mut screen) {
            (Format::Json, _) => show::line(&serde_json::to_string(&rows)?)?,
            (Format::Table, None) => show::print(&table(&rows))?,
            (Format::Table, Some(screen)) => screen.draw(&table(&rows), rows.len())?,
        }
        if flags.once {
            return Ok(ExitCode::SUCCESS);
        }
        if at_once.is_none() {
            before = now;
            next += flags.interval;
            // A machine that slept is not asked for what it missed.
            next = next.max(Instant::now());
        }
    }
}

/// Returns the pods, with only the containers that were named.
fn chosen(common: &Common, flags: &Top) -> Result<Node> {
    let mut node = Node::of(common)?;
    if flags.ids.is_empty() {
        return Ok(node);
    }
    let mut wanted = Vec::new();
    for id in &flags.ids {
        let selected = select::find(&node, id)?;
        let containers = super::ps::containers(selected);
        wanted.extend(containers.iter().map(|c| (selected.pod().id.clone(), c.id.clone())));
    }
    for pod in &mut node.pods {
        let id = pod.id.clone();
        pod.containers.retain(|c| wanted.iter().any(|(p, wanted)| (p, wanted) == (&id, &c.id)));
    }
    Ok(node)
}

fn sort_of(key: u8) -> Option<Sort> {
    match key {
        b'c' => Some(Sort::Cpu),
        b'm' => Some(Sort::Memory),
        b'p' => Some(Sort::Processes),
        b'b' => Some(Sort::Block),
        b'n' => Some(Sort::Network),
        _ => None,
    }
}

fn order(rows: &mut [Row], sort: Sort) {
    // Those that are equal stay in the order of their names.
    rows.sort_by(|a, b| (&a.pod, &a.name, &a.id).cmp(&(&b.pod, &b.name, &b.id)));
    match sort {
        Sort::Cpu => rows.sort_by(|a, b| b.cpu_percent.total_cmp(&a.cpu_percent)),
        Sort::Memory => rows.sort_by_key(|row| Reverse(row.memory)),
        Sort::Processes => rows.sort_by_key(|row| Reverse(row.processes)),
        Sort::Block => rows.sort_by_key(|row| Reverse(row.block_read + row.block_written)),
        Sort::Network => {
            rows.sort_by_key(|row| Reverse(row.network.map(|n| n.received + n.sent)));
        }
        Sort::Name => {}
    }
}

fn table(rows: &[Row]) -> comfy_table::Table {
    let mut table = show::table(&[
        "ID",
        "POD",
        "NAME",
        "CPU%",
        "MEMORY",
        "LIMIT",
        "MEM%",
        "PIDS",
        "BLOCK R/W",
        "NETWORK R/T",
    ]);
    for row in rows {
        let network =
            |n: usage::Network| format!("{} / {}", show::bytes(n.received), show::bytes(n.sent));
        table.add_row([
            select::short(&row.id).to_owned(),
            row.pod.clone(),
            row.name.clone(),
            format!("{:.1}", row.cpu_percent),
            show::bytes(row.memory),
            row.memory_limit.map_or_else(|| "-".to_owned(), show::bytes),
            row.memory_percent.map_or_else(|| "-".to_owned(), |share| format!("{share:.1}")),
            row.processes.to_string(),
            format!("{} / {}", show::bytes(row.block_read), show::bytes(row.block_written)),
            row.network.map_or_else(|| "-".to_owned(), network),
        ]);
    }
    show::align_right(&mut table, &[3, 4, 5, 6, 7, 8, 9]);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_bounds() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        for wrong in ["0", "-1", "NaN", "inf", "3601", "soon", ""] {
            assert!(interval(wrong).unwrap_err().contains("0.1 to 3600"), "{wrong}");
        }
    }
}
