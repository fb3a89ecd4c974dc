//! `palisade list`: the pods and containers of this node.

use std::collections::HashMap;
use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use containerd_shim_protos::api::{StateRequest, Status};
use sandbox_core::cgroup::CapacityPolicy;
use sandbox_core::cgroup::stats::{Meter, Usage};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::arguments::{Common, Format};
use crate::exit::{self, Failure};
use crate::node::{Container, Node, Pod};
use crate::select::short;
use crate::shim::{Shim, bounded};
use crate::show;

/// Flags of `palisade list`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
STATE is what the shim answers: created, running, paused or stopped. A pod with trouble is listed \
as well: `changing` while it is made or torn down, `dead` if its sandbox process is gone, `torn` if \
its state cannot be read, and `?` where the shim is gone or gives no answer in time. Notes below \
say why, and the exit status is 4 if a shim has not answered.\n\n\
CPUS and MEMORY are what is used now, and what the container is told that it has: MEMORY without \
pages of files that were not used lately, as the kubelet computes it. IDS are the users of the \
host that the pod has for itself.")]
pub(crate) struct List {
    /// Prints whole IDs
    #[arg(long)]
    no_trunc: bool,
    /// Prints only IDs
    #[arg(long, short, conflicts_with = "no_trunc")]
    quiet: bool,
}

/// The shims that are asked at a time.
const AT_A_TIME: usize = 256;

/// The time over which the use of CPUs is measured.
const SAMPLE: Duration = Duration::from_millis(100);

/// One container, or a pod that has none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// Its ID; the pod's, if it has no container.
    id: String,
    name: String,
    /// containerd's namespace.
    namespace: String,
    /// The pod's ID.
    sandbox: String,
    /// The pod's name in Kubernetes.
    pod: String,
    /// Its namespace there.
    pod_namespace: String,
    image: Option<String>,
    state: &'static str,
    /// Seconds since 1970.
    created: Option<u64>,
    /// The CPUs that it is told it has.
    cpus: Option<u32>,
    cpus_used: Option<f64>,
    /// The bytes that it is told it has.
    memory: Option<u64>,
    memory_used: Option<u64>,
    processes: Option<u64>,
    ids: Option<Ids>,
    boot: Option<i32>,
    shim: Option<i32>,
    cgroup: Option<String>,
    bundle: Option<String>,
    /// What is wrong.
    trouble: Option<String>,
    #[serde(skip)]
    age: String,
}

/// Users of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Ids {
    first: u64,
    count: u64,
}

/// The states of a pod's containers by their IDs, or why they are not known.
type Answer = Result<HashMap<String, &'static str>, Failure>;

