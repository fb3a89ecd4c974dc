//! The metrics by name: those of containers as cAdvisor calls them, so that dashboards work, and
//! Palisade's own.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use sandbox_core::cgroup::stats::{CpuTimes, MemoryUsage, PidsStat, Psi};
use sandbox_core::sandbox::counters::{BOUNDS, Histogram, Operation};

use super::kept::Labels;
use super::scrape::{CgroupSample, Condition, PodSample, Process, Scrape};
use crate::node::network::Interface;

/// More labels of one value.
type More<'a> = &'a [(&'a str, &'a str)];

/// Takes a value of a metric.
type Emit<'a> = &'a mut dyn FnMut(More<'_>, f64);

/// A metric of a cgroup, and what it is made from.
struct OfCgroup {
    /// Without `_total`.
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    values: fn(&CgroupSample, Emit<'_>),
}

const NANOS: f64 = 1e9;
const MICROS: f64 = 1e6;

/// Makes the function that gives one value of a part of the usage, if that is there.
macro_rules! value {
    ($part:ident, $value:expr) => {
        |sample, emit| {
            if let Some(part) = &sample.usage.$part {
                emit(&[], $value(part));
            }
        }
    };
    (pressure.$part:ident, $line:ident) => {
        |sample, emit| {
            if let Some(psi) = &sample.usage.pressure.$part {
                emit(&[], waited(psi).$line);
            }
        }
    };
}

/// The seconds for which some, and all, waited.
struct Waited {
    some: f64,
    full: f64,
}

fn waited(psi: &Psi) -> Waited {
    Waited { some: psi.some.total as f64 / MICROS, full: psi.full.total as f64 / MICROS }
}

use MetricType::{Counter, Gauge};

/// All metrics of cgroups but those of block devices.
const OF_CGROUPS: &[OfCgroup] = &[
    OfCgroup {
        name: "container_cpu_usage_seconds",
        help: "CPU time",
        kind: Counter,
        values: |sample, emit| {
            if let Some(cpu) = &sample.usage.cpu {
                emit(&[("cpu", "total")], cpu.total as f64 / NANOS);
            }
        },
    },
    OfCgroup {
        name: "container_cpu_user_seconds",
        help: "CPU time in user space",
        kind: Counter,
        values: value!(cpu, |cpu: &CpuTimes| cpu.user as f64 / NANOS),
    },
    OfCgroup {
        name: "container_cpu_system_seconds",
        help: "CPU time in the kernel",
        kind: Counter,
        values: value!(cpu, |cpu: &CpuTimes| cpu.system as f64 / NANOS),
    },
    OfCgroup {
        name: "container_cpu_cfs_periods",
        help: "Periods of the CPU quota",
        kind: Counter,
        values: value!(cpu, |cpu: &CpuTimes| cpu.periods as f64),
    },
    OfCgroup {
        name: "container_cpu_cfs_throttled_periods",
        help: "Periods in which the CPU quota was used up",
        kind: Counter,
        values: value!(cpu, |cpu: &CpuTimes| cpu.throttled_periods as f64),
    },
    OfCgroup {
        name: "container_cpu_cfs_throttled_seconds",
        help: "Time for which threads waited for the next period of the CPU quota",
        kind: Counter,
        values: value!(cpu, |cpu: &CpuTimes| cpu.throttled as f64 / NANOS),
    },
    OfCgroup {
        name: "container_memory_usage_bytes",
        help: "Memory that is charged, with all pages of files",
        kind: Gauge,
        values: value!(memory, |memory: &MemoryUsage| memory.usage as f64),
    },
    OfCgroup {
        name: "container_memory_working_set_bytes",
        help: "Memory without pages of files that were not used lately, by which the kubelet evicts",
        kind: Gauge,
        values: value!(memory, |memory: &MemoryUsage| memory.working_set() as f64),
    },
    OfCgroup {
        name: "container_memory_rss",
        help: "Memory of no file in bytes",
        kind: Gauge,
        values: value!(memory, |memory: &MemoryUsage| memory.rss as f64),
    },
    OfCgroup {
        name: "container_memory_cache",
        help: "Pages of files in bytes",
        kind: Gauge,
        values: value!(memory, |memory: &MemoryUsage| memory.cache as f64),
    },
    OfCgroup {
        name: "container_memory_mapped_file",
        help: "Pages of files that are mapped in bytes",
        kind: Gauge,
        values: value!(memory, |memory: &MemoryUsage| memory.mapped_file as f64),
    },
    OfCgroup {
        name: "container_memory_swap",
        help: "Swapped memory in bytes",
        kind: Gauge,
        values: value!(memory, |memory: &MemoryUsage| memory.swap as f64),
    },
    OfCgroup {
        name: "container_memory_failcnt",
        help: "How often the memory limit was hit",
        kind: Gauge,
        values: value!(memory, |memory: &MemoryUsage| memory.failures as f64),
    },
    OfCgroup {
        name: "container_memory_failures",
        help: "Page faults, by whether a device was waited for",
        kind: Counter,
        values: |sample, emit| {
            if let Some(memory) = &sample.usage.memory {
                let scope = ("scope", "hierarchy");
                emit(&[("failure_type", "pgfault"), scope], memory.faults as f64);
                emit(&[("failure_type", "pgmajfault"), scope], memory.major_faults as f64);
            }
        },
    },
    OfCgroup {
        name: "container_spec_memory_limit_bytes",
        help: "Memory limit, 0 without one",
        kind: Gauge,
        values: value!(memory, |memory: &MemoryUsage| memory.limit.unwrap_or(0) as f64),
    },
    OfCgroup {
        name: "container_oom_events",
        help: "Processes that the kernel killed for lack of memory",
        kind: Counter,
        values: value!(oom_kills, |kills: &u64| *kills as f64),
    },
    OfCgroup {
        name: "container_processes",
        help: "Processes",
        kind: Gauge,
        values: |sample, emit| emit(&[], sample.usage.processes as f64),
    },
    OfCgroup {
        name: "container_threads",
        help: "Threads",
        kind: Gauge,
        values: value!(threads, |threads: &PidsStat| threads.current as f64),
    },
    OfCgroup {
        name: "container_threads_max",
        help: "Limit of threads, 0 without one",
        kind: Gauge,
        values: value!(threads, |threads: &PidsStat| threads.limit as f64),
    },
    OfCgroup {
        name: "container_pressure_cpu_waiting_seconds",
        help: "Time in which some thread waited for a CPU",
        kind: Counter,
        values: value!(pressure.cpu, some),
    },
    OfCgroup {
        name: "container_pressure_cpu_stalled_seconds",
        help: "Time in which all threads waited for a CPU",
        kind: Counter,
        values: value!(pressure.cpu, full),
    },
    OfCgroup {
        name: "container_pressure_memory_waiting_seconds",
        help: "Time in which some thread waited for memory",
        kind: Counter,
        values: value!(pressure.memory, some),
    },
    OfCgroup {
        name: "container_pressure_memory_stalled_seconds",
        help: "Time in which all threads waited for memory",
        kind: Counter,
        values: value!(pressure.memory, full),
    },
    OfCgroup {
        name: "container_pressure_io_waiting_seconds",
        help: "Time in which some thread waited for a device",
        kind: Counter,
        values: value!(pressure.io, some),
    },
    OfCgroup {
        name: "container_pressure_io_stalled_seconds",
        help: "Time in which all threads waited for a device",
        kind: Counter,
        values: value!(pressure.io, full),
    },
    OfCgroup {
        name: "container_start_time_seconds",
        help: "Time of creation since the Unix epoch",
        kind: Gauge,
        values: |sample, emit| {
            if let Some(created) = sample.created {
                emit(&[], created);
            }
        },
    },
];

/// The metrics of block devices: bytes and operations, read and written.
const OF_DEVICES: [(&str, &str); 4] = [
    ("container_fs_reads_bytes", "Bytes read from block devices"),
    ("container_fs_writes_bytes", "Bytes written to block devices"),
    ("container_fs_reads", "Reads of block devices"),
    ("container_fs_writes", "Writes to block devices"),
];

/// The metrics of interfaces: the numbers of one direction.
const OF_INTERFACES: [(&str, &str); 4] = [
    ("bytes", "Bytes"),
    ("packets", "Packets"),
    ("errors", "Errors of packets"),
    ("packets_dropped", "Packets dropped"),
];

/// What a registry encodes.
impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let to = &mut encoder;
        self.cgroups(to)?;
        self.devices(to)?;
        self.networks(to)?;
        self.pods(to)?;
        self.processes(to)?;
        self.counters(to)?;
        self.itself(to)
    }
}

