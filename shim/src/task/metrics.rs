//! Encodes a cgroup's statistics as containerd's protobuf messages, of version
//! 1 or 2 as on the host. The fields have the same names on both sides.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use sandbox_core::cgroup::stats::{self, Stats};

use crate::error::{Context, Result};

/// Encodes the statistics in an `Any` of a type that containerd's typeurl has.
pub(crate) fn encode(stats: &Stats) -> Result<Any> {
    let (type_url, value) = match stats {
        Stats::V1(stats) => {
            ("io.containerd.cgroups.v1.Metrics", metrics_v1(stats).write_to_bytes())
        }
        Stats::V2(stats) => {
            ("io.containerd.cgroups.v2.Metrics", metrics_v2(stats).write_to_bytes())
        }
    };
    let value = value.context(|| "encode the metrics")?;
    Ok(Any { type_url: type_url.to_string(), value, ..Default::default() })
}

/// Makes a message from fields of the same name and type, and from others.
macro_rules! message {
    ($message:path, $from:expr, { $($same:ident)* } $(, $field:ident: $value:expr)* $(,)?) => {{
        #[allow(unused_variables, reason = "a message may have no field of the same name")]
        let from = $from;
        $message { $($same: from.$same.clone(),)* $($field: $value,)* ..Default::default() }
    }};
}

fn field<T, M>(value: Option<&T>, message: impl FnOnce(&T) -> M) -> MessageField<M> {
    MessageField(value.map(message).map(Box::new))
}

fn metrics_v1(stats: &stats::StatsV1) -> v1::Metrics {
    let hugetlb =
        |h: &stats::HugetlbStat| message!(v1::HugetlbStat, h, { usage max failcnt pagesize });
    v1::Metrics {
        hugetlb: stats.hugetlb.iter().map(hugetlb).collect(),
        pids: field(stats.pids.as_ref(), |p| message!(v1::PidsStat, p, { current limit })),
        cpu: MessageField::some(v1::CPUStat {
            usage: field(
                stats.cpu_usage.as_ref(),
                |u| message!(v1::CPUUsage, u, { total kernel user per_cpu }),
            ),
            throttling: field(
                stats.cpu_throttling.as_ref(),
                |t| message!(v1::Throttle, t, { periods throttled_periods throttled_time }),
            ),
            ..Default::default()
        }),
        memory: field(stats.memory.as_ref(), memory_v1),
        blkio: MessageField::some(blkio(stats)),
        rdma: field(stats.rdma.as_ref(), |rdma| {
            let entry = |e: &stats::RdmaEntry| message!(v1::RdmaEntry, e, { device hca_handles hca_objects });
            v1::RdmaStat {
                current: rdma.current.iter().map(entry).collect(),
                limit: rdma.limit.iter().map(entry).collect(),
                ..Default::default()
            }
        }),
        memory_oom_control: field(
            stats.memory_oom_control.as_ref(),
            |oom| message!(v1::MemoryOomControl, oom, { oom_kill_disable under_oom oom_kill }),
        ),
        ..Default::default()
    }
}

fn memory_v1(stats: &stats::MemoryStatV1) -> v1::MemoryStat {
    let entry = |e: &stats::MemoryEntry| message!(v1::MemoryEntry, e, { limit usage max failcnt });
    message!(
        v1::MemoryStat,
        stats,
        {
            cache rss rss_huge mapped_file dirty writeback pg_pg_in pg_pg_out pg_fault pg_maj_fault
            inactive_anon active_anon inactive_file active_file unevictable
            hierarchical_memory_limit hierarchical_swap_limit total_cache total_rss total_rss_huge
            total_mapped_file total_dirty total_writeback total_pg_pg_in total_pg_pg_out
            total_pg_fault total_pg_maj_fault total_inactive_anon total_active_anon
            total_inactive_file total_active_file total_unevictable
        },
        usage: field(stats.usage.as_ref(), entry),
        swap: field(stats.swap.as_ref(), entry),
        kernel: field(stats.kernel.as_ref(), entry),
        kernel_tcp: field(stats.kernel_tcp.as_ref(), entry),
    )
}

