//! The verbs, one file for each.

mod list;
pub(crate) mod logs;
pub(crate) mod man;

use std::process::ExitCode;

use anyhow::Result;

use crate::arguments::{Arguments, Verb};

/// Carries out what was typed. Returns the exit status.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let common = &arguments.common;
    match &arguments.verb {
        Verb::List(list) => list::list(common, list).await,
        Verb::Logs(flags) => logs::logs(common, flags).await,
        Verb::Man(flags) => man::man(flags),
    }
}
