//! SandboxMetrics: returns the statistics of the pod's cgroup, above those of boot and of the
//! containers, as containerd's own sandboxes do (`internal/cri/server/podsandbox/
//! sandbox_stats_linux.go` of containerd 2.4, which makes the kubelet's pod statistics of it).

use std::time::SystemTime;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api::{SandboxMetricsRequest, SandboxMetricsResponse};

use crate::error::{Error, Result};
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
    if !pod.has_cgroup_of_its_own {
        return Err(Error::state(format!(
            "sandbox {id} has no cgroup that counts all of it: expected a \
             linux.cgroup_parent in its configuration"
        )));
    }
    let mut response = SandboxMetricsResponse::default();
    let metric = response.metrics.mut_or_insert_default();
    metric.timestamp = timestamp(SystemTime::now());
    metric.id = id.clone();
    metric.data = MessageField::some(encode_stats(&boot.cgroup.stats_of_parent()?)?);
    Ok(response)
}
