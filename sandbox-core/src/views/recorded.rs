//! Sources made of recorded files of cgroups, for tests.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::sources::Sources;
use crate::types::ViewSource::{self, *};

const MEMORY_STAT_V1: &str = "\
cache 1000\nrss 2000\ninactive_file 300\nactive_file 400\nhierarchical_memory_limit 1073741824\n\
hierarchical_memsw_limit 1342177280\ntotal_cache 104857600\ntotal_rss 52428800\ntotal_rss_huge 4194304\n\
total_shmem 1048576\ntotal_mapped_file 20971520\ntotal_dirty 4096\ntotal_writeback 8192\n\
total_swap 16777216\ntotal_swapcached 0\ntotal_pgpgin 78000\ntotal_inactive_anon 31457280\n\
total_active_anon 20971520\ntotal_inactive_file 62914560\ntotal_active_file 40894464\n\
total_unevictable 0\n";

const MEMORY_STAT_V2: &str = "\
anon 52428800\nfile 104857600\nkernel 12582912\nkernel_stack 327680\npagetables 1048576\n\
sec_pagetables 0\npercpu 4096\nsock 0\nvmalloc 0\nshmem 1048576\nzswap 0\nzswapped 0\n\
file_mapped 20971520\nfile_dirty 4096\nfile_writeback 8192\nswapcached 0\nanon_thp 4194304\n\
file_thp 0\nshmem_thp 0\ninactive_anon 31457280\nactive_anon 20971520\ninactive_file 62914560\n\
active_file 40894464\nunevictable 0\nslab_reclaimable 6291456\nslab_unreclaimable 2097152\n\
slab 8388608\nworkingset_refault_anon 0\npgscan 0\n";

/// What Linux writes for a container with 1 GiB of memory, 256 MiB of swap, and one CPU and a
/// half, that uses 200 MiB.
const V1: &[(ViewSource, &str)] = &[
    (MemoryUsage, "209715200\n"),
    (MemoryStat, MEMORY_STAT_V1),
    (CpuQuota, "150000\n"),
    (CpuPeriod, "100000\n"),
    (CpuStat, "user 1000\nsystem 500\n"),
    (Cpus, "0-7\n"),
    (
        IoBytes,
        "254:0 Read 1048576\n254:0 Write 2097152\n254:0 Sync 3145728\n254:0 Async 0\n\
         254:0 Discard 4096\n254:0 Total 3149824\n7:1 Read 0\n7:1 Write 0\n7:1 Discard 0\n\
         7:1 Total 0\nTotal 3149824\n",
    ),
    (
        IoOperations,
        "254:0 Read 10\n254:0 Write 20\n254:0 Sync 30\n254:0 Async 0\n254:0 Discard 1\n\
         254:0 Total 31\nTotal 31\n",
    ),
    (PidsLimit, "100\n"),
    (PidsUsage, "3\n"),
];

const V2: &[(ViewSource, &str)] = &[
    (MemoryLimit, "1073741824\n"),
    (MemoryUsage, "209715200\n"),
    (SwapLimit, "268435456\n"),
    (SwapUsage, "16777216\n"),
    (MemoryStat, MEMORY_STAT_V2),
    (CpuQuota, "150000 100000\n"),
    (
        CpuStat,
        "usage_usec 15000000\nuser_usec 10000000\nsystem_usec 5000000\nnice_usec 0\n\
         core_sched.force_idle_usec 0\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n",
    ),
    (Cpus, "0-7\n"),
    (IoBytes, "7:1\n254:0 rbytes=1048576 wbytes=2097152 rios=10 wios=20 dbytes=4096 dios=1\n"),
    (
        CpuPressure,
        "some avg10=1.25 avg60=0.50 avg300=0.10 total=123456\n\
         full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    ),
    (PidsLimit, "100\n"),
    (PidsUsage, "3\n"),
];

/// A container's files, each of which can be changed while it is open.
pub(crate) struct Recorded {
    v2: bool,
    folder: tempfile::TempDir,
    own: Vec<ViewSource>,
    above: Vec<(ViewSource, PathBuf)>,
}

impl Recorded {
    /// Records the files of a version.
    pub(crate) fn new(v2: bool) -> Recorded {
        let mut recorded = Self::empty(v2);
        let texts = if v2 { V2 } else { V1 };
        texts.iter().for_each(|(source, text)| recorded.set(*source, text));
        recorded
    }

    /// Records nothing yet.
    pub(crate) fn empty(v2: bool) -> Recorded {
        let folder = tempfile::tempdir().unwrap();
        Recorded { v2, folder, own: Vec::new(), above: Vec::new() }
    }

    fn path(&self, source: ViewSource) -> PathBuf {
        self.folder.path().join(format!("{source:?}"))
    }

    /// Changes what a file of the container's own cgroup says.
    pub(crate) fn set(&mut self, source: ViewSource, text: impl AsRef<[u8]>) {
        fs::write(self.path(source), text).unwrap();
        if !self.own.contains(&source) {
            self.own.push(source);
        }
    }

    /// Changes one line of `memory.stat`.
    pub(crate) fn set_stat(&mut self, name: &str, value: u64) {
        let text = fs::read_to_string(self.path(MemoryStat)).unwrap();
        let others = text.lines().filter(|line| line.split(' ').next() != Some(name));
        let text: String = others.map(|line| format!("{line}\n")).collect();
        self.set(MemoryStat, format!("{text}{name} {value}\n"));
    }

    /// Takes a file away.
    pub(crate) fn without(mut self, source: ViewSource) -> Recorded {
        self.own.retain(|own| *own != source);
        self
    }

    /// Adds a file of the next level above.
    pub(crate) fn above(&mut self, source: ViewSource, text: impl AsRef<[u8]>) {
        let path = self.folder.path().join(format!("above{}", self.above.len()));
        fs::write(&path, text).unwrap();
        self.above.push((source, path));
    }

    /// Opens all, as the shim does.
    pub(crate) fn sources(&self) -> Sources {
        let open = |path| OwnedFd::from(fs::File::open(path).unwrap());
        let own = self.own.iter().map(|source| (*source, open(self.path(*source)))).collect();
        let above = self.above.iter().map(|(s, path)| (*s, open(path.clone()))).collect();
        Sources::new(self.v2, own, above)
    }
}
