//! Update: sets new resources for a container, and sends boot its new capacity.
//!
//! A client may send annotations along, for resources that only some runtimes know
//! (containerd's client, `UpdateTaskInfo`). Neither runc's shim nor Palisade knows any, which
//! runc's does not mention.

use std::collections::HashMap;

use containerd_shim_protos::api::{Empty, UpdateTaskRequest};
use oci_spec::runtime::LinuxResources;
use sandbox_core::control::message::Request;
use sandbox_core::spec::plan::Powerless;
use sandbox_core::spec::with_share_of_boot;

use super::container::Container;
use super::lifecycle::State;
use super::powerless;
use super::shim::Shim;
use crate::error::{Error, Result};
use crate::options::ANNOTATIONS;

pub(super) fn update(shim: &Shim, request: &UpdateTaskRequest) -> Result<Empty> {
    let resources: LinuxResources = serde_json::from_slice(&request.resources.value)
        .map_err(|e| Error::invalid(format!("resources are no LinuxResources: {e}")))?;
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    check_update(&container.init.state)?;
    let powerless = powerless_annotations(&request.annotations)?;
    powerless::check(container.on_powerless, &powerless)?;
    // boot's share of the CPU does not depend on a client.
    let resources = match container.is_pause() {
        true => with_share_of_boot(resources),
        false => resources,
    };
    let updated = container.resources.update(&container.cgroup, &resources);
    updated.map_err(|error| container.explain(error.into()))?;
    send_capacity(container).map_err(|error| container.explain(error))?;
    let new = |one: &Powerless| container.told_annotations.insert(one.field.clone());
    let new: Vec<_> = powerless.into_iter().filter(new).collect();
    powerless::tell(shim, &request.id, &new);
    Ok(Empty::default())
}

/// Lists the annotations of an update, none of which has an effect, and refuses Palisade's own:
/// those are of the container's spec.
fn powerless_annotations(annotations: &HashMap<String, String>) -> Result<Vec<Powerless>> {
    let mut keys: Vec<_> = annotations.keys().collect();
    keys.sort_unstable();
    if let Some(key) = keys.iter().find(|key| key.starts_with(ANNOTATIONS)) {
        return Err(Error::invalid(format!(
            "annotations of the update: {key} is read when the container is created, and an \
             update cannot change it; expected resources only"
        )));
    }
    let powerless = |key: &String| Powerless {
        field: format!("the update's annotation {key}"),
        lost: "Palisade knows no resource by that name".into(),
        instead: "set it in the update's resources (linux.resources, with unified for any file \
                  of cgroup version 2)"
            .into(),
        by_default: false,
    };
    Ok(keys.into_iter().map(powerless).collect())
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