/// Lists the pods and containers.
pub(crate) async fn list(common: &Common, flags: &List) -> Result<ExitCode> {
    let node = Arc::new(Node::of(common)?);
    if flags.quiet && common.format == Format::Table {
        for pod in &node.pods {
            let ids = pod.containers.iter().map(|container| &container.id);
            ids.chain(pod.containers.is_empty().then_some(&pod.id))
                .try_for_each(|id| show::line(id))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let begun = Instant::now();
    let before = measure(&node);
    let answers = ask(&node).await;
    tokio::time::sleep(SAMPLE.saturating_sub(begun.elapsed())).await;
    let after = measure(&node);
    let rows = rows(&node, &answers, &before, &after);
    match common.format {
        Format::Table => print(&rows, flags)?,
        Format::Json if flags.quiet => {
            show::json(&rows.iter().map(|row| &row.id).collect::<Vec<_>>())?
        }
        Format::Json => show::json(&rows)?,
    }
    let silent = answers.iter().flatten().find_map(|answer| match answer {
        Err(failure @ Failure::NoAnswer(_)) => Some(failure.clone()),
        _ => None,
    });
    Ok(silent.map_or(ExitCode::SUCCESS, |failure| exit::of(&failure.into())))
}

/// What a container had used at a moment, by its ID.
type Measured = HashMap<String, (Instant, Usage, String)>;

fn measure(node: &Node) -> Measured {
    let of = |container: &Container| {
        let meter: Meter = container.cgroup.meter().ok()??;
        let usage = meter.read().ok()??;
        Some((container.id.clone(), (Instant::now(), usage, meter.path().to_owned())))
    };
    node.pods.iter().flat_map(|pod| &pod.containers).filter_map(of).collect()
}

/// Asks the shims of all pods at once. Returns nothing for a pod whose shim need not be asked.
async fn ask(node: &Arc<Node>) -> Vec<Option<Answer>> {
    let mut answers: Vec<Option<Answer>> = node.pods.iter().map(|_| None).collect();
    let room = Arc::new(Semaphore::new(AT_A_TIME));
    let mut asked = JoinSet::new();
    for index in 0..node.pods.len() {
        let (node, room) = (node.clone(), room.clone());
        asked.spawn(async move {
            let _place = room.acquire_owned().await;
            (index, ask_one(&node.pods[index]).await)
        });
    }
    while let Some(answered) = asked.join_next().await {
        if let Ok((index, answer)) = answered {
            answers[index] = answer;
        }
    }
    answers
}

async fn ask_one(pod: &Pod) -> Option<Answer> {
    if pod.state.is_none() || pod.boot().is_none() {
        return None;
    }
    Some(states(pod).await)
}

async fn states(pod: &Pod) -> Answer {
    let shim = Shim::connect(pod).await?;
    let mut states = HashMap::new();
    for container in &pod.containers {
        let request = StateRequest { id: container.id.clone(), ..Default::default() };
        match shim.ask(shim.task().state(bounded(), &request)).await {
            Ok(state) => {
                states.insert(container.id.clone(), name(state.status.enum_value_or_default()));
            }
            // The root container of a sandbox that no client has created is no task.
            Err(Failure::NotFound(_)) if container.id == pod.id => {
                states.insert(container.id.clone(), "running");
            }
            // It was deleted meanwhile.
            Err(Failure::NotFound(_)) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(states)
}

fn name(status: Status) -> &'static str {
    match status {
        Status::CREATED => "created",
        Status::RUNNING => "running",
        Status::PAUSED => "paused",
        Status::PAUSING => "pausing",
        Status::STOPPED => "stopped",
        Status::UNKNOWN => "?",
    }
}

fn rows(node: &Node, answers: &[Option<Answer>], before: &Measured, after: &Measured) -> Vec<Row> {
    let mut rows = Vec::new();
    for (pod, answer) in node.pods.iter().zip(answers) {
        let (boot, shim) = (pod.boot(), pod.shim());
        let of_pod = |id: &str| Row {
            id: id.to_owned(),
            name: String::new(),
            namespace: pod.namespace.clone(),
            sandbox: pod.id.clone(),
            pod: pod.name().to_owned(),
            pod_namespace: pod.kubernetes_namespace().to_owned(),
            image: None,
            state: state(pod, boot, answer.as_ref(), id),
            created: None,
            cpus: None,
            cpus_used: None,
            memory: None,
            memory_used: None,
            processes: None,
            ids: boot.and_then(ids),
            boot,
            shim,
            cgroup: None,
            bundle: None,
            trouble: trouble(pod, boot, answer.as_ref()),
            age: String::new(),
        };
        for container in &pod.containers {
            let mut row = of_pod(&container.id);
            row.complete(container, before, after);
            rows.push(row);
        }
        if pod.containers.is_empty() {
            rows.push(of_pod(&pod.id));
        }
    }
    rows
}

impl Row {
    fn complete(&mut self, container: &Container, before: &Measured, after: &Measured) {
        container.name().clone_into(&mut self.name);
        self.image.clone_from(&container.names.image);
        self.created = container
            .created
            .and_then(|time| Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs()));
        self.age = show::age(container.created);
        self.bundle = Some(container.bundle.display().to_string());
        if let Ok(capacity) = container.cgroup.capacity(CapacityPolicy::default())
            && !container.cgroup.is_absent()
        {
            (self.cpus, self.memory) = (Some(capacity.cpus), Some(capacity.memory));
        }
        let Some((now, usage, path)) = after.get(&container.id) else { return };
        self.cgroup = Some(path.clone());
        self.processes = Some(usage.processes);
        self.memory_used = usage.memory.map(|memory| memory.working_set());
        if let Some((earlier, first, _)) = before.get(&container.id)
            && let (Some(first), Some(last)) = (first.cpu, usage.cpu)
        {
            let used = last.total.saturating_sub(first.total) as f64 / 1e9;
            let time = now.duration_since(*earlier).as_secs_f64();
            self.cpus_used = Some((used / time * 100.0).round() / 100.0);
        }
    }
}

fn state(pod: &Pod, boot: Option<i32>, answer: Option<&Answer>, id: &str) -> &'static str {
    match answer {
        _ if pod.trouble.is_some() && pod.state.is_none() => "torn",
        _ if pod.state.is_none() => "changing",
        _ if boot.is_none() => "dead",
        Some(Ok(states)) => states.get(id).copied().unwrap_or("changing"),
        Some(Err(_)) | None => "?",
    }
}

/// Returns what is wrong with a pod, in a sentence.
fn trouble(pod: &Pod, boot: Option<i32>, answer: Option<&Answer>) -> Option<String> {
    if let Some(trouble) = &pod.trouble {
        return Some(trouble.clone());
    }
    if pod.state.is_some() && boot.is_none() {
        let shim = match pod.shim() {
            Some(_) => "its shim lives; delete the pod",
            None => "its shim as well; containerd cleans up when it starts again",
        };
        return Some(format!("the sandbox process of the pod {} is gone; {shim}", pod.id));
    }
    answer.and_then(|answer| Some(answer.as_ref().err()?.to_string()))
}

/// Returns the users of the host that a pod has for itself: the longest part of its map.
fn ids(boot: i32) -> Option<Ids> {
    parse_ids(&fs::read_to_string(format!("/proc/{boot}/uid_map")).ok()?)
}

fn parse_ids(map: &str) -> Option<Ids> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1).map(str::parse);
        Some(Ids { first: fields.next()?.ok()?, count: fields.next()?.ok()? })
    };
    let longest = map.lines().filter_map(line).max_by_key(|ids| ids.count)?;
    // All users: it has none of its own.
    (longest.count < u64::from(u32::MAX)).then_some(longest)
}

