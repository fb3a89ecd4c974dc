//! `palisade debug heap-profile`: what a pod's shim and sandbox process allocate and hold.

use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use operator_api::operator::{EndHeapProfileRequest, HeapPart, HeapProfileRequest};
use sandbox_inspect::formats::{self, Measure, Unit};
use sandbox_inspect::heap::{self, Heap};
use sandbox_inspect::perf::{End, Outcome};
use sandbox_inspect::profile::{Line, Profile};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::profile::{self, Flags};
use crate::arguments::{Common, Named};
use crate::exit::Failure;
use crate::node::{Node, Pod};
use crate::select;
use crate::shim::{PATIENCE, Shim, bounded};
use crate::show;

/// The call sites that a table shows.
const ROWS: usize = 30;

const MEASURE: Measure = Measure {
    counted: "objects",
    time: "space",
    unit: Unit::Bytes,
    title: "Memory that was allocated meanwhile and is held",
};

/// Flags of `palisade debug heap-profile`.
///
/// Switches a sampler of allocations on in the shim and the sandbox process of a pod, for a while.
/// Shown is what they have allocated in that time and still held at its end, by call site, as an
/// estimate by samples; what they held before is not. The sampler ends with this command, however
/// that ends. `palisade debug memory` shows what all processes of a pod have, the workload's too.
#[derive(Clone, Debug, Args)]
pub(crate) struct HeapProfile {
    #[command(flatten)]
    flags: Flags,
    /// One in so many bytes is sampled, up to 1048576; 1 samples each allocation
    #[arg(long, value_name = "BYTES", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    every: u32,
}

/// What is printed in JSON.
#[derive(Serialize)]
struct Document<'a> {
    pod: &'a str,
    every: u32,
    samples: u64,
    seconds: f64,
    ended: &'static str,
    processes: &'a [Process],
    stacks: Vec<Stack>,
}

/// One of Palisade's processes.
#[derive(Default, Serialize)]
struct Process {
    process: &'static str,
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    build_id: Option<String>,
    /// What was allocated and is held.
    held: u64,
    allocated: u64,
    allocations: u64,
    freed: u64,
    frees: u64,
    lost: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
}

#[derive(Serialize)]
struct Stack {
    process: &'static str,
    objects: u64,
    bytes: u64,
    /// The innermost first.
    functions: Vec<String>,
}

/// Takes a profile.
pub(crate) async fn heap_profile(common: &Common, verb: &HeapProfile) -> Result<ExitCode> {
    let form = profile::form(common.named, &verb.flags)?;
    let node = Node::of(common)?;
    let pod = select::find(&node, &verb.flags.target.id)?.pod();
    let shim = Shim::connect(pod).await?;
    let mut processes = processes(pod);
    let output = verb.flags.create_output()?;
    let profile = take(&shim, verb, &mut processes).await?;
    for (index, process) in processes.iter_mut().enumerate() {
        let own = profile.lines.iter().filter(|line| line.who.container == index);
        process.held = own.map(|line| line.weight.time).sum();
    }
    let name = |index: usize| processes.get(index).map_or("", |p| p.process).to_owned();
    let text = match form {
        Named::Pprof => formats::pprof(&profile, MEASURE, Some(verb.every.into()), name)?,
        Named::Folded => formats::folded(&profile, MEASURE, name).into_bytes(),
        Named::Svg => formats::flame(&profile, MEASURE, name)?,
        Named::Json => serde_json::to_vec_pretty(&document(pod, verb, &profile, &processes))?,
        Named::Table => table(&profile, &processes).into_bytes(),
    };
    profile::print(&verb.flags, output, &text, &profile, MEASURE)?;
    warn(&profile, &processes);
    let complete = processes.iter().all(|process| process.missing.is_none());
    match complete || profile.outcome.end == End::NoProcess {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(ExitCode::from(4)),
    }
}

/// Returns the shim, and the sandbox process if it lives.
fn processes(pod: &Pod) -> Vec<Process> {
    let of = |process, pid| Process {
        process,
        pid,
        build_id: heap::build_id(pid),
        ..Process::default()
    };
    let boot = pod.boot().map(|pid| of("sandbox", pid));
    [of("shim", pod.shim().unwrap_or_default())].into_iter().chain(boot).collect()
}

/// Has the samples taken, and receives them.
async fn take(shim: &Shim, verb: &HeapProfile, processes: &mut [Process]) -> Result<Profile> {
    let mut heap = Heap::of(processes.iter().map(|process| process.pid));
    let duration = verb.flags.duration;
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let request = HeapProfileRequest { every: verb.every, milliseconds, ..Default::default() };
    let (mut stopped, mut is_stopped) = (pin!(stopped()?), false);
    let unbounded = ttrpc::context::with_duration(Duration::ZERO);
    let mut stream = shim.ask(shim.operator().heap_profile(unbounded, &request)).await?;
    let begun = Instant::now();
    let mut took = None;
    loop {
        let next = tokio::select! {
            next = timeout(PATIENCE, stream.recv()) => next,
            () = &mut stopped, if !is_stopped => {
                is_stopped = true;
                let end = EndHeapProfileRequest::new();
                // It may be at its end already.
                let _ = shim.ask(shim.operator().end_heap_profile(bounded(), &end)).await;
                continue;
            }
        };
        let part = next.map_err(|_| shim.silent(PATIENCE))?;
        let Some(part) = part.map_err(|error| shim.failure(error))? else { break };
        receive(&mut heap, processes, verb.every, part, begun, &mut took)?;
    }
    let took = took.ok_or_else(|| Failure::NoAnswer("the shim has sent no profile".to_owned()))?;
    let end = match is_stopped {
        true => End::Stopped,
        false if took + Duration::from_millis(500) < duration => End::NoProcess,
        false => End::Deadline,
    };
    let lost = processes.iter().fold(0_u64, |sum, process| sum.saturating_add(process.lost));
    let samples = heap.samples;
    Ok(heap.finish(Outcome { end, samples, lost, took }))
}