fn blkio(stats: &stats::StatsV1) -> v1::BlkIOStat {
    let entry =
        |e: &stats::BlkioEntry| message!(v1::BlkIOEntry, e, { op device major minor value });
    let entries = |name: &str| stats.blkio.get(name).into_iter().flatten().map(entry).collect();
    v1::BlkIOStat {
        io_service_bytes_recursive: entries("io_service_bytes_recursive"),
        io_serviced_recursive: entries("io_serviced_recursive"),
        io_queued_recursive: entries("io_queued_recursive"),
        io_service_time_recursive: entries("io_service_time_recursive"),
        io_wait_time_recursive: entries("io_wait_time_recursive"),
        io_merged_recursive: entries("io_merged_recursive"),
        io_time_recursive: entries("io_time_recursive"),
        sectors_recursive: entries("sectors_recursive"),
        ..Default::default()
    }
}

fn metrics_v2(stats: &stats::StatsV2) -> v2::Metrics {
    let hugetlb = |h: &stats::HugetlbStat| message!(v2::HugeTlbStat, h, { max failcnt pagesize }, current: h.usage);
    v2::Metrics {
        pids: field(stats.pids.as_ref(), |p| message!(v2::PidsStat, p, { current limit })),
        cpu: field(stats.cpu.as_ref(), cpu_v2),
        memory: field(stats.memory.as_ref(), memory_v2),
        rdma: field(stats.rdma.as_ref(), |rdma| {
            let entry = |e: &stats::RdmaEntry| message!(v2::RdmaEntry, e, { device hca_handles hca_objects });
            v2::RdmaStat {
                current: rdma.current.iter().map(entry).collect(),
                limit: rdma.limit.iter().map(entry).collect(),
                ..Default::default()
            }
        }),
        io: field(stats.io.as_ref(), |io| {
            let entry = |e: &stats::IoEntry| message!(v2::IOEntry, e, { major minor rbytes wbytes rios wios });
            v2::IOStat {
                usage: io.usage.iter().map(entry).collect(),
                psi: field(io.psi.as_ref(), pressure),
                ..Default::default()
            }
        }),
        hugetlb: stats.hugetlb.iter().map(hugetlb).collect(),
        memory_events: field(
            stats.memory_events.as_ref(),
            |events| message!(v2::MemoryEvents, events, { low high max oom oom_kill oom_group_kill }),
        ),
        ..Default::default()
    }
}

fn cpu_v2(stats: &stats::CpuStatV2) -> v2::CPUStat {
    message!(
        v2::CPUStat,
        stats,
        {
            usage_usec user_usec system_usec nr_periods nr_throttled throttled_usec nr_bursts
            burst_usec
        },
        psi: field(stats.psi.as_ref(), pressure),
    )
}

fn memory_v2(stats: &stats::MemoryStatV2) -> v2::MemoryStat {
    message!(
        v2::MemoryStat,
        stats,
        {
            anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp
            inactive_anon active_anon inactive_file active_file unevictable slab_reclaimable
            slab_unreclaimable pgfault pgmajfault workingset_refault workingset_activate
            workingset_nodereclaim pgrefill pgscan pgsteal pgactivate pgdeactivate pglazyfree
            pglazyfreed thp_fault_alloc thp_collapse_alloc usage usage_limit swap_usage swap_limit
            max_usage swap_max_usage
        },
        psi: field(stats.psi.as_ref(), pressure),
    )
}

fn pressure(psi: &stats::Psi) -> v2::PSIStats {
    let data = |line: &stats::PsiLine| message!(v2::PSIData, line, { avg10 avg60 avg300 total });
    v2::PSIStats {
        some: MessageField::some(data(&psi.some)),
        full: MessageField::some(data(&psi.full)),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_is_the_hosts() {
        let memory = stats::MemoryStatV1 { rss: 7, ..Default::default() };
        let stats = stats::StatsV1 { memory: Some(memory), ..Default::default() };
        let any = encode(&Stats::V1(Box::new(stats))).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        assert_eq!(v1::Metrics::parse_from_bytes(&any.value).unwrap().memory.rss, 7);

        let events = stats::MemoryEvents { oom_kill: 3, ..Default::default() };
        let stats = stats::StatsV2 { memory_events: Some(events), ..Default::default() };
        let any = encode(&Stats::V2(Box::new(stats))).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.memory_events.oom_kill, metrics.cpu.is_some()), (3, false));
    }
}
