//! Stats: the numbers of a container's cgroup, from its Create to its Delete.

use containerd_shim_protos::api::{StatsRequest, StatsResponse};
use containerd_shim_protos::protobuf::MessageField;

use super::metrics;
use super::table::{Container, Shim};
use crate::error::Result;

pub(super) fn stats(shim: &Shim, request: &StatsRequest) -> Result<StatsResponse> {
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    let stats = match &container.last_stats {
        Some(last) if !container.cgroup.exists() => last.clone(),
        _ => metrics::encode(&container.cgroup.stats()?)?,
    };
    Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
}

impl Container {
    /// Keeps the numbers at the end of the init, where the cgroup may go before
    /// Delete: systemd removes an empty one. Our own stay, and keep counting
    /// nothing.
    pub(super) fn latch_stats(&mut self) {
        if !self.cgroup.is_of_systemd() {
            return;
        }
        let stats = self.cgroup.stats().ok().and_then(|stats| metrics::encode(&stats).ok());
        // Those of a cgroup that went in between say nothing.
        if stats.is_some() && self.cgroup.exists() {
            self.last_stats = stats;
        }
    }
}
