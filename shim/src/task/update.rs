//! Update: new limits for a running container, and word of them to those who
//! live by them.

use containerd_shim_protos::api::{Empty, UpdateTaskRequest};
use oci_spec::runtime::LinuxResources;
use sandbox_core::control::message::Request;

use super::lifecycle::State;
use super::table::{Container, Shim};
use crate::error::{Error, Result};

pub(super) fn update(shim: &Shim, request: &UpdateTaskRequest) -> Result<Empty> {
    let resources: LinuxResources = serde_json::from_slice(&request.resources.value)
        .map_err(|e| Error::invalid(format!("resources are no LinuxResources: {e}")))?;
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    if container.init.state() == State::Stopped {
        return Err(Error::state("cannot update a stopped container"));
    }
    container.resources.update(&container.cgroup, &resources)?;
    tell_limits(container)?;
    Ok(Empty::default())
}

/// Tells boot what a container may use now; and what the sandbox may, when it
/// is the root's. A frozen boot reads it when it goes on.
fn tell_limits(container: &Container) -> Result<()> {
    let capacity = container.cgroup.capacity(container.policy)?;
    let tell = |container_id: Option<String>| {
        container.boot.tell(Request::Update { container: container_id, capacity });
    };
    tell(Some(container.id.clone()));
    if container.is_root() {
        tell(None);
    }
    Ok(())
}
