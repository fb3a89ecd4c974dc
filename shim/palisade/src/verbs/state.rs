//! `palisade state`: the state of a container as OCI defines it, and of the pod around it.

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use containerd_shim_protos::api::{StateRequest, StateResponse, Status};
use sandbox_inspect::processes::{self, Process};
use serde::{Deserialize, Serialize};

use crate::arguments::{Common, Format, Target};
use crate::exit::Failure;
use crate::node::{Container, Node, Pod};
use crate::shim::{self, Shim};
use crate::{exit, select, show};

/// Flags of `palisade state`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Prints the state of a container; of a pod, that of its root container.\n\n\
    With --format json it is the document of OCI's runtime specification, as `runc state` \
    prints it, and beside it the pod with its shim and its sandbox process. The shim is asked \
    for the status. If it does not answer, the status is what the kernel shows, the shim's \
    part says why, and the exit status is 4."
)]
pub(crate) struct State {
    #[command(flatten)]
    target: Target,
}

/// The document of OCI, and the pod.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    oci_version: String,
    id: &'a str,
    /// 0 if no process runs.
    pid: u32,
    status: &'static str,
    bundle: String,
    rootfs: String,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_status: Option<u32>,
    annotations: BTreeMap<String, String>,
    pod: OfPod<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OfPod<'a> {
    namespace: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    shim: OfShim<'a>,
    boot: OfBoot,
    containers: Vec<&'a str>,
}

#[derive(Serialize)]
struct OfShim<'a> {
    /// Null if it does not live.
    pid: Option<i32>,
    address: &'a str,
    /// Why it has not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

#[derive(Serialize)]
struct OfBoot {
    /// Null if it does not live.
    pid: Option<i32>,
    /// The letter of proc_pid_stat(5): `T` if it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<char>,
}

/// What is read of a container's spec.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    oci_version: String,
    annotations: BTreeMap<String, String>,
    root: Root,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Root {
    path: String,
}

/// Prints the state.
pub(crate) async fn state(common: &Common, flags: &State) -> Result<ExitCode> {
    let node = Node::of(common)?;
    let selected = select::find(&node, &flags.target.id)?;
    let pod = selected.pod();
    let root = || pod.containers.first();
    let none = || Failure::NotFound(format!("the pod {} has no container", pod.id));
    let container = selected.container().or_else(root).ok_or_else(none)?;
    let answer = ask(pod, container).await;
    let (answer, failure) = match answer {
        Ok(answer) => (Some(answer), None),
        Err(failure) => (None, Some(failure)),
    };
    let document = document(pod, container, answer, failure.as_ref());
    match common.format {
        Format::Table => print(&document)?,
        Format::Json => show::json(&document)?,
    }
    Ok(failure.map_or(ExitCode::SUCCESS, |failure| {
        eprintln!("palisade: {failure}");
        exit::of(&failure.into())
    }))
}

async fn ask(pod: &Pod, container: &Container) -> Result<StateResponse, Failure> {
    let shim = Shim::connect(pod).await?;
    let request = StateRequest { id: container.id.clone(), ..Default::default() };
    shim.ask(shim.task().state(shim::bounded(), &request)).await
}

fn document<'a>(
    pod: &'a Pod,
    container: &'a Container,
    answer: Option<StateResponse>,
    failure: Option<&Failure>,
) -> Document<'a> {
    let (status, pid, exit_status) = match answer {
        Some(answer) => {
            let status = name(answer.status.enum_value_or_default());
            let ended = status == "stopped";
            (status, if ended { 0 } else { answer.pid }, ended.then_some(answer.exit_status))
        }
        None => {
            let (status, pid) = of_kernel(pod, container);
            (status, pid, None)
        }
    };
    let spec = fs::read(container.bundle.join("config.json")).ok();
    let spec: Spec = spec.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let state = pod.state.as_ref();
    let boot = pod.boot();
    let seen = boot.and_then(|pid| Process::read(sandbox_core::types::HostPid(pid)));
    Document {
        oci_version: spec.oci_version,
        id: &container.id,
        pid,
        status,
        bundle: container.bundle.display().to_string(),
        rootfs: container.bundle.join(spec.root.path).display().to_string(),
        created: container
            .created
            .and_then(|time| Some(time.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs())),
        exit_status,
        annotations: spec.annotations,
        pod: OfPod {
            namespace: &pod.namespace,
            id: &pod.id,
            name: pod.name(),
            shim: OfShim {
                pid: pod.shim(),
                address: state.map_or("", |state| state.address.as_str()),
                trouble: failure.map(ToString::to_string),
            },
            boot: OfBoot { pid: boot, state: seen.map(|process| process.state) },
            containers: pod.containers.iter().map(|container| container.id.as_str()).collect(),
        },
    }
}

/// Returns the status as OCI calls it; `paused` is runc's.
fn name(status: Status) -> &'static str {
    match status {
        Status::CREATED => "created",
        Status::RUNNING => "running",
        Status::STOPPED => "stopped",
        Status::PAUSED | Status::PAUSING => "paused",
        Status::UNKNOWN => "unknown",
    }
}

/// Returns the status that the kernel shows, and the first process.
fn of_kernel(pod: &Pod, container: &Container) -> (&'static str, u32) {
    let processes = Process::of(&container.cgroup).unwrap_or_default();
    let boot = pod.boot();
    // boot stands in for a pause container, and else is no process of the container's.
    let stands_in = container.id == pod.id && container.names.is_pause;
    let first = processes::first(&processes, boot)
        .filter(|first| stands_in || Some(first.pid.0) != boot)
        .map(|first| first.pid.0.cast_unsigned());
    match first {
        None => ("stopped", 0),
        Some(pid) if container.cgroup.is_frozen().unwrap_or(false) => ("paused", pid),
        Some(pid) => ("running", pid),
    }
}

fn print(document: &Document<'_>) -> Result<()> {
    let Document { pod, .. } = document;
    let living = |pid: Option<i32>| pid.map_or_else(|| "gone".to_owned(), |pid| pid.to_string());
    let stopped = if pod.boot.state == Some('T') { ", stopped by a signal" } else { "" };
    let exit = document.exit_status.map(|code| format!(", exit status {code}")).unwrap_or_default();
    let silent = if pod.shim.trouble.is_some() { ", no answer" } else { "" };
    let seen = if pod.shim.trouble.is_some() { " (by the kernel)" } else { "" };
    let mut table = show::table(&["ID", document.id]);
    for (what, value) in [
        ("STATUS", format!("{}{exit}{seen}", document.status)),
        ("PID", document.pid.to_string()),
        ("BUNDLE", document.bundle.clone()),
        ("ROOTFS", document.rootfs.clone()),
        ("POD", [pod.id, pod.name].join(" ").trim_end().to_owned()),
        ("NAMESPACE", pod.namespace.to_owned()),
        ("SHIM", living(pod.shim.pid) + silent),
        ("BOOT", living(pod.boot.pid) + stopped),
    ] {
        table.add_row([what.to_owned(), value]);
    }
    show::print(&table)
}
