//! Prints the results of `start`, `delete` and `-info` on standard output.

use std::io::Write;

use crate::error::{Context, Result};

/// Prints all of `result`, or returns an error. What Rust's standard output
/// still buffers at the end of a process would be lost silently.
pub(crate) fn print(what: &str, result: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let printed = stdout.write_all(result).and_then(|()| stdout.flush());
    printed.context(|| format!("write the {what} to stdout"))
}
