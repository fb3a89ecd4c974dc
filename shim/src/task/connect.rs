//! Connect: whom a client is talking to.

use containerd_shim_protos::api::{ConnectRequest, ConnectResponse};

use super::table::Shim;

/// Answered even for a container that does not exist: containerd asks before
/// its Create.
pub(super) fn connect(shim: &Shim, request: &ConnectRequest) -> ConnectResponse {
    ConnectResponse {
        shim_pid: std::process::id(),
        task_pid: shim.table().process(&request.id, "").map_or(0, |init| init.pid),
        ..Default::default()
    }
}
