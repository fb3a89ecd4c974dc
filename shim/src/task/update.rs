//! Update: sets new resources for a container, and sends boot its new capacity.

use containerd_shim_protos::api::{Empty, UpdateTaskRequest};
use oci_spec::runtime::LinuxResources;
use sandbox_core::control::message::Request;

use super::container::Container;
use super::lifecycle::State;
use super::shim::Shim;
use crate::error::{Error, Result};

pub(super) fn update(shim: &Shim, request: &UpdateTaskRequest) -> Result<Empty> {
    let resources: LinuxResources = serde_json::from_slice(&request.resources.value)
        .map_err(|e| Error::invalid(format!("resources are no LinuxResources: {e}")))?;
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    check_update(&container.init.state)?;
    container.resources.update(&container.cgroup, &resources)?;
    send_capacity(container)?;
    Ok(Empty::default())
}

/// Refuses a container whose init has ended, as runc does, whether its exit is
/// published or not.
fn check_update(init: &State) -> Result<()> {
    match init.has_ended() {
        true => Err(Error::state("cannot update a stopped container")),
        false => Ok(()),
    }
}

/// Sends boot a container's capacity, and the sandbox's if this is the root
/// container. A frozen boot reads it when it is resumed.
fn send_capacity(container: &Container) -> Result<()> {
    let capacity = container.cgroup.capacity(container.capacity_policy)?;
    let send = |container_id: Option<String>| {
        container.boot.send(Request::Update { container: container_id, capacity });
    };
    send(Some(container.id.clone()));
    if container.is_root() {
        send(None);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::exit::Exit;
    use crate::task::lifecycle::Program;

    /// runc computes its status from whether the init lives.
    #[test]
    fn a_container_whose_init_has_ended_is_not_updated() {
        let mut init = State::Created(Program::Pause { exits_with: None });
        assert!(check_update(&init).is_ok());
        init.start_init().unwrap();
        init.started().unwrap();
        assert!(check_update(&init).is_ok());
        // Its exit is reported, and then published.
        init.report_exit(0);
        assert_eq!(check_update(&init).unwrap_err().code, Code::FAILED_PRECONDITION);
        init.exit(Exit::killed()).unwrap();
        assert_eq!(check_update(&init).unwrap_err().code, Code::FAILED_PRECONDITION);
    }
}
