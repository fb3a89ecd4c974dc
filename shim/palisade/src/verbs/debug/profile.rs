//! `palisade debug cpu-profile`, `block-profile` and `mutex-profile`: where the time of a pod's
//! threads goes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use sandbox_inspect::formats::{self, Measure, Unit};
use sandbox_inspect::perf::{End, Watched};
use sandbox_inspect::profile::{self, Profile};
use serde::Serialize;

use super::output::Output;
use super::stop::until_stopped;
use super::values;
use crate::arguments::{Common, Named, Target};
use crate::exit::Failure;
use crate::node::Node;
use crate::select::{self, Selected};
use crate::show;
use crate::verbs::ps;

/// The functions that a table shows.
const ROWS: usize = 30;

/// Flags that all profiles have.
#[derive(Clone, Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(super) target: Target,
    /// How long
    #[arg(long, short, default_value = "10s", value_parser = values::duration)]
    pub(super) duration: Duration,
    /// The file to write. Its form is that of --format, or of its name: .svg, .folded, and pprof's
    /// otherwise. Without it, a table or what --format says is printed
    #[arg(long, short)]
    pub(super) output: Option<PathBuf>,
    /// Writes over a file that exists
    #[arg(long)]
    force: bool,
}

impl Flags {
    /// Makes the file to write, if one is named.
    pub(super) fn create_output(&self) -> Result<Option<(Output, File)>> {
        self.output.as_deref().map(|path| Output::create(path, self.force)).transpose()
    }
}

/// Flags of `palisade debug cpu-profile`.
///
/// The kernel looks so many times in a second at what each CPU does for the containers, in programs
/// and in the kernel. Functions have names where the program's file has symbols, debug information
/// is installed below /usr/lib/debug, or a JIT writes /tmp/perf-PID.map. Nothing runs inside, and
/// programs need no preparation. Ctrl-C ends early, and what was collected is kept.
#[derive(Clone, Debug, Args)]
pub(crate) struct CpuProfile {
    #[command(flatten)]
    flags: Flags,
    /// How many times in a second, up to 1000
    #[arg(long, short = 'F', default_value_t = 99, value_parser = clap::value_parser!(u64).range(1..=profile::MOST_SAMPLES))]
    frequency: u64,
}

/// Flags of `palisade debug block-profile`.
///
/// Shows how long threads were off the CPU, by their stacks and by what they waited for: a system
/// call, a page that was read from a file, a lock of the kernel's, or the CPU itself, which others
/// had. A wait that began before is not counted, nor is one that lasts longer.
#[derive(Clone, Debug, Args)]
pub(crate) struct BlockProfile {
    #[command(flatten)]
    flags: Flags,
}

/// Flags of `palisade debug mutex-profile`.
///
/// Shows how long threads waited for locks of programs (futex(2)), by their stacks and by the
/// address of the lock.
#[derive(Clone, Debug, Args)]
pub(crate) struct MutexProfile {
    #[command(flatten)]
    flags: Flags,
}

/// What is printed in JSON.
#[derive(Serialize)]
struct Document {
    samples: u64,
    lost: u64,
    seconds: f64,
    ended: &'static str,
    stacks: Vec<Stack>,
}

#[derive(Serialize)]
struct Stack {
    container: String,
    pid: i32,
    tid: i32,
    thread: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<String>,
    count: u64,
    seconds: f64,
    /// The innermost first.
    functions: Vec<String>,
}

/// Profiles the use of CPUs.
pub(crate) async fn cpu(common: &Common, verb: &CpuProfile) -> Result<ExitCode> {
    let measure =
        Measure { counted: "samples", time: "cpu", unit: Unit::Nanoseconds, title: "CPU time" };
    let frequency = verb.frequency;
    let period = 1_000_000_000 / frequency;
    let take = move |containers: &[Watched], duration, stop: &_| {
        profile::cpu(containers, frequency, duration, stop)
    };
    write(common, &verb.flags, measure, Some(period), take).await
}

/// Profiles waits of all kinds.
pub(crate) async fn block(common: &Common, verb: &BlockProfile) -> Result<ExitCode> {
    let measure = Measure {
        counted: "waits",
        time: "off_cpu",
        unit: Unit::Nanoseconds,
        title: "Time off the CPU",
    };
    let take = |containers: &[Watched], duration, stop: &_| {
        sandbox_inspect::waits::block(containers, duration, stop)
    };
    write(common, &verb.flags, measure, None, take).await
}

/// Profiles waits for locks.
pub(crate) async fn mutex(common: &Common, verb: &MutexProfile) -> Result<ExitCode> {
    let measure = Measure {
        counted: "waits",
        time: "contended",
        unit: Unit::Nanoseconds,
        title: "Time in contended locks",
    };
    let take = |containers: &[Watched], duration, stop: &_| {
        sandbox_inspect::waits::mutex(containers, duration, stop)
    };
    write(common, &verb.flags, measure, None, take).await
}

