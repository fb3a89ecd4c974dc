//! The verbs, one file for each.

pub(crate) mod debug;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod inspect;
pub(crate) mod kill;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod metrics;
pub(crate) mod mounts;
pub(crate) mod pause;
pub(crate) mod ps;
pub(crate) mod spans;
pub(crate) mod state;
pub(crate) mod top;

use std::process::ExitCode;

use anyhow::Result;

use crate::arguments::{Arguments, Verb};

/// Carries out what was typed. Returns the exit status.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let common = &arguments.common;
    match &arguments.verb {
        Verb::Doctor(flags) => doctor::doctor(common, flags).await,
        Verb::Events(flags) => events::events(common, flags).await,
        Verb::Debug(verb) => debug::debug(common, verb).await,
        Verb::Exec(flags) => exec::exec(common, flags).await,
        Verb::Kill(flags) => kill::kill(common, flags).await,
        Verb::Pause(flags) => pause::pause(common, flags).await,
        Verb::Resume(flags) => pause::resume(common, flags).await,
        Verb::Inspect(flags) => inspect::inspect(common, flags).await,
        Verb::List(list) => list::list(common, list).await,
        Verb::Logs(flags) => logs::logs(common, flags).await,
        Verb::Mounts(flags) => mounts::mounts(common, flags).await,
        Verb::Ps(flags) => ps::ps(common, flags).await,
        Verb::Spans(flags) => spans::spans(common, flags).await,
        Verb::State(flags) => state::state(common, flags).await,
        Verb::Top(flags) => top::top(common, flags).await,
        Verb::Metrics(flags) => metrics::metrics(common, flags).await,
        Verb::Man(flags) => man::man(flags),
        Verb::ReadUsers(flags) => exec::read_users(flags),
    }
}
