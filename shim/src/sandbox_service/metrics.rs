//! SandboxMetrics: returns the statistics of the sandbox's own cgroup, which is the usage of
//! boot without the containers.

use std::time::SystemTime;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api::{SandboxMetricsRequest, SandboxMetricsResponse};

use super::{State, pod, timestamp};
use crate::error::{Error, Result};
use crate::task::{Shim, encode_stats};

pub(super) fn metrics(
    shim: &Shim,
    request: &SandboxMetricsRequest,
) -> Result<SandboxMetricsResponse> {
    let id = &request.sandbox_id;
    let mut table = shim.table();
    let pod = pod(&mut table, id)?;
    let State::Ready(boot) = &pod.state else {
        return Err(Error::state(format!("sandbox {id} is {}", pod.state.name())));
    };
    let mut response = SandboxMetricsResponse::default();
    let metric = response.metrics.mut_or_insert_default();
    metric.timestamp = timestamp(SystemTime::now());
    metric.id = id.clone();
    metric.data = MessageField::some(encode_stats(&boot.cgroup.stats()?)?);
    Ok(response)
}
