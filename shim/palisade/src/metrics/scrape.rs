//! The numbers of one scrape.

use std::fs;
use std::time::{Duration, Instant};

use sandbox_core::cgroup::stats::{Meter, Usage};
use sandbox_core::sandbox::state::Identity;

use super::kept::{Kept, KeptPod, Labels};
use super::totals::Totals;
use crate::node::living;
use crate::node::network::{Interface, interfaces};

/// All that was read.
#[derive(Debug)]
pub(super) struct Scrape {
    pub(super) pods: Vec<PodSample>,
    /// Of containers, and of the pods' cgroups.
    pub(super) cgroups: Vec<CgroupSample>,
    pub(super) totals: Totals,
    /// The names of block devices, by their numbers.
    pub(super) devices: Vec<((u64, u64), String)>,
    pub(super) took: Duration,
}

/// The numbers of one pod.
#[derive(Debug)]
pub(super) struct PodSample {
    pub(super) labels: Labels,
    pub(super) namespace: String,
    pub(super) condition: Condition,
    pub(super) containers: usize,
    pub(super) shim: Option<Process>,
    pub(super) boot: Option<Process>,
    /// The labels of the container that the network is counted for.
    pub(super) network_labels: Labels,
    pub(super) interfaces: Vec<Interface>,
}

/// How a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Condition {
    Running,
    /// It is being made or torn down.
    Changing,
    /// Its shim is gone.
    NoShim,
    /// boot is gone.
    NoBoot,
    /// Files of its state cannot be read.
    Torn,
}

impl Condition {
    pub(super) const ALL: [Self; 5] =
        [Self::Running, Self::Changing, Self::NoShim, Self::NoBoot, Self::Torn];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Changing => "changing",
            Self::NoShim => "no_shim",
            Self::NoBoot => "no_sandbox_process",
            Self::Torn => "torn",
        }
    }
}

/// The memory of one of Palisade's processes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) resident: u64,
    /// What it does not share with others of its program.
    pub(super) anonymous: u64,
}

/// One cgroup.
#[derive(Debug)]
pub(super) struct CgroupSample {
    pub(super) labels: Labels,
    /// The time of the container's creation; `None` for a pod.
    pub(super) created: Option<f64>,
    pub(super) usage: Usage,
}

impl Scrape {
    /// Reads all numbers of the pods that there are.
    pub(super) fn read(kept: &mut Kept) -> anyhow::Result<Self> {
        let begun = Instant::now();
        kept.refresh()?;
        let mut scrape = Self {
            pods: Vec::with_capacity(kept.pods.len()),
            cgroups: Vec::new(),
            totals: kept.totals(),
            devices: Vec::new(),
            took: Duration::ZERO,
        };
        let mut keys: Vec<_> = kept.pods.keys().collect();
        keys.sort_unstable();
        for key in keys {
            scrape.add(&key.0, &kept.pods[key]);
        }
        if scrape.cgroups.iter().any(|cgroup| !cgroup.usage.io.is_empty()) {
            scrape.devices = devices();
        }
        scrape.took = begun.elapsed();
        Ok(scrape)
    }

    fn add(&mut self, namespace: &str, pod: &KeptPod) {
        self.pods.push(PodSample::read(namespace, pod));
        if let Some(meter) = &pod.meter {
            self.add_cgroup(pod.labels_of_cgroup(meter), None, meter);
        }
        for container in pod.containers.values() {
            if let Some(meter) = &container.meter {
                self.add_cgroup(container.labels.clone(), Some(container.created), meter);
            }
        }
    }

    /// Adds a cgroup, unless it is gone by now.
    fn add_cgroup(&mut self, labels: Labels, created: Option<f64>, meter: &Meter) {
        if let Ok(Some(usage)) = meter.read() {
            self.cgroups.push(CgroupSample { labels, created, usage });
        }
    }
}

impl PodSample {
    fn read(namespace: &str, pod: &KeptPod) -> Self {
        let state = pod.state.as_ref();
        let alive = |identity: Option<Identity>| identity.and_then(living);
        let (boot, shim) = (alive(state.map(|s| s.boot)), alive(state.and_then(|s| s.shim)));
        let condition = match state {
            _ if pod.torn => Condition::Torn,
            None => Condition::Changing,
            Some(_) if boot.is_none() => Condition::NoBoot,
            Some(state) if state.shim.is_some() && shim.is_none() => Condition::NoShim,
            Some(_) => Condition::Running,
        };
        let root = pod.containers.values().find(|container| container.is_root);
        let interfaces = boot.filter(|_| !pod.host_network).map(interfaces).unwrap_or_default();
        Self {
            labels: pod.labels.clone(),
            namespace: namespace.to_owned(),
            condition,
            containers: pod.containers.len(),
            shim: shim.and_then(Process::read),
            boot: boot.and_then(Process::read),
            network_labels: root.map_or_else(|| pod.labels.clone(), |root| root.labels.clone()),
            interfaces,
        }
    }
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/statm")).ok()?)
    }

    /// Parses `statm`: pages of all memory, of what is resident, and of what of that is of files.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(' ').skip(1).map(|field| field.parse::<u64>().ok());
        let (resident, shared) = (fields.next()??, fields.next()??);
        let page = rustix::param::page_size() as u64;
        let bytes = |pages: u64| pages.saturating_mul(page);
        Some(Self { resident: bytes(resident), anonymous: bytes(resident.saturating_sub(shared)) })
    }
}

/// Reads the names of the block devices.
fn devices() -> Vec<((u64, u64), String)> {
    let text = fs::read_to_string("/proc/diskstats").unwrap_or_default();
    let device = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let number = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((number, format!("/dev/{}", fields.next()?)))
    };
    text.lines().filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read() {
        let page = rustix::param::page_size() as u64;
        let process = Process::parse("900 50 40 1 0 2 0\n").unwrap();
        assert_eq!((process.resident, process.anonymous), (50 * page, 10 * page));
        assert_eq!(Process::parse(""), None);
    }
}
