//! What `start`, `delete` and `-info` answer, on standard output.

use std::io::Write;

use crate::error::{Context, Result};

/// Writes all of it, or says that it could not: what Rust's standard output keeps
/// until the end of the process is lost without a word.
pub(crate) fn tell(what: &str, answer: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let told = stdout.write_all(answer).and_then(|()| stdout.flush());
    told.context(|| format!("write the {what} to stdout"))
}
