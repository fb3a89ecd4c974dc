//! What a cgroup's `memory.stat` says.

/// The parts of a container's memory, in bytes. What a version or a kernel does not count is
/// `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryStat {
    /// Page cache, with shared memory and what is in swap's cache.
    pub(crate) file: Option<u64>,
    pub(crate) anon: Option<u64>,
    pub(crate) shmem: Option<u64>,
    pub(crate) file_mapped: Option<u64>,
    pub(crate) file_dirty: Option<u64>,
    pub(crate) file_writeback: Option<u64>,
    pub(crate) swap_cached: Option<u64>,
    pub(crate) inactive_anon: Option<u64>,
    pub(crate) active_anon: Option<u64>,
    pub(crate) inactive_file: Option<u64>,
    pub(crate) active_file: Option<u64>,
    pub(crate) unevictable: Option<u64>,
    pub(crate) anon_thp: Option<u64>,
    pub(crate) file_thp: Option<u64>,
    pub(crate) shmem_thp: Option<u64>,
    pub(crate) kernel_stack: Option<u64>,
    pub(crate) page_tables: Option<u64>,
    pub(crate) sec_page_tables: Option<u64>,
    pub(crate) percpu: Option<u64>,
    pub(crate) slab_reclaimable: Option<u64>,
    pub(crate) slab_unreclaimable: Option<u64>,
    pub(crate) zswap: Option<u64>,
    pub(crate) zswapped: Option<u64>,
    /// What is in swap. Version 1 only.
    pub(crate) swap: Option<u64>,
    /// The smallest limit of memory of all levels. Version 1 only.
    pub(crate) limit: Option<u64>,
    /// The smallest limit of memory and swap of all levels. Version 1 only.
    pub(crate) memsw_limit: Option<u64>,
}

impl MemoryStat {
    /// Parses it: cgroup-v2.rst, or memory.rst of version 1, of which only lines count that
    /// include the cgroups below. Lines of other names are skipped.
    pub(super) fn parse(text: &str, v2: bool) -> MemoryStat {
        let mut stat = MemoryStat::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            let place = if v2 { stat.place_v2(name) } else { stat.place_v1(name) };
            if let Some(place) = place {
                *place = value.parse().ok();
            }
        }
        stat
    }

    fn place_v2(&mut self, name: &str) -> Option<&mut Option<u64>> {
        Some(match name {
            "file" => &mut self.file,
            "anon" => &mut self.anon,
            "shmem" => &mut self.shmem,
            "file_mapped" => &mut self.file_mapped,
            "file_dirty" => &mut self.file_dirty,
            "file_writeback" => &mut self.file_writeback,
            "swapcached" => &mut self.swap_cached,
            "inactive_anon" => &mut self.inactive_anon,
            "active_anon" => &mut self.active_anon,
            "inactive_file" => &mut self.inactive_file,
            "active_file" => &mut self.active_file,
            "unevictable" => &mut self.unevictable,
            "anon_thp" => &mut self.anon_thp,
            "file_thp" => &mut self.file_thp,
            "shmem_thp" => &mut self.shmem_thp,
            "kernel_stack" => &mut self.kernel_stack,
            "pagetables" => &mut self.page_tables,
            "sec_pagetables" => &mut self.sec_page_tables,
            "percpu" => &mut self.percpu,
            "slab_reclaimable" => &mut self.slab_reclaimable,
            "slab_unreclaimable" => &mut self.slab_unreclaimable,
            "zswap" => &mut self.zswap,
            "zswapped" => &mut self.zswapped,
            _ => return None,
        })
    }

    fn place_v1(&mut self, name: &str) -> Option<&mut Option<u64>> {
        Some(match name {
            "total_cache" => &mut self.file,
            "total_rss" => &mut self.anon,
            "total_shmem" => &mut self.shmem,
            "total_mapped_file" => &mut self.file_mapped,
            "total_dirty" => &mut self.file_dirty,
            "total_writeback" => &mut self.file_writeback,
            "total_swapcached" => &mut self.swap_cached,
            "total_inactive_anon" => &mut self.inactive_anon,
            "total_active_anon" => &mut self.active_anon,
            "total_inactive_file" => &mut self.inactive_file,
            "total_active_file" => &mut self.active_file,
            "total_unevictable" => &mut self.unevictable,
            "total_rss_huge" => &mut self.anon_thp,
            "total_swap" => &mut self.swap,
            "hierarchical_memory_limit" => &mut self.limit,
            "hierarchical_memsw_limit" => &mut self.memsw_limit,
            _ => return None,
        })
    }
}
