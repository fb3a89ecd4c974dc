//! `palisade events`: follows what happens in the pods of this node.

mod line;
mod victim;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use operator_api::operator::Event;

use self::line::Happened;
use crate::arguments::{Common, Format, names};
use crate::follow::Followed;
use crate::node::Node;
use crate::show;

/// Tells what happens from now on, in all pods or in one, also in pods that come later: starts,
/// execs, exits, kills for lack of memory with the process that the kernel chose, pauses, deletes,
/// what is refused to containers (of pods that have a user log, see the option user_log), and what
/// a spec grants without effect. It also tells that a pod has come or ended, that a shim has died,
/// and how many events it was too slow for.
///
/// Ends with Ctrl-C, or when the pod of --pod has ended. With --format json, each line is an object
/// with time, namespace, pod, container, type, and what belongs to that type. Nothing is noted
/// while nobody follows.
#[derive(Clone, Debug, Args)]
pub(crate) struct Events {
    /// Only the events of this pod: an ID, the beginning of one, or a name
    #[arg(long, value_name = "ID", add = ArgValueCompleter::new(names))]
    pod: Option<String>,
}

/// Follows the pods.
pub(crate) async fn events(common: &Common, flags: &Events) -> Result<ExitCode> {
    let mut followed = Followed::<Event>::begin(common, flags.pod.as_deref())?;
    let mut node = Node::default();
    while let Some(told) = followed.next().await? {
        let mut happened = Happened::read(&told);
        if happened.is_unknown_in(&node) {
            node = Node::of(common)?;
        }
        happened.name(&node);
        happened.find_victim();
        match common.format {
            Format::Json => show::line(&happened.json())?,
            Format::Table => show::line(&happened.text())?,
        }
    }
    Ok(ExitCode::SUCCESS)
}
