//! `palisade inspect`: how a container was planned.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use operator_api::operator::InspectRequest;
use serde_json::Value;

use crate::arguments::{Common, Target};
use crate::node::Node;
use crate::shim::{Shim, bounded};
use crate::{select, show};

/// Flags of `palisade inspect`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Prints a JSON document, whatever --format says: namespaces, ID mappings, \
    capabilities, mounts (with the flags that are locked), the seccomp profile and which system \
    calls the baseline refuses, as far as that hangs on no argument, the cgroup, the CPUs and the memory that \
    the container is told, what the spec grants without effect, and each option in force with \
    where its value comes from: default, a file, config_body (of containerd's runtime options), \
    or an annotation.\n\n\
    The shim answers, so that it is what counts, and not what a spec or a file says by now."
)]
pub(crate) struct Inspect {
    #[command(flatten)]
    target: Target,
    /// Also prints the arguments and the values of the environment, which may contain secrets
    #[arg(long)]
    values: bool,
}

/// Prints the plan.
pub(crate) async fn inspect(common: &Common, flags: &Inspect) -> Result<ExitCode> {
    let node = Node::of(common)?;
    let selected = select::find(&node, &flags.target.id)?;
    let shim = Shim::connect(selected.pod()).await?;
    let request =
        InspectRequest { id: selected.id().into(), values: flags.values, ..Default::default() };
    let answer = shim.ask(shim.operator().inspect(bounded(), &request)).await?;
    let value: Value = serde_json::from_str(&answer.json).context("read the shim's answer")?;
    show::json(&value)?;
    Ok(ExitCode::SUCCESS)
}
