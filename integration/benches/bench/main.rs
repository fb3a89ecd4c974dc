//! The benchmark: Palisade and its peers side by side, by turns, on one machine.
//!
//! `ci/bench` builds the programs and runs it. [`PARTS`] lists the
//! measurements. A *runtime* is a shim with its engine, a *part* is a group of
//! figures that can be run alone, a *turn* is one round through all runtimes.

mod bundle;
mod cost;
mod events;
mod lab;
mod machine;
mod markdown;
mod parts;
mod plot;
mod pod;
mod procs;
mod report;
mod runtime;
mod shim;
mod wire;

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::Lab;
use crate::report::Report;
use crate::runtime::Runtime;

/// A part's name on the command line, and its function.
type Part = (&'static str, fn(&mut Bench) -> Result<()>);

const PARTS: [Part; 13] = [
    ("shim", parts::one::run),
    ("waits", parts::waits::run),
    ("pods", parts::pods::run),
    ("containerd", parts::containerd::run),
    ("memory", parts::memory::run),
    ("idle", parts::idle::run),
    ("output", parts::output::run),
    ("burst", parts::burst::run),
    ("probe", parts::probe::run),
    ("beside", parts::beside::run),
    ("density", parts::density::run),
    ("inside", parts::inside::run),
    ("checkpoint", parts::checkpoint::run),
];

/// The input of every part.
struct Bench {
    lab: Lab,
    runtimes: Vec<Runtime>,
    runs: usize,
    report: Report,
}

/// The command line.
#[derive(Default)]
struct Arguments {
    parts: Vec<Part>,
    runtimes: Vec<Runtime>,
    runs: Option<usize>,
    json: Option<String>,
    plot: Option<String>,
    markdown: Option<String>,
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("inside") && std::env::args().len() == 2 {
        return parts::inside::work();
    }
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let lab = Lab::new()?;
    let (runtimes, unable) = able(&lab, arguments.runtimes)?;
    let names = runtimes.iter().map(|runtime| runtime.name.clone()).collect();
    let machine = machine::describe(&runtimes);
    let runs = arguments.runs.unwrap_or(50);
    let mut bench = Bench { lab, runtimes, runs, report: Report::new(names) };
    unable.into_iter().for_each(|note| bench.report.add_note(note));
    let mut failed = Vec::new();
    for (name, run) in arguments.parts {
        eprintln!("bench: {name}");
        // The figures of the other parts are useful nevertheless.
        if let Err(e) = run(&mut bench) {
            eprintln!("bench: {name}: {e:#}");
            failed.push(name);
        }
    }
    println!("{}\n{}", machine::sentence(&machine), machine::table(&machine));
    println!("{}", bench.report.table());
    if let Some(path) = arguments.json {
        let json = bench.report.json(&machine);
        fs::write(&path, format!("{json:#}\n")).with_context(|| format!("write {path}"))?;
    }
    if let Some(path) = arguments.plot {
        let svg = plot::svg(&bench.report, &machine::sentence(&machine));
        fs::write(&path, svg).with_context(|| format!("write {path}"))?;
    }
    if let Some(path) = arguments.markdown {
        let table = markdown::table(&bench.report, &machine);
        fs::write(&path, table).with_context(|| format!("write {path}"))?;
    }
    ensure!(failed.is_empty(), "not measured to the end: {}", failed.join(", "));
    Ok(())
}

/// Returns the runtimes that can run one container on this machine, and why the
/// others cannot. The first, with which all others are compared, must be able to.
fn able(lab: &Lab, runtimes: Vec<Runtime>) -> Result<(Vec<Runtime>, Vec<String>)> {
    let (mut able, mut unable) = (Vec::new(), Vec::new());
    for (number, runtime) in runtimes.into_iter().enumerate() {
        match parts::one::one_container(lab, &runtime) {
            Ok(_) => able.push(runtime),
            Err(e) if number > 0 => {
                let version = machine::versions(&runtime);
                unable.push(format!("{} ({version}) does not run here: {e:#}", runtime.name));
            }
            Err(e) => return Err(e.context(format!("the first runtime, {}", runtime.name))),
        }
    }
    Ok((able, unable))
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments> {
        let mut arguments = Arguments::default();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--shim" => arguments.runtimes.push(value()?.parse()?),
                "--runs" => arguments.runs = Some(value()?.parse().context("--runs")?),
                "--json" => arguments.json = Some(value()?),
                "--plot" => arguments.plot = Some(value()?),
                "--markdown" => arguments.markdown = Some(value()?),
                // cargo passes this to every benchmark.
                "--bench" => {}
                "all" => arguments.parts.extend(PARTS),
                _ => match PARTS.iter().find(|(name, _)| *name == word) {
                    Some(part) => arguments.parts.push(*part),
                    None => bail!("no part or option {word}; {}", usage()),
                },
            }
        }
        let enough = !arguments.parts.is_empty() && !arguments.runtimes.is_empty();
        ensure!(enough, "{}", usage());
        Ok(arguments)
    }
}

fn usage() -> String {
    let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
    format!(
        "usage: bench PART... --shim NAME=EXECUTABLE[,engine=EXECUTABLE]... \
         [--runs N] [--json FILE] [--plot FILE] [--markdown FILE]\nparts: all, {}",
        names.join(", ")
    )
}