/// Takes what was received of one process.
fn receive(
    heap: &mut Heap,
    processes: &mut [Process],
    every: u32,
    part: HeapPart,
    begun: Instant,
    took: &mut Option<Duration>,
) -> Result<()> {
    let index = usize::from(part.of_boot);
    // That of a pod that was made meanwhile is not known.
    let Some(process) = processes.get_mut(index) else { return Ok(()) };
    if part.totals {
        took.get_or_insert_with(|| begun.elapsed());
        (process.allocated, process.allocations) = (part.allocated, part.allocations);
        (process.freed, process.frees, process.lost) = (part.freed, part.frees, part.lost);
        process.missing = Some(part.missing).filter(|missing| !missing.is_empty());
    }
    heap.add(index, process.pid, every, &part.samples)
}

/// Takes Ctrl-C, SIGTERM and the end of a terminal from now on. The future ends with the first.
fn stopped() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

fn document<'a>(
    pod: &'a Pod,
    verb: &HeapProfile,
    profile: &Profile,
    processes: &'a [Process],
) -> Document<'a> {
    let stack = |line: &Line| Stack {
        process: processes.get(line.who.container).map_or("", |process| process.process),
        objects: line.weight.count,
        bytes: line.weight.time,
        functions: line.stack.iter().map(|function| function.name.clone()).collect(),
    };
    Document {
        pod: &pod.id,
        every: verb.every,
        samples: profile.outcome.samples,
        seconds: profile.outcome.took.as_secs_f64(),
        ended: match profile.outcome.end {
            End::Deadline => "time",
            End::Stopped => "stopped",
            End::NoProcess => "no-process",
        },
        processes,
        stacks: profile.lines.iter().map(stack).collect(),
    }
}

/// Returns what each process has allocated, and the call sites that hold most of it.
fn table(profile: &Profile, processes: &[Process]) -> String {
    let mut totals = show::table(&["PROCESS", "PID", "ALLOCATED", "FREED", "HELD OF IT"]);
    for process in processes {
        let pid = process.pid.to_string();
        let sums = [process.allocated, process.freed, process.held].map(show::bytes);
        totals.add_row([&[process.process.to_owned(), pid][..], &sums].concat());
    }
    show::align_right(&mut totals, &[1, 2, 3, 4]);
    let mut sites = show::table(&["HELD", "OBJECTS", "PROCESS", "CALL SITE", "CALLED BY"]);
    for line in by_site(profile).into_iter().take(ROWS) {
        let process = processes.get(line.process).map_or("", |process| process.process);
        let (bytes, objects) = (show::bytes(line.bytes), line.objects.to_string());
        sites.add_row([&bytes, &objects, process, line.site, line.caller]);
    }
    show::align_right(&mut sites, &[0, 1]);
    format!("{}\n\n{}\n", show::text(&totals), show::text(&sites))
}

/// What one call site holds.
#[derive(Clone, Copy)]
struct Site<'a> {
    process: usize,
    site: &'a str,
    caller: &'a str,
    bytes: u64,
    objects: u64,
}

/// Returns the call sites, those that hold most first.
fn by_site(profile: &Profile) -> Vec<Site<'_>> {
    let mut all: Vec<Site<'_>> = Vec::new();
    for line in &profile.lines {
        let at = heap::call_site(&line.stack).unwrap_or(0);
        let name = |at: usize| line.stack.get(at).map_or("?", |function| function.name.as_str());
        let caller = line.stack.get(at + 1..).and_then(heap::call_site);
        let caller = caller.map_or("", |beyond| name(at + 1 + beyond));
        let (process, site) = (line.who.container, name(at));
        let (bytes, objects) = (line.weight.time, line.weight.count);
        let same =
            |its: &&mut Site<'_>| (its.process, its.site, its.caller) == (process, site, caller);
        match all.iter_mut().find(same) {
            Some(its) => (its.bytes, its.objects) = (its.bytes + bytes, its.objects + objects),
            None => all.push(Site { process, site, caller, bytes, objects }),
        }
    }
    all.sort_by_key(|site| std::cmp::Reverse(site.bytes));
    all
}

fn warn(profile: &Profile, processes: &[Process]) {
    match profile.outcome.end {
        End::Deadline => {}
        End::Stopped => eprintln!("palisade: it was stopped early"),
        End::NoProcess => eprintln!("palisade: it ended early: the pod has ended"),
    }
    for (index, process) in processes.iter().enumerate() {
        if let Some(missing) = &process.missing {
            let missing = show::harmless(missing);
            eprintln!("palisade: the part of the sandbox process is not complete: {missing}");
        }
        if process.lost > 0 {
            let (lost, whose) = (process.lost, process.process);
            eprintln!("palisade: {whose}: {lost} samples were lost; a larger --every takes fewer");
        }
        let own = profile.lines.iter().filter(|line| line.who.container == index);
        let mut functions = own.flat_map(|line| &line.stack).peekable();
        if functions.peek().is_some() && functions.all(|function| function.name.starts_with("0x")) {
            let id = process.build_id.as_deref().unwrap_or("none");
            eprintln!(
                "palisade: {}: its program has no symbols, so functions are shown by their offsets \
                 in the file; symbols are looked for by its build ID, {id}, in \
                 /usr/lib/debug/.build-id",
                process.process
            );
        }
    }
}
