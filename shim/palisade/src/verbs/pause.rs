//! `palisade pause` and `palisade resume`: stop the processes of a container, and let them go on.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use containerd_shim_protos::api::{PauseRequest, ResumeRequest};
use serde_json::json;

use crate::arguments::{Common, Format, Target};
use crate::node::Node;
use crate::shim::{Shim, bounded};
use crate::{select, show};

/// Flags of `palisade pause` and `palisade resume`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    target: Target,
}

/// Stops all processes of a container.
pub(crate) async fn pause(common: &Common, flags: &Pause) -> Result<ExitCode> {
    let (shim, id) = shim(common, flags).await?;
    let request = PauseRequest { id: id.clone(), ..Default::default() };
    shim.ask(shim.task().pause(bounded(), &request)).await?;
    say(common, &id, "paused")
}

/// Lets them go on.
pub(crate) async fn resume(common: &Common, flags: &Pause) -> Result<ExitCode> {
    let (shim, id) = shim(common, flags).await?;
    let request = ResumeRequest { id: id.clone(), ..Default::default() };
    shim.ask(shim.task().resume(bounded(), &request)).await?;
    say(common, &id, "running")
}

async fn shim(common: &Common, flags: &Pause) -> Result<(Shim, String)> {
    let node = Node::of(common)?;
    let (pod, container) = select::find(&node, &flags.target.id)?.one_container()?;
    Ok((Shim::connect(pod).await?, container.id.clone()))
}

/// Says what it is now to programs; people ask for what they typed.
fn say(common: &Common, id: &str, state: &str) -> Result<ExitCode> {
    if common.format == Format::Json {
        show::json(&json!({"id": id, "state": state}))?;
    }
    Ok(ExitCode::SUCCESS)
}
