//! Connect: returns the process IDs of the shim and of a container's init.

use containerd_shim_protos::api::{ConnectRequest, ConnectResponse};

use super::shim::Shim;

/// Replies even for a container that does not exist: containerd sends Connect
/// before Create.
pub(super) fn connect(shim: &Shim, request: &ConnectRequest) -> ConnectResponse {
    ConnectResponse {
        shim_pid: std::process::id(),
        task_pid: shim.table().container(&request.id).map_or(0, |container| container.init.pid),
        ..Default::default()
    }
}
