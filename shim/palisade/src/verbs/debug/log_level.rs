//! `palisade debug log-level`: changes what a pod's shim and sandbox process log.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use operator_api::operator::SetLogLevelRequest;
use serde_json::json;

use super::values;
use crate::arguments::{Common, Format, Target};
use crate::node::Node;
use crate::select::{self, short};
use crate::shim::{Shim, bounded};
use crate::show;

/// Flags of `palisade debug log-level`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Changes the level of both at once, without a restart of the pod. The level \
    of before is back after --for. Their lines are in containerd's log (journalctl -u containerd), \
    with sandbox= and the ID of the pod; those of the sandbox process begin with \"sandbox:\", and \
    its debug lines name the request that they belong to."
)]
pub(crate) struct LogLevel {
    #[command(flatten)]
    target: Target,
    /// The least important lines that are logged
    #[arg(value_enum)]
    level: Level,
    /// When the level of before is back, from 1s to 1h
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = seconds)]
    time: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Parses a time of whole seconds.
fn seconds(text: &str) -> Result<u32, String> {
    let time = values::duration(text)?;
    let whole = u32::try_from(time.as_secs()).ok();
    whole
        .filter(|whole| *whole > 0 && Duration::from_secs((*whole).into()) == time)
        .ok_or_else(|| format!("expected whole seconds, as in 30s, 10m or 1h, not {text:?}"))
}

/// Changes the level.
pub(crate) async fn log_level(common: &Common, flags: &LogLevel) -> Result<ExitCode> {
    let node = Node::of(common)?;
    let pod = select::find(&node, &flags.target.id)?.pod();
    let shim = Shim::connect(pod).await?;
    let level = flags.level.name();
    let request =
        SetLogLevelRequest { level: level.into(), seconds: flags.time, ..Default::default() };
    let answer = shim.ask(shim.operator().set_log_level(bounded(), &request)).await?;
    let time = Duration::from_secs(flags.time.into());
    match common.format {
        Format::Table => show::line(&format!(
            "the shim and the sandbox process of {} log at {level} for {}; before, at {}",
            short(&pod.id),
            show::span(time),
            answer.before
        ))?,
        Format::Json => show::json(&json!({
            "pod": pod.id, "level": level, "before": answer.before, "seconds": flags.time,
        }))?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_whole_seconds() {
        assert_eq!(seconds("10m"), Ok(600));
        assert_eq!(seconds("1s"), Ok(1));
        for wrong in ["0", "500ms", "1.5s", "2h", "soon"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
