//! `palisade events`: follows what happens in the pods of this node.

mod follow;
mod line;
mod victim;

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use tokio::sync::mpsc;

use self::follow::{Key, Told};
use self::line::Happened;
use crate::arguments::{Common, Format, names};
use crate::node::watch::Watch;
use crate::node::{Node, state_root};
use crate::{select, show};

/// The events of all pods that wait to be printed. A reader that is slower makes the shims drop
/// events, and say how many.
const WAITING: usize = 256;

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
    let only = match &flags.pod {
        None => None,
        Some(name) => {
            let node = Node::of(common)?;
            Some(Key::of(select::find(&node, name)?.pod()))
        }
    };
    let mut watch = Watch::new(&state_root(Some(common)))?;
    let (sender, mut told) = mpsc::channel(WAITING);
    // Whether the end of each was told.
    let mut followed: HashMap<Key, bool> = HashMap::new();
    loop {
        watch.cover()?;
        let mut pods = Node::of(common)?.pods;
        pods.retain(|pod| only.as_ref().is_none_or(|only| *only == Key::of(pod)));
        if only.is_some() && pods.is_empty() && followed.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        // One whose shim died may stay on disk, and is followed no more; one that is gone from
        // there may have an end that was not told yet.
        let on_disk: HashSet<Key> = pods.iter().map(Key::of).collect();
        followed.retain(|key, ended| on_disk.contains(key) || !*ended);
        for pod in pods.into_iter().filter(|pod| pod.state.is_some()) {
            followed.entry(Key::of(&pod)).or_insert_with(|| {
                tokio::spawn(follow::follow(pod, sender.clone()));
                false
            });
        }
        let ended = print_until_change(common, &mut watch, &mut told).await?;
        if ended.is_some() && ended == only {
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(ended) = ended.and_then(|key| followed.get_mut(&key)) {
            *ended = true;
        }
    }
}

/// Prints what is told until the pods on disk change, or one has ended. Returns that.
async fn print_until_change(
    common: &Common,
    watch: &mut Watch,
    told: &mut mpsc::Receiver<Told>,
) -> Result<Option<Key>> {
    let mut node = Node::default();
    loop {
        let told = tokio::select! {
            biased;
            told = told.recv() => told,
            changed = watch.changed() => return changed.map(|()| None),
        };
        let Some(told) = told else { return Ok(None) };
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
        if told.is_end() {
            return Ok(Some(told.pod));
        }
    }
}
