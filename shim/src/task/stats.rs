//! Stats: returns the statistics of a container's cgroup, from its Create to
//! its Delete.

use containerd_shim_protos::api::{StatsRequest, StatsResponse};
use containerd_shim_protos::protobuf::MessageField;

use super::shim::Shim;
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
