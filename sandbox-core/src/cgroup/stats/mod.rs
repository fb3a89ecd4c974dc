//! The numbers of containerd's `io.containerd.cgroups.v1.Metrics` and
//! `v2.Metrics`, as plain structs whose fields have the names of those
//! messages.
//!
//! Omitted are `network`, which belongs to the network namespace, and version
//! 1's `cgroup_stats`, which containerd does not fill either. An absent
//! controller is `None`.

mod usage;
mod v1;
mod v2;

use std::fs;
use std::sync::OnceLock;

use super::{Cgroup, Dir, SavedCgroup};
use crate::error::{Error, Result};

pub use usage::{CpuTimes, MemoryUsage, Meter, Pressure, Usage};
pub use v1::{
    BlkioEntry, CpuUsageV1, MemoryEntry, MemoryOomControl, MemoryStatV1, StatsV1, Throttle,
};
pub use v2::{CpuStatV2, IoEntry, IoStat, MemoryEvents, MemoryStatV2, Psi, PsiLine, StatsV2};

/// The statistics of one cgroup and its children.
#[derive(Clone, Debug, PartialEq)]
pub enum Stats {
    /// Statistics of version 1.
    V1(Box<StatsV1>),
    /// Statistics of version 2.
    V2(Box<StatsV2>),
}

/// Processes and threads (`PidsStat`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidsStat {
    /// Their number.
    pub current: u64,
    /// The limit. Without one containerd reports 0 on version 1 and the largest
    /// number on version 2.
    pub limit: u64,
}

/// Huge pages of one size (`HugetlbStat`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugetlbStat {
    /// Bytes in use (`current` on version 2).
    pub usage: u64,
    /// The most bytes ever in use on version 1, the limit on version 2.
    pub max: u64,
    /// Number of times that the limit was hit.
    pub failcnt: u64,
    /// The page size, such as `2MB`.
    pub pagesize: String,
}

/// RDMA resources of one device (`RdmaEntry`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    /// The device, such as `mlx4_0`.
    pub device: String,
    /// Number of handles.
    pub hca_handles: u32,
    /// Number of objects.
    pub hca_objects: u32,
}

/// RDMA resources (`RdmaStat`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaStat {
    /// The amounts in use.
    pub current: Vec<RdmaEntry>,
    /// The limits.
    pub limit: Vec<RdmaEntry>,
}

impl Cgroup {
    /// Reads the statistics. Those of a cgroup that is gone are empty, so they
    /// must be read before the cgroup is removed.
    pub fn stats(&self) -> Result<Stats> {
        if self.is_absent() {
            return Err(Error::internal("the container has no cgroup that counts what it uses"));
        }
        Ok(if self.saved.v2 {
            Stats::V2(Box::new(v2::read(&self.saved.dirs[0].path)?))
        } else {
            Stats::V1(Box::new(v1::read(self)?))
        })
    }

    /// Reads the statistics of the cgroup above: in Kubernetes the pod's, which counts
    /// the pod's containers and what no cgroup of a container counts any more.
    pub fn stats_of_parent(&self) -> Result<Stats> {
        self.above().stats()
    }

    /// Returns the cgroup above, or this one where there is none.
    fn above(&self) -> Cgroup {
        let parent = |dir: &Dir| {
            let path = dir.path.parent().filter(|parent| parent.starts_with(&dir.mount));
            Dir { path: path.unwrap_or(&dir.path).to_path_buf(), ..dir.clone() }
        };
        let dirs = self.saved.dirs.iter().map(parent).collect();
        let saved = SavedCgroup { dirs, unit: None, ..self.saved.clone() };
        Cgroup::of(saved)
    }
}

/// Returns the sizes of huge pages as the hugetlb controller names them
/// (hugetlb.rst).
fn huge_page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let mut sizes: Vec<_> = entries
            .filter_map(|e| {
                e.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
            })
            .collect();
        sizes.sort_unstable();
        sizes.into_iter().map(huge_page_name).collect()
    })
}

fn huge_page_name(kib: u64) -> String {
    match kib {
        k if k >= 1 << 20 => format!("{}GB", k >> 20),
        k if k >= 1 << 10 => format!("{}MB", k >> 10),
        k => format!("{k}KB"),
    }
}

/// Parses lines such as `mlx4_0 hca_handle=2 hca_object=max` (rdma.rst).
fn rdma_entries(text: &str) -> Vec<RdmaEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let mut entry = RdmaEntry { device: fields.next()?.to_owned(), ..RdmaEntry::default() };
        for field in fields {
            let (key, value) = field.split_once('=')?;
            let value = super::file::number(value)?.try_into().unwrap_or(u32::MAX);
            match key {
                "hca_handle" => entry.hca_handles = value,
                "hca_object" => entry.hca_objects = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_named_as_the_controller_names_them() {
        assert_eq!([64, 2048, 1 << 20].map(huge_page_name), ["64KB", "2MB", "1GB"]);
    }

    #[test]
    fn rdma_lines_are_read() {
        let entries = rdma_entries("mlx4_0 hca_handle=2 hca_object=max\n");
        assert_eq!((entries[0].hca_handles, entries[0].hca_objects), (2, u32::MAX));
    }
}
