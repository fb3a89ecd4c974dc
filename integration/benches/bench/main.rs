//! The benchmark: Palisade and its peers side by side, by turns, on one machine.
//!
//! `ci/bench` builds what is needed and runs it; `main` reads as the list of its
//! parts. The words used in here: a *runtime* is a shim with its engine, a
//! *part* is a group of figures that can be asked for alone, a *turn* is one
//! round through all runtimes.

mod bundle;
mod cost;
mod events;
mod lab;
mod parts;
mod report;
mod runtime;
mod shim;
mod wire;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::Lab;
use crate::report::Report;
use crate::runtime::Runtime;

const USAGE: &str = "usage: bench PART... --shim NAME=EXECUTABLE[,engine=EXECUTABLE]... \
    [--runs N] [--json FILE] [--plot FILE]\n\
    parts: shim, all";

/// What every part is given.
struct Bench {
    lab: Lab,
    runtimes: Vec<Runtime>,
    runs: usize,
    report: Report,
}

/// The command line.
#[derive(Default)]
struct Arguments {
    parts: Vec<String>,
    runtimes: Vec<Runtime>,
    runs: Option<usize>,
    json: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let names = arguments.runtimes.iter().map(|runtime| runtime.name.clone()).collect();
    let mut bench = Bench {
        lab: Lab::new()?,
        runtimes: arguments.runtimes,
        runs: arguments.runs.unwrap_or(50),
        report: Report::new(names),
    };
    let wanted = |part: &str| arguments.parts.iter().any(|asked| asked == part || asked == "all");
    if wanted("shim") {
        parts::one::run(&mut bench)?;
    }
    println!("{}", bench.report.table());
    if let Some(path) = arguments.json {
        let json = bench.report.json(&serde_json::Value::Null);
        std::fs::write(&path, format!("{json:#}\n")).with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments> {
        let mut arguments = Arguments::default();
        while let Some(word) = words.next() {
            let mut value =
                || words.next().with_context(|| format!("{word} needs a value; {USAGE}"));
            match word.as_str() {
                "--shim" => arguments.runtimes.push(value()?.parse()?),
                "--runs" => arguments.runs = Some(value()?.parse().context("--runs")?),
                "--json" => arguments.json = Some(value()?),
                // What cargo passes to every benchmark.
                "--bench" => {}
                _ if word.starts_with('-') => bail!("no option {word}; {USAGE}"),
                _ => arguments.parts.push(word),
            }
        }
        ensure!(!arguments.parts.is_empty() && !arguments.runtimes.is_empty(), "{USAGE}");
        Ok(arguments)
    }
}
