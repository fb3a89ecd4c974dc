//! Prints tables and JSON.

use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

/// Makes an empty table with these columns. It has no lines, so that what people copy out of it is
/// clean, and is as wide as its content where the output is no terminal.
pub(crate) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns.iter().copied());
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Aligns columns of numbers.
pub(crate) fn align_right(table: &mut Table, columns: &[usize]) {
    for index in columns {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Prints a table, without spaces at the ends of its lines. What would control a terminal does not:
/// names and commands are the containers'.
pub(crate) fn print(table: &Table) -> Result<()> {
    line(&text(table))
}

/// Returns what [`print()`] prints.
pub(crate) fn text(table: &Table) -> String {
    let lines: Vec<String> = table.lines().map(|line| harmless(line.trim_end())).collect();
    lines.join("\n")
}

/// Writes bytes as they are.
pub(crate) fn raw(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.context("write to the standard output"),
    }
}

/// Takes out what would control a terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Prints one line, or several.
pub(crate) fn line(text: &str) -> Result<()> {
    // A reader that has seen enough (`| head`) is no error: SIGPIPE ends other programs.
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.context("write to the standard output"),
    }
}

/// Prints a value as an indented JSON document.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Returns a number of bytes for people, as in `12.3M`: powers of 1024, as the kernel's tools.
pub(crate) fn bytes(number: u64) -> String {
    let mut value = number as f64;
    for unit in ["B", "K", "M", "G", "T"] {
        if value < 1024.0 {
            let whole = unit == "B" || value >= 100.0;
            return if whole { format!("{value:.0}{unit}") } else { format!("{value:.1}{unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.0}P")
}

/// Returns a span of time for people, in its two largest units.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

/// Returns how long ago a moment was, for people.
pub(crate) fn age(moment: Option<SystemTime>) -> String {
    let age = moment.and_then(|moment| SystemTime::now().duration_since(moment).ok());
    age.map(span).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_control_the_terminal() {
        assert_eq!(
            harmless("web\u{1b}[2J\u{9b}2J\r\n"),
            "web\u{fffd}[2J\u{fffd}2J\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(bytes(0), "0B");
        assert_eq!(bytes(1023), "1023B");
        assert_eq!(bytes(1536), "1.5K");
        assert_eq!(bytes(200 << 20), "200M");
        assert_eq!(bytes(u64::MAX), "16384P");
        assert_eq!(span(Duration::from_secs(59)), "59s");
        assert_eq!(span(Duration::from_secs(3700)), "1h1m");
        assert_eq!(span(Duration::from_secs(90000)), "1d1h");
    }
}
