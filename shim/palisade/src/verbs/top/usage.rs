//! What containers have used, by their cgroups, and pods, by their network.

use std::collections::HashMap;
use std::fs;
use std::time::Instant;

use sandbox_core::cgroup::CapacityPolicy;
use sandbox_core::cgroup::stats::Usage;
use serde::Serialize;

use crate::node::network::{self, Interface};
use crate::node::{Container, Node, Pod};

/// What all containers had used at a moment.
pub(super) struct Sample {
    at: Instant,
    /// By pod and container.
    used: HashMap<(String, String), Usage>,
}

/// What a pod has received and sent, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Network {
    pub(super) received: u64,
    pub(super) sent: u64,
}

/// One line: a container or a pod.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    pub(super) namespace: String,
    pub(super) id: String,
    pub(super) pod_id: String,
    pub(super) pod: String,
    pub(super) name: String,
    pub(super) cpu_percent: f64,
    pub(super) cpu_seconds: f64,
    pub(super) memory: u64,
    /// Null where nothing limits it below the host's memory.
    pub(super) memory_limit: Option<u64>,
    pub(super) memory_percent: Option<f64>,
    pub(super) processes: u64,
    pub(super) block_read: u64,
    pub(super) block_written: u64,
    /// Of the whole pod. Null in the network of the host.
    pub(super) network: Option<Network>,
}

impl Sample {
    /// Reads the cgroups of all containers.
    pub(super) fn take(node: &Node) -> Self {
        let at = Instant::now();
        let used = node.pods.iter().flat_map(|pod| {
            let of = |container: &Container| {
                let used = container.cgroup.meter().ok()??.read().ok()??;
                Some(((pod.id.clone(), container.id.clone()), used))
            };
            pod.containers.iter().filter_map(of).collect::<Vec<_>>()
        });
        Self { at, used: used.collect() }
    }

    /// Returns the lines, with the CPUs used since an earlier sample.
    pub(super) fn rows(&self, before: &Self, node: &Node, by_pod: bool) -> Vec<Row> {
        let elapsed = self.at.duration_since(before.at).as_nanos().max(1) as f64;
        let mut rows = Vec::new();
        for pod in &node.pods {
            let network = network(pod);
            let of = |container: &Container| {
                let key = (pod.id.clone(), container.id.clone());
                let now = self.used.get(&key)?;
                // One that was made meanwhile has used all of it since.
                let then = before.used.get(&key).map_or(0, cpu);
                let cpu = cpu(now).saturating_sub(then) as f64;
                Some(Row { network, ..row(pod, container, now, 100.0 * cpu / elapsed) })
            };
            let all: Vec<Row> = pod.containers.iter().filter_map(of).collect();
            match by_pod {
                true => rows.extend(all.into_iter().reduce(add).map(|sum| of_pod(pod, sum))),
                false => rows.extend(all),
            }
        }
        rows
    }
}

/// Returns the CPU time, in nanoseconds.
fn cpu(used: &Usage) -> u64 {
    used.cpu.map_or(0, |cpu| cpu.total)
}

fn row(pod: &Pod, container: &Container, used: &Usage, cpu_percent: f64) -> Row {
    let memory = used.memory.map_or(0, |memory| memory.working_set());
    let capacity = container.cgroup.capacity(CapacityPolicy::default()).ok();
    let limit = capacity.filter(|capacity| capacity.limited.memory);
    let memory_limit = limit.map(|capacity| capacity.memory);
    Row {
        namespace: pod.namespace.clone(),
        id: container.id.clone(),
        pod_id: pod.id.clone(),
        pod: pod.name().to_owned(),
        name: container.name().to_owned(),
        cpu_percent,
        cpu_seconds: cpu(used) as f64 / 1e9,
        memory,
        memory_limit,
        memory_percent: share(memory, memory_limit),
        processes: used.threads.map_or(used.processes, |threads| threads.current),
        block_read: used.io.iter().map(|device| device.rbytes).sum(),
        block_written: used.io.iter().map(|device| device.wbytes).sum(),
        network: None,
    }
}

/// Adds a container of the same pod. The sum has a limit if each has one.
fn add(sum: Row, other: Row) -> Row {
    let memory = sum.memory + other.memory;
    let memory_limit = sum.memory_limit.zip(other.memory_limit).map(|(a, b)| a + b);
    Row {
        cpu_percent: sum.cpu_percent + other.cpu_percent,
        cpu_seconds: sum.cpu_seconds + other.cpu_seconds,
        memory,
        memory_limit,
        memory_percent: share(memory, memory_limit),
        processes: sum.processes + other.processes,
        block_read: sum.block_read + other.block_read,
        block_written: sum.block_written + other.block_written,
        ..sum
    }
}

fn of_pod(pod: &Pod, sum: Row) -> Row {
    Row { id: pod.id.clone(), name: String::new(), ..sum }
}

fn share(memory: u64, limit: Option<u64>) -> Option<f64> {
    limit.filter(|limit| *limit > 0).map(|limit| 100.0 * memory as f64 / limit as f64)
}

/// Reads what has passed the network of a pod, if that is one of its own.
fn network(pod: &Pod) -> Option<Network> {
    let boot = pod.boot()?;
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let own = of(&boot.to_string())?;
    if Some(own) == of("self") {
        return None;
    }
    let all = network::interfaces(boot);
    let sum = |bytes: fn(&Interface) -> u64| all.iter().map(bytes).sum();
    Some(Network { received: sum(|one| one.received[0]), sent: sum(|one| one.sent[0]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_limited_if_all_its_containers_are() {
        let of = |memory, memory_limit| Row { memory, memory_limit, ..Row::default() };
        let sum = add(of(1, Some(10)), of(2, Some(20)));
        assert_eq!((sum.memory, sum.memory_limit, sum.memory_percent), (3, Some(30), Some(10.0)));
        assert_eq!(add(of(1, Some(10)), of(2, None)).memory_limit, None);
    }
}