fn print(rows: &[Row], flags: &List) -> Result<()> {
    let mut table = show::table(&[
        "ID",
        "NAME",
        "POD",
        "NAMESPACE",
        "STATE",
        "AGE",
        "CPUS",
        "MEMORY",
        "IDS",
        "BOOT",
        "SHIM",
    ]);
    show::align_right(&mut table, &[6, 7]);
    for row in rows {
        let number =
            |number: Option<i32>| number.map_or("-".to_owned(), |number| number.to_string());
        let pod = match row.pod_namespace.as_str() {
            "" => short(&row.sandbox).to_owned(),
            namespace => format!("{namespace}/{}", row.pod),
        };
        let of = |used: Option<String>, told: Option<String>| match (used, told) {
            (None, None) => "-".to_owned(),
            (used, told) => {
                format!("{}/{}", used.unwrap_or("-".to_owned()), told.unwrap_or("-".to_owned()))
            }
        };
        let bytes = |number: Option<u64>| number.map(show::bytes);
        let id = if flags.no_trunc { &row.id } else { short(&row.id) };
        table.add_row([
            id.to_owned(),
            row.name.clone(),
            pod,
            row.namespace.clone(),
            row.state.to_owned(),
            row.age.clone(),
            of(
                row.cpus_used.map(|used| format!("{used:.2}")),
                row.cpus.map(|cpus| cpus.to_string()),
            ),
            of(bytes(row.memory_used), bytes(row.memory)),
            row.ids.map_or("-".to_owned(), |ids| format!("{}+{}", ids.first, ids.count)),
            number(row.boot),
            number(row.shim),
        ]);
    }
    show::print(&table)?;
    let mut told: Vec<&str> = rows.iter().filter_map(|row| row.trouble.as_deref()).collect();
    told.dedup();
    told.iter().for_each(|trouble| eprintln!("palisade: {trouble}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_a_pod_are_the_longest_part_of_its_map() {
        let map = "1073807360 1073807360 65536\n1073741825 1073741825 1\n";
        assert_eq!(parse_ids(map), Some(Ids { first: 1_073_807_360, count: 65536 }));
        assert_eq!(parse_ids("0 0 4294967295\n"), None);
        assert_eq!(parse_ids(""), None);
        assert_eq!(parse_ids("torn"), None);
    }
}