impl Scrape {
    fn cgroups(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for family in OF_CGROUPS {
            let mut metric = to.encode_descriptor(family.name, family.help, None, family.kind)?;
            for sample in &self.cgroups {
                let mut outcome = Ok(());
                (family.values)(sample, &mut |more, value| {
                    if outcome.is_ok() {
                        outcome = one(&mut metric, &sample.labels, more, family.kind, value);
                    }
                });
                outcome?;
            }
        }
        Ok(())
    }

    fn devices(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (index, (name, help)) in OF_DEVICES.into_iter().enumerate() {
            let mut metric = to.encode_descriptor(name, help, None, Counter)?;
            for sample in &self.cgroups {
                for entry in &sample.usage.io {
                    let number = (entry.major, entry.minor);
                    let named = self.devices.iter().find(|(known, _)| *known == number);
                    let unnamed = || format!("{}:{}", entry.major, entry.minor);
                    let device = named.map_or_else(unnamed, |(_, name)| name.clone());
                    let value = [entry.rbytes, entry.wbytes, entry.rios, entry.wios][index];
                    let more = [("device", &*device)];
                    one(&mut metric, &sample.labels, &more, Counter, value as f64)?;
                }
            }
        }
        Ok(())
    }

    fn networks(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Direction = (&'static str, &'static str, fn(&Interface) -> [u64; 4]);
        const DIRECTIONS: [Direction; 2] = [
            ("receive", "received", |interface| interface.received),
            ("transmit", "sent", |interface| interface.sent),
        ];
        for (direction, verb, numbers) in DIRECTIONS {
            for (index, (what, help)) in OF_INTERFACES.into_iter().enumerate() {
                let name = format!("container_network_{direction}_{what}");
                let help = format!("{help} {verb} by the pod");
                let mut metric = to.encode_descriptor(&name, &help, None, Counter)?;
                for pod in &self.pods {
                    for interface in &pod.interfaces {
                        let more = [("interface", &*interface.name)];
                        let value = numbers(interface)[index] as f64;
                        one(&mut metric, &pod.network_labels, &more, Counter, value)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn pods(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut namespaces: BTreeMap<&str, ([u64; Condition::ALL.len()], u64)> = BTreeMap::new();
        for pod in &self.pods {
            let (conditions, containers) = namespaces.entry(&pod.namespace).or_default();
            conditions[pod.condition as usize] += 1;
            *containers += pod.containers as u64;
        }
        let help = "Pods of the node, by the namespace of containerd and by condition";
        let mut metric = to.encode_descriptor("palisade_pods", help, None, Gauge)?;
        for (namespace, (conditions, _)) in &namespaces {
            for (condition, number) in Condition::ALL.iter().zip(conditions) {
                let own = [("containerd_namespace", *namespace), ("condition", condition.name())];
                one(&mut metric, &Labels::new(), &own, Gauge, *number as f64)?;
            }
        }
        let help = "Containers of the node, by the namespace of containerd";
        let mut metric = to.encode_descriptor("palisade_containers", help, None, Gauge)?;
        for (namespace, (_, containers)) in &namespaces {
            let own = [("containerd_namespace", *namespace)];
            one(&mut metric, &Labels::new(), &own, Gauge, *containers as f64)?;
        }
        let help = "Whether a part of a pod is there: its shim, its sandbox process (boot), and \
                    state that can be read";
        let mut metric = to.encode_descriptor("palisade_pod_up", help, None, Gauge)?;
        for pod in self.pods.iter().filter(|pod| pod.condition != Condition::Changing) {
            let parts = [
                ("shim", pod.shim.is_some()),
                ("boot", pod.boot.is_some()),
                ("state", pod.condition != Condition::Torn),
            ];
            for (part, there) in parts {
                one(&mut metric, &pod.labels, &[("part", part)], Gauge, f64::from(there))?;
            }
        }
        Ok(())
    }

    fn processes(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Kind = (&'static str, &'static str, fn(Process) -> u64);
        const KINDS: [Kind; 2] = [
            (
                "palisade_pod_resident_memory_bytes",
                "Memory of a pod's shim and sandbox process (boot), with what all pods share",
                |process| process.resident,
            ),
            (
                "palisade_pod_anonymous_memory_bytes",
                "Memory of a pod's shim and sandbox process (boot) that no other pod shares",
                |process| process.anonymous,
            ),
        ];
        for (name, help, bytes) in KINDS {
            let mut metric = to.encode_descriptor(name, help, None, Gauge)?;
            for pod in &self.pods {
                let PodSample { shim, boot, labels, .. } = pod;
                for (part, process) in [("shim", shim), ("boot", boot)] {
                    if let Some(process) = process {
                        let value = bytes(*process) as f64;
                        one(&mut metric, labels, &[("part", part)], Gauge, value)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn counters(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Time that the shims took for what succeeded: making a pod with its first \
                    container, another container, starting it, and executing a process in it";
        let name = "palisade_operation_seconds";
        let mut metric = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (operation, times) in Operation::TIMED.into_iter().zip(&self.totals.times) {
            histogram(&mut metric, operation, times)?;
        }
        let help = "Requests that the shims answered with an error";
        let mut metric = to.encode_descriptor("palisade_operation_errors", help, None, Counter)?;
        for (operation, errors) in Operation::ALL.into_iter().zip(self.totals.errors) {
            let own = [("operation", operation.name())];
            one(&mut metric, &Labels::new(), &own, Counter, errors as f64)?;
        }
        let help = "System calls that were refused to containers with a user log, by the rule";
        let mut metric = to.encode_descriptor("palisade_refusals", help, None, Counter)?;
        for ((rule, name), times) in &self.totals.refusals {
            let own = [("rule", *rule), ("name", name)];
            one(&mut metric, &Labels::new(), &own, Counter, *times as f64)?;
        }
        Ok(())
    }

    fn itself(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = to.encode_descriptor(
            "palisade_build",
            "The version of the command that serves this",
            None,
            MetricType::Info,
        )?;
        metric.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        let help = "Time that it took to read all of this";
        let mut metric = to.encode_descriptor("palisade_scrape_seconds", help, None, Gauge)?;
        metric.encode_gauge(&self.took.as_secs_f64())
    }
}

/// Encodes one value.
fn one(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels,
    more: More<'_>,
    kind: MetricType,
    value: f64,
) -> fmt::Result {
    let all = (labels.as_slice(), more);
    let mut metric = metric.encode_family(&all)?;
    match kind {
        Counter => metric.encode_counter::<NoLabelSet, _, f64>(&value, None),
        _ => metric.encode_gauge(&value),
    }
}

fn histogram(
    metric: &mut MetricEncoder<'_>,
    operation: Operation,
    times: &Histogram,
) -> fmt::Result {
    let bounds = BOUNDS.iter().map(|millis| *millis as f64 / 1000.0);
    let bounds = bounds.chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(times.buckets).collect();
    let labels = [("operation", operation.name())];
    let mut metric = metric.encode_family(&labels)?;
    let sum = times.sum as f64 / NANOS;
    metric.encode_histogram::<NoLabelSet>(sum, times.count(), &buckets, None)
}
