//! `palisade kill`: sends a signal to a process of a container, or to all.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use containerd_shim_protos::api::KillRequest;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::arguments::{Common, Format, Target};
use crate::node::Node;
use crate::shim::{Shim, bounded};
use crate::{select, show};

/// Sends a signal to the first process of a container, or to all its processes
///
/// containerd is not needed, and the sandbox process takes no part.
#[derive(Clone, Debug, Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    target: Target,
    /// The signal: its name or its number
    #[arg(default_value = "TERM", value_parser = signal)]
    signal: u32,
    /// Sends it to all processes of the container
    #[arg(long, short, conflicts_with = "exec_id")]
    all: bool,
    /// Sends it to a process that containerd or `palisade exec` has added
    #[arg(long, value_name = "EXEC")]
    exec_id: Option<String>,
}

/// Sends the signal.
pub(crate) async fn kill(common: &Common, flags: &Kill) -> Result<ExitCode> {
    let node = Node::of(common)?;
    let (pod, container) = select::find(&node, &flags.target.id)?.one_container()?;
    let shim = Shim::connect(pod).await?;
    let request = KillRequest {
        id: container.id.clone(),
        exec_id: flags.exec_id.clone().unwrap_or_default(),
        signal: flags.signal,
        all: flags.all,
        ..Default::default()
    };
    shim.ask(shim.task().kill(bounded(), &request)).await?;
    if common.format == Format::Json {
        show::json(&json!({"id": container.id, "signal": flags.signal}))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Parses `9`, `KILL` or `SIGKILL`; a real-time signal has no name.
fn signal(text: &str) -> Result<u32, String> {
    let named = text.to_uppercase();
    let named = if named.starts_with("SIG") { named } else { format!("SIG{named}") };
    let number = match text.parse::<u32>() {
        Ok(number) => Some(number),
        Err(_) => named.parse::<Signal>().ok().map(|signal| (signal as i32).cast_unsigned()),
    };
    let is_one = |number: &u32| (1..=64).contains(number);
    number
        .filter(is_one)
        .ok_or_else(|| "expected a name such as TERM, or a number from 1 to 64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_a_name_or_a_number() {
        for text in ["9", "KILL", "kill", "SIGKILL"] {
            assert_eq!(signal(text), Ok(9), "{text}");
        }
        assert_eq!(signal("64"), Ok(64));
        for wrong in ["", "0", "65", "-1", "FOO", "SIG"] {
            assert!(signal(wrong).is_err(), "{wrong}");
        }
    }
}
