//! SandboxMetrics: returns the statistics of the sandbox's own cgroup, which is the usage of
//! boot without the containers.

use std::time::SystemTime;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api::{SandboxMetricsRequest, SandboxMetricsResponse};

use crate::error::Result;
use crate::exit::timestamp;
use crate::task::{PodState, Shim, encode_stats};

pub(super) fn metrics(
    shim: &Shim,
    request: &SandboxMetricsRequest,
) -> Result<SandboxMetricsResponse> {
    let id = &request.sandbox_id;
    let mut table = shim.table();
    let pod = table.pod(id)?;
    let PodState::Ready(boot) = pod.state() else { return Err(pod.refusal()) };
    let mut response = SandboxMetricsResponse::default();
    let metric = response.metrics.mut_or_insert_default();
    metric.timestamp = timestamp(SystemTime::now());
    metric.id = id.clone();
    metric.data = MessageField::some(encode_stats(&boot.cgroup.stats()?)?);
    Ok(response)
}
