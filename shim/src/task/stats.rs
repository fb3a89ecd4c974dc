//! Stats: the numbers of a container's cgroup, from its Create to its Delete.

use containerd_shim_protos::api::{StatsRequest, StatsResponse};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use sandbox_core::cgroup::stats::Stats;

use super::metrics;
use super::table::{Container, Shim};
use crate::error::Result;

pub(super) fn stats(shim: &Shim, request: &StatsRequest) -> Result<StatsResponse> {
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    let stats = match &container.last_stats {
        Some(last) if !container.cgroup.exists() => last.clone(),
        _ => container.read_stats()?,
    };
    Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
}

impl Container {
    /// What we know of out-of-memory kills is there as well where the cgroup has
    /// gone before anybody read its numbers: containerd 2.3 asks for that.
    fn read_stats(&self) -> Result<Any> {
        let mut stats = self.cgroup.stats()?;
        if let Stats::V2(stats) = &mut stats
            && stats.memory_events.is_none()
            && self.oom_kills > 0
        {
            stats.memory_events.get_or_insert_default().oom_kill = self.oom_kills;
        }
        metrics::encode(&stats)
    }

    /// Keeps the numbers at the end of the init, where the cgroup may go before
    /// Delete: systemd removes an empty one. Our own stay, and keep counting
    /// nothing.
    pub(super) fn latch_stats(&mut self) {
        if !self.cgroup.is_of_systemd() {
            return;
        }
        let stats = self.read_stats().ok();
        // Those of a cgroup that went in between say nothing.
        if stats.is_some() && self.cgroup.exists() {
            self.last_stats = stats;
        }
    }
}
