//! The table of the documentation: the figures that people ask for, of one
//! machine.

use std::fmt::Write as _;

use serde_json::Value;

use crate::machine;
use crate::report::{Report, Row, Summary};

/// A measurement's part, its name there, and its name in the table.
const ROWS: [(&str, &str, &str); 27] = [
    ("one container", "all of it", "one container: start, Create, Start, exit, Delete, Shutdown"),
    ("one container", "Shutdown to process gone", "of which Shutdown to process gone"),
    ("one container", "CPU time", "its CPU time"),
    (
        "exec",
        "Exec + Start to TaskExit",
        "exec of `true` in the root container, request to exit event",
    ),
    (
        "exec, second container of a pod",
        "Exec + Start to TaskExit",
        "the same in a second container",
    ),
    ("pods", "1 up", "pod with 1 container up"),
    ("pods", "1 down", "the same down"),
    ("pods", "5 up", "pod with 5 containers up"),
    ("pods", "5 down", "the same down"),
    ("pods", "20 up", "pod with 20 containers up"),
    ("pods", "20 down", "the same down"),
    ("containerd, ctr", "run --rm true", "`ctr run --rm`"),
    ("containerd, CRI pod", "RunPodSandbox", "RunPodSandbox over CRI, with a bridge network"),
    ("memory per pod", "PSS at 20", "memory (PSS) per idle pod, at 20 pods"),
    ("memory per pod", "PSS at 200", "the same at 200 pods"),
    ("50 pods at once", "all of them up", "50 pods at once: all up after"),
    (
        "exec probes, 100 pods",
        "one",
        "exec probes, 100 pods each once a second: one, in the pod's second container",
    ),
    ("exec probes, 100 pods", "CPU used, % of one", "the same, CPU used, % of one"),
    ("exec probes, 100 root containers", "one", "the same in 100 root containers: one"),
    ("exec probes, 100 root containers", "CPU used, % of one", "the same, CPU used, % of one"),
    (
        "beside busy loops",
        "probes within their second, %",
        "beside 8 busy loops of the pod: 100 exec probes a second, within their second",
    ),
    ("beside busy loops", "one probe", "the same: one"),
    ("beside busy loops", "StopContainer", "beside 8 busy loops of the pod: StopContainer"),
    (
        "waits on the road, all operations",
        "one container: above 1 ms",
        "waits for the kernel above 1 ms, all operations on one container",
    ),
    (
        "waits on the road, all operations",
        "one container: grace periods",
        "of all of these, waits for a grace period",
    ),
    (
        "waits on the road, all operations",
        "pod: above 1 ms",
        "waits for the kernel above 1 ms, all operations on a pod",
    ),
    (
        "waits on the road, all operations",
        "pod: grace periods",
        "of all of these, waits for a grace period",
    ),
];

/// Returns the table, with the machine and the versions above it.
pub fn table(report: &Report, machine: &Value) -> String {
    let mut text = format!(
        "## {} CPUs, cgroup version {}\n\nMedians. {}\n\n{}\n",
        machine["nproc"],
        machine["cgroup"].as_str().unwrap_or("?"),
        machine::sentence(machine),
        machine::table(machine),
    );
    let names = report.runtimes();
    let _ = writeln!(text, "| | {} | ratio |", names.join(" | "));
    let _ = writeln!(text, "|---|{}---|", "---|".repeat(names.len()));
    for (part, what, label) in ROWS {
        let row = report.rows().iter().find(|row| row.part == part && row.what == what);
        if let Some(row) = row {
            let _ = writeln!(text, "| {label} | {} |", cells(row).join(" | "));
        }
    }
    let _ = writeln!(text, "\nThe ratio compares the last column with the first.");
    for note in report.notes() {
        let _ = writeln!(text, "\n{note}");
    }
    text
}

/// Returns each runtime's median, and the ratio of the last to the first.
fn cells(row: &Row) -> Vec<String> {
    let medians: Vec<Option<f64>> =
        row.values.iter().map(|values| Summary::of(values).map(|summary| summary.median)).collect();
    let cell = |median: &Option<f64>| match median {
        Some(median) => format!("{} {}", rounded(*median), row.unit.symbol()).trim().to_owned(),
        None => String::new(),
    };
    let ratio = match (medians.first().copied().flatten(), medians.last().copied().flatten()) {
        (Some(first), Some(last)) if first > 0.0 => format!("{:.2}", last / first),
        _ => String::new(),
    };
    medians.iter().map(cell).chain([ratio]).collect()
}

/// Returns a number with three digits that count.
fn rounded(number: f64) -> String {
    match number {
        100.0.. => format!("{number:.0}"),
        10.0..100.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}
