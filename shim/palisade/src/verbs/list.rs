//! `palisade list`: the pods and containers of this node.

use std::process::ExitCode;

use anyhow::Result;

use crate::arguments::{Common, Format, List};
use crate::node::Node;
use crate::select::short;
use crate::show;

/// Lists the pods and containers.
pub(crate) async fn list(common: &Common, flags: &List) -> Result<ExitCode> {
    let node = Node::of(common)?;
    let mut table = show::table(&["ID", "POD", "NAME", "NAMESPACE", "AGE", "BOOT", "SHIM"]);
    for pod in &node.pods {
        for container in &pod.containers {
            let id = if flags.no_trunc { &container.id } else { short(&container.id) };
            table.add_row([
                id.to_owned(),
                pod.name().to_owned(),
                container.name().to_owned(),
                pod.namespace.clone(),
                show::age(container.created),
                pod.boot().map(|pid| pid.to_string()).unwrap_or_default(),
                pod.shim().map(|pid| pid.to_string()).unwrap_or_default(),
            ]);
        }
    }
    match common.format {
        Format::Table if flags.quiet => {
            for container in node.pods.iter().flat_map(|pod| &pod.containers) {
                show::line(&container.id)?;
            }
        }
        Format::Table => show::print(&table)?,
        Format::Json => {}
    }
    Ok(ExitCode::SUCCESS)
}
