//! What containers have used, by their cgroups, and pods, by their network.

use std::collections::HashMap;
use std::fs;
use std::time::Instant;

use sandbox_core::cgroup::CapacityPolicy;
use sandbox_core::cgroup::stats::Stats;
use serde::Serialize;

use crate::node::{Container, Node, Pod};

/// What all containers had used at a moment.
pub(super) struct Sample {
    at: Instant,
    /// By pod and container.
    used: HashMap<(String, String), Used>,
}

/// What one container had used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Used {
    /// Nanoseconds.
    cpu: u64,
    memory: u64,
    processes: u64,
    block_read: u64,
    block_written: u64,
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
                let used = Used::of(&container.cgroup.stats().ok()?);
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
                let then = before.used.get(&key).copied().unwrap_or_default();
                let cpu = now.cpu.saturating_sub(then.cpu) as f64;
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

impl Used {
    fn of(stats: &Stats) -> Self {
        match stats {
            Stats::V1(stats) => {
                let memory = stats.memory.as_ref();
                let usage = memory.and_then(|memory| memory.usage).map_or(0, |usage| usage.usage);
                let inactive = memory.map_or(0, |memory| memory.total_inactive_file);
                let entries = stats.blkio.get("io_service_bytes_recursive");
                let bytes = |op: &str| {
                    let of_op = entries.into_iter().flatten().filter(|entry| entry.op == op);
                    of_op.map(|entry| entry.value).sum()
                };
                Self {
                    cpu: stats.cpu_usage.as_ref().map_or(0, |cpu| cpu.total),
                    memory: usage.saturating_sub(inactive),
                    processes: stats.pids.map_or(0, |pids| pids.current),
                    block_read: bytes("Read"),
                    block_written: bytes("Write"),
                }
            }
            Stats::V2(stats) => {
                let memory = stats.memory.unwrap_or_default();
                let devices = || stats.io.iter().flat_map(|io| &io.usage);
                Self {
                    cpu: stats.cpu.map_or(0, |cpu| cpu.usage_usec.saturating_mul(1000)),
                    memory: memory.usage.saturating_sub(memory.inactive_file),
                    processes: stats.pids.map_or(0, |pids| pids.current),
                    block_read: devices().map(|device| device.rbytes).sum(),
                    block_written: devices().map(|device| device.wbytes).sum(),
                }
            }
        }
    }
}

fn row(pod: &Pod, container: &Container, used: &Used, cpu_percent: f64) -> Row {
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
        cpu_seconds: used.cpu as f64 / 1e9,
        memory: used.memory,
        memory_limit,
        memory_percent: share(used.memory, memory_limit),
        processes: used.processes,
        block_read: used.block_read,
        block_written: used.block_written,
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
    Some(traffic(&fs::read_to_string(format!("/proc/{boot}/net/dev")).ok()?))
}

/// Adds up the devices of proc_pid_net(5) but the one that leads back to itself.
fn traffic(table: &str) -> Network {
    let mut all = Network { received: 0, sent: 0 };
    for line in table.lines() {
        let Some((device, counts)) = line.split_once(':') else { continue };
        let counts: Vec<u64> =
            counts.split_whitespace().map(|count| count.parse().unwrap_or(0)).collect();
        if device.trim() != "lo" {
            all.received += counts.first().unwrap_or(&0);
            all.sent += counts.get(8).unwrap_or(&0);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_devices_but_loopback_count() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes |bytes\n    \
            lo: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n  eth0: 7 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  \
            net1:1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0\n";
        assert_eq!(traffic(table), Network { received: 8, sent: 11 });
    }

    #[test]
    fn a_pod_is_limited_if_all_its_containers_are() {
        let of = |memory, memory_limit| Row { memory, memory_limit, ..Row::default() };
        let sum = add(of(1, Some(10)), of(2, Some(20)));
        assert_eq!((sum.memory, sum.memory_limit, sum.memory_percent), (3, Some(30), Some(10.0)));
        assert_eq!(add(of(1, Some(10)), of(2, None)).memory_limit, None);
    }
}
