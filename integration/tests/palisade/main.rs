//! What an operator types: every verb of `palisade` against real pods.

mod acting;
mod doctor;
mod documents;
mod heap;
mod list;
mod looking;
mod metrics;
mod naming;
mod operator;
mod profiles;
mod spans;
mod stacks;
mod terminals;
mod trace;

use std::process::{Command, Output};

/// How one command ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit status, if no signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it said besides.
    pub errors: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), errors: text(&output.stderr) }
    }
}

/// Returns the command `palisade` with arguments.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(integration::built::palisade_executables().join("palisade"));
    command.args(args);
    command
}

/// Runs `palisade` to its end.
pub fn palisade(args: &[&str]) -> Ran {
    command(args).output().expect("run palisade").into()
}

/// Runs `palisade`, which must succeed, and returns what it prints.
#[track_caller]
pub fn shows(args: &[&str]) -> String {
    let ran = palisade(args);
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""), "{args:?}: {}", ran.out);
    ran.out
}

/// Runs `palisade --format json`, which must succeed, and returns the document.
#[track_caller]
pub fn json(args: &[&str]) -> serde_json::Value {
    let args = [args, &["--format", "json"]].concat();
    let text = shows(&args);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}
