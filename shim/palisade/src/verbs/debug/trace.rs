//! `palisade debug trace`: what the threads of a pod do, moment by moment.

use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use operator_api::operator::EventsRequest;
use sandbox_core::cgroup::Cgroup;
use sandbox_inspect::trace::{self, Ended, Event, Recorded, Traced, Wanted};
use serde::{Deserialize, Serialize};

use super::output::Output;
use super::stop::until_stopped;
use super::values;
use crate::arguments::{Common, Format, Target};
use crate::exit::Failure;
use crate::node::{Node, Pod};
use crate::select::{self, Selected};
use crate::shim::Shim;
use crate::show;
use crate::verbs::ps;

/// Flags of `palisade debug trace`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "Records when each thread runs, waits and is woken, its system calls \
    with their arguments and what they returned, page faults, requests to disks, and when programs \
    begin and end. The file opens at ui.perfetto.dev, which sends it nowhere, and in the Python \
    package perfetto. The category of a call says what it waits for: wait-network, wait-lock, \
    wait-file, …\n\n\
    What pointers point at and what files are is shown for calls that last: a thread's memory is \
    read while it is in the call. Nothing runs inside, and nothing is left: the kernel's tracer has \
    a buffer of its own for it, and others can trace at the same time. Records for which that \
    buffer has no room are counted. Ctrl-C ends early, and what was recorded is kept.")]
pub(crate) struct Trace {
    #[command(flatten)]
    target: Target,
    /// How long
    #[arg(long, short, default_value = "5s", value_parser = values::duration)]
    duration: Duration,
    /// The file to write
    #[arg(long, short)]
    output: PathBuf,
    /// Writes over a file that exists
    #[arg(long)]
    force: bool,
    /// The size at which the file ends
    #[arg(long, default_value = "256M", value_parser = values::size)]
    limit: u64,
}

/// What is printed in JSON.
#[derive(Serialize)]
struct Document {
    file: PathBuf,
    #[serde(flatten)]
    recorded: Recorded,
}

/// What every event of a shim says.
#[derive(Deserialize)]
struct Reported {
    #[serde(rename = "type")]
    kind: String,
    container: String,
}

/// Records a trace.
pub(crate) async fn trace(common: &Common, flags: &Trace) -> Result<ExitCode> {
    let node = Node::of(common)?;
    let selected = select::find(&node, &flags.target.id)?;
    let wanted = wanted(selected, flags)?;
    let (output, file) = Output::create(&flags.output, flags.force)?;
    let (events, reports) = mpsc::channel();
    let record = move |stop: &_| trace::record(&wanted, file, stop, &reports);
    let mut recording = pin!(until_stopped(record));
    let mut listening = pin!(listen(selected.pod(), events));
    let mut listens = true;
    let recorded = loop {
        tokio::select! {
            recorded = &mut recording => break recorded,
            ended = &mut listening, if listens => {
                listens = false;
                if let Err(failure) = ended {
                    eprintln!("palisade: the trace lacks what the shim reports: {failure}");
                }
            }
        }
    };
    let recorded = recorded.context("record a trace")?;
    output.keep();
    match common.format {
        Format::Json => show::json(&Document { file: flags.output.clone(), recorded })?,
        Format::Table => print(flags, &recorded)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Passes on what the shim of a pod reports, until it ends.
async fn listen(pod: &Pod, events: mpsc::Sender<Event>) -> Result<(), Failure> {
    let shim = Shim::connect(pod).await?;
    let unbounded = ttrpc::context::with_duration(Duration::ZERO);
    let request = EventsRequest::new();
    let mut stream = shim.ask(shim.operator().events(unbounded, &request)).await?;
    while let Ok(Some(event)) = stream.recv().await {
        let at = trace::now();
        let missed = (event.missed > 0).then(|| format!("{} events were missed", event.missed));
        let known: Option<Reported> = serde_json::from_str(&event.json).ok();
        let name = known.map(|known| format!("{} {}", known.kind, known.container)).or(missed);
        let Some(name) = name else { continue };
        if events.send(Event { at, name, detail: event.json }).is_err() {
            break;
        }
    }
    Ok(())
}

fn wanted(selected: Selected<'_>, flags: &Trace) -> Result<Wanted> {
    let pod = selected.pod();
    let traced = |container: &&crate::node::Container| {
        let cgroup = Cgroup::open(container.cgroup.saved().clone())?;
        anyhow::Ok(Traced { name: ps::called(container).to_owned(), cgroup })
    };
    let containers = ps::containers(selected);
    let name = if pod.name().is_empty() { select::short(&pod.id) } else { pod.name() };
    Ok(Wanted {
        name: name.to_owned(),
        containers: containers.iter().map(traced).collect::<Result<_>>()?,
        boot: pod.boot(),
        with_boot: selected.container().is_none(),
        duration: flags.duration,
        limit: flags.limit,
    })
}

fn print(flags: &Trace, recorded: &Recorded) -> Result<()> {
    let Recorded { records, threads, seconds, bytes, lost, .. } = recorded;
    let size = show::bytes(*bytes);
    show::line(&format!(
        "{}: {records} records of {threads} threads in {seconds:.1} s, {size}; \
         open it at ui.perfetto.dev",
        flags.output.display()
    ))?;
    if let Some(why) = match recorded.ended {
        Ended::Time => None,
        Ended::Full => Some("it ended early at the size of --limit"),
        Ended::Stopped => Some("it was stopped early"),
        Ended::PodEnded => Some("it ended early: no process is left"),
    } {
        eprintln!("palisade: {why}");
    }
    if *lost > 0 {
        eprintln!("palisade: {lost} records were lost: the threads did more than could be read");
    }
    Ok(())
}
