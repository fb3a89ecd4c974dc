//! Collects figures one by one, and reports them as a table for the terminal,
//! as JSON, and as a plot.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Nanoseconds.
    Ns,
    /// Mebibytes.
    MiB,
    /// A number.
    Count,
}

impl Unit {
    /// Returns its symbol.
    pub fn symbol(self) -> &'static str {
        match self {
            Unit::Ms => "ms",
            Unit::Ns => "ns",
            Unit::MiB => "MiB",
            Unit::Count => "",
        }
    }
}

/// One line of the table: a measurement, and each runtime's figures.
#[derive(Debug)]
pub struct Row {
    /// The part of the benchmark.
    pub part: &'static str,
    /// The name of the measurement.
    pub what: String,
    /// Its unit.
    pub unit: Unit,
    /// The figures by runtime, in the order of the command line.
    pub values: Vec<Vec<f64>>,
}

/// All measurements.
#[derive(Debug)]
pub struct Report {
    runtimes: Vec<String>,
    rows: Vec<Row>,
    sections: Vec<Section>,
    notes: Vec<String>,
}

/// What does not fit into rows.
#[derive(Debug)]
struct Section {
    name: &'static str,
    json: Value,
    text: String,
}

impl Report {
    /// Makes an empty report for these runtimes.
    pub fn new(runtimes: Vec<String>) -> Report {
        Report { runtimes, rows: Vec::new(), sections: Vec::new(), notes: Vec::new() }
    }

    /// Returns the runtimes' names.
    pub fn runtimes(&self) -> &[String] {
        &self.runtimes
    }

    /// Returns the rows in the order in which they were first recorded.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Records one figure.
    pub fn record(
        &mut self,
        part: &'static str,
        what: &str,
        runtime: usize,
        unit: Unit,
        value: f64,
    ) {
        let row = self.rows.iter().position(|row| row.part == part && row.what == what);
        let row = row.unwrap_or_else(|| {
            let values = vec![Vec::new(); self.runtimes.len()];
            // Behind the last row of its part.
            let last = self.rows.iter().rposition(|row| row.part == part);
            let at = last.map_or(self.rows.len(), |last| last + 1);
            self.rows.insert(at, Row { part, what: what.to_owned(), unit, values });
            at
        });
        self.rows[row].values[runtime].push(value);
    }

    /// Adds a sentence: what could not be measured, and why.
    pub fn add_note(&mut self, note: String) {
        eprintln!("bench: {note}");
        self.notes.push(note);
    }

    /// Returns these sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Adds a section: a field of the JSON, and lines behind the table.
    pub fn add_section(&mut self, name: &'static str, json: Value, text: String) {
        self.sections.push(Section { name, json, text });
    }

    /// Records a time.
    pub fn time(&mut self, part: &'static str, what: &str, runtime: usize, took: Duration) {
        self.record(part, what, runtime, Unit::Ms, took.as_secs_f64() * 1e3);
    }

    /// Returns the table for people: median, p95, p99 and the ratio of the
    /// medians to the first runtime's.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let mut part = "";
        for row in &self.rows {
            if row.part != part {
                part = row.part;
                let _ = writeln!(table, "\n{part}");
            }
            let first = row.values.first().and_then(|values| Summary::of(values));
            for (name, values) in self.runtimes.iter().zip(&row.values) {
                let Some(summary) = Summary::of(values) else { continue };
                let what = format!("{} {}", row.what, row.unit.symbol());
                let Summary { median, p95, p99, count } = summary;
                let _ = write!(
                    table,
                    "  {what:<38} {name:<18} {median:>11.3} {p95:>11.3} {p99:>11.3} n={count:<4}"
                );
                let ratio = first.as_ref().map(|first| median / first.median);
                let _ = match ratio.filter(|ratio| ratio.is_finite()) {
                    Some(ratio) => writeln!(table, " {ratio:>7.3}"),
                    None => writeln!(table),
                };
            }
        }
        for note in &self.notes {
            let _ = writeln!(table, "\n{note}");
        }
        self.sections.iter().for_each(|section| table.push_str(&section.text));
        table
    }

    /// Returns the report as JSON.
    pub fn json(&self, machine: &Value) -> Value {
        let rows = self.rows.iter().map(|row| {
            let first = row.values.first().and_then(|values| Summary::of(values));
            let figures: BTreeMap<&str, Value> = self
                .runtimes
                .iter()
                .zip(&row.values)
                .filter_map(|(name, values)| {
                    let Summary { median, p95, p99, count } = Summary::of(values)?;
                    let ratio = first.as_ref().map(|first| median / first.median);
                    let figure = json!({
                        "median": median, "p95": p95, "p99": p99, "count": count, "ratio": ratio,
                    });
                    Some((name.as_str(), figure))
                })
                .collect();
            json!({
                "part": row.part, "what": row.what, "unit": row.unit.symbol(), "runtimes": figures,
            })
        });
        let mut all = json!({
            "machine": machine, "runtimes": self.runtimes, "notes": self.notes,
            "figures": rows.collect::<Vec<_>>(),
        });
        for section in &self.sections {
            all[section.name] = section.json.clone();
        }
        all
    }
}

/// The summary of the figures of one row and runtime.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The number of figures.
    pub count: usize,
}

impl Summary {
    /// Summarises figures. `None` without any.
    pub fn of(values: &[f64]) -> Option<Summary> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let at = |share: f64| {
            // The nearest rank, which is a figure that was measured.
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted[rank.saturating_sub(1).min(last)]
        };
        let middle = (sorted[last / 2] + sorted[sorted.len() / 2]) / 2.0;
        Some(Summary { median: middle, p95: at(0.95), p99: at(0.99), count: sorted.len() })
    }
}
