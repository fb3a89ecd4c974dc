//! `palisade logs`: where the output of a container is, and what Palisade logs of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use containerd_shim_protos::api::StateRequest;
use serde::Serialize;

use crate::arguments::{Common, Format, Target};
use crate::node::{Container, Node, Pod};
use crate::shim::{Shim, bounded};
use crate::{select, show};

/// Flags of `palisade logs`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    target: Target,
}

/// One place, and what is there.
#[derive(Debug, Serialize)]
struct Place {
    what: &'static str,
    place: String,
}

/// Prints the places.
pub(crate) async fn logs(common: &Common, flags: &Logs) -> Result<ExitCode> {
    let node = Node::of(common)?;
    let (pod, container) = select::find(&node, &flags.target.id)?.one_container()?;
    let mut places = output(pod, container).await?;
    let of_containerd = format!("containerd's log, lines with sandbox={}", pod.id);
    places.push(Place { what: "shim and sandbox process", place: of_containerd });
    match common.format {
        Format::Json => show::json(&places)?,
        Format::Table => {
            let mut table = show::table(&["WHAT", "PLACE"]);
            for Place { what, place } in places {
                table.add_row([what.to_owned(), place]);
            }
            show::print(&table)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns where the output of a container is kept: by the kubelet, by Docker, or by the client
/// that has given containerd the places.
async fn output(pod: &Pod, container: &Container) -> Result<Vec<Place>> {
    let kept = of_kubelet(pod, container).or_else(|| of_docker(container));
    if let Some(path) = kept {
        return Ok(vec![Place { what: "output and errors", place: path.display().to_string() }]);
    }
    let shim = Shim::connect(pod).await?;
    let request = StateRequest { id: container.id.clone(), ..Default::default() };
    let state = shim.ask(shim.task().state(bounded(), &request)).await?;
    let named = [("output", state.stdout), ("errors", state.stderr)];
    let there = named.into_iter().filter(|(_, place)| !place.is_empty());
    let mut places: Vec<Place> = there.map(|(what, place)| Place { what, place }).collect();
    if places.is_empty() {
        let place = "nowhere: the client wants neither output nor errors".to_owned();
        places.push(Place { what: "output and errors", place });
    }
    Ok(places)
}

/// Returns the newest log of the container below the pod's directory of logs.
fn of_kubelet(pod: &Pod, container: &Container) -> Option<PathBuf> {
    let names = &container.names;
    // A pod without a pause container has no bundle that says it: this is the kubelet's rule.
    let by_rule = || {
        let (space, pod, uid) =
            (names.namespace.as_ref()?, names.pod.as_ref()?, names.uid.as_ref()?);
        Some(Path::new("/var/log/pods").join(format!("{space}_{pod}_{uid}")))
    };
    let of_pod = pod.logs().map(Path::to_owned).or_else(by_rule)?;
    let directory = of_pod.join(names.container.as_ref()?);
    let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u32>().ok();
    let files = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    files.filter(|path| number(path).is_some()).max_by_key(number)
}

/// Returns the log of Docker's `json-file` driver.
fn of_docker(container: &Container) -> Option<PathBuf> {
    let id = &container.id;
    let path = Path::new("/var/lib/docker/containers").join(id).join(format!("{id}-json.log"));
    path.exists().then_some(path)
}