/// Takes a profile, and writes it as was asked.
async fn write(
    common: &Common,
    flags: &Flags,
    measure: Measure,
    period: Option<u64>,
    take: impl FnOnce(&[Watched], Duration, &AtomicBool) -> Result<Profile> + Send + 'static,
) -> Result<ExitCode> {
    let form = form(common.named, flags)?;
    let node = Node::of(common)?;
    let selected = select::find(&node, &flags.target.id)?;
    let (names, watched) = containers(selected)?;
    let output = flags.create_output()?;
    let duration = flags.duration;
    let profile = until_stopped(move |stop| take(&watched, duration, stop)).await?;
    let name = |index: usize| names.get(index).cloned().unwrap_or_default();
    let text = match form {
        Named::Pprof => formats::pprof(&profile, measure, period, name)?,
        Named::Folded => formats::folded(&profile, measure, name).into_bytes(),
        Named::Svg => formats::flame(&profile, measure, name)?,
        Named::Json => serde_json::to_vec_pretty(&document(&profile, name))?,
        Named::Table => table(&profile, measure).into_bytes(),
    };
    print(flags, output, &text, &profile, measure)?;
    warn(&profile, measure);
    Ok(ExitCode::SUCCESS)
}

/// Writes a profile to the file that was named, or prints it.
pub(super) fn print(
    flags: &Flags,
    output: Option<(Output, File)>,
    text: &[u8],
    profile: &Profile,
    measure: Measure,
) -> Result<()> {
    let Some((output, mut file)) = output else { return show::raw(text) };
    let path = flags.output.clone().unwrap_or_default();
    file.write_all(text).with_context(|| format!("write {}", path.display()))?;
    output.keep();
    let (count, took) = (profile.total().count, profile.outcome.took.as_secs_f64());
    let what = measure.counted;
    show::line(&format!("{}: {count} {what} in {took:.1} s", path.display()))
}

/// Returns the form in which to write.
pub(super) fn form(named: Named, flags: &Flags) -> Result<Named> {
    let form = form_of(named, flags.output.as_deref());
    if form == Named::Pprof && flags.output.is_none() && std::io::stdout().is_terminal() {
        let why = "--format pprof: not to a terminal; name a file with -o".to_owned();
        return Err(Failure::Failed(why).into());
    }
    Ok(form)
}

fn form_of(named: Named, output: Option<&Path>) -> Named {
    let by_name = |path: &Path| match path.extension().and_then(|end| end.to_str()) {
        Some("svg") => Named::Svg,
        Some("folded" | "txt") => Named::Folded,
        Some("json") => Named::Json,
        _ => Named::Pprof,
    };
    match (named, output) {
        (Named::Table, Some(path)) => by_name(path),
        (named, _) => named,
    }
}

/// Returns the names and the cgroups of what is profiled.
fn containers(selected: Selected<'_>) -> Result<(Vec<String>, Vec<Watched>)> {
    let mut found = (Vec::new(), Vec::new());
    for container in ps::containers(selected) {
        let watched = Watched::of(&container.cgroup, selected.pod().boot())
            .with_context(|| format!("the container {} is in no cgroup", container.id))?;
        found.0.push(ps::called(container).to_owned());
        found.1.push(watched);
    }
    Ok(found)
}

fn document(profile: &Profile, container: impl Fn(usize) -> String) -> Document {
    let outcome = &profile.outcome;
    let stack = |line: &profile::Line| Stack {
        container: container(line.who.container),
        pid: line.who.pid,
        tid: line.who.tid,
        thread: line.thread.clone(),
        waits_for: line.detail.clone(),
        count: line.weight.count,
        seconds: line.weight.time as f64 / 1e9,
        functions: line.stack.iter().map(|function| function.name.clone()).collect(),
    };
    Document {
        samples: outcome.samples,
        lost: outcome.lost,
        seconds: outcome.took.as_secs_f64(),
        ended: match outcome.end {
            End::Deadline => "time",
            End::Stopped => "stopped",
            End::NoProcess => "no-process",
        },
        stacks: profile.lines.iter().map(stack).collect(),
    }
}

/// Returns the functions in which most time was spent, with what was called from them.
fn table(profile: &Profile, measure: Measure) -> String {
    // By function: in itself, and with all that it called.
    let mut functions: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for line in &profile.lines {
        let mut seen = BTreeSet::new();
        for (depth, function) in line.stack.iter().enumerate() {
            let key = (function.name.as_str(), function.file.as_str());
            let sums = functions.entry(key).or_default();
            if depth == 0 {
                sums.0 += line.weight.time;
            }
            if seen.insert(key) {
                sums.1 += line.weight.time;
            }
        }
    }
    let total = profile.total().time.max(1);
    let mut rows: Vec<_> = functions.into_iter().collect();
    rows.sort_by_key(|(_, sums)| Reverse(*sums));
    let mut table = show::table(&["SELF", "SELF%", "TOTAL%", "FUNCTION", "FILE"]);
    let share = |time: u64| format!("{:.1}", 100.0 * time as f64 / total as f64);
    for ((name, file), (own, all)) in rows.into_iter().take(ROWS) {
        let own_time = format!("{:.3}s", own as f64 / 1e9);
        table.add_row([own_time, share(own), share(all), name.to_owned(), file.to_owned()]);
    }
    show::align_right(&mut table, &[0, 1, 2]);
    let (count, time) = (profile.total().count, profile.total().time as f64 / 1e9);
    let mut text = format!("{count} {}, {time:.3} s of {}\n\n", measure.counted, measure.title);
    text += &show::text(&table);
    text + "\n"
}

fn warn(profile: &Profile, measure: Measure) {
    match profile.outcome.end {
        End::Deadline => {}
        End::Stopped => eprintln!("palisade: it was stopped early"),
        End::NoProcess => eprintln!("palisade: it ended early: no process is left"),
    }
    if profile.outcome.lost > 0 {
        let lost = profile.outcome.lost;
        eprintln!("palisade: {lost} {} were lost: there was no room for them", measure.counted);
    }
}
