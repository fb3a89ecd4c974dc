//! Pause: freezes a container's cgroup. boot is in the root container's cgroup:
//! if that is frozen, the whole sandbox waits for its Resume.

use containerd_shim_protos::api::{Empty, PauseRequest};
use containerd_shim_protos::events::task::TaskPaused;

use super::shim::Shim;
use crate::error::Result;

pub(super) fn pause(shim: &Shim, request: &PauseRequest) -> Result<Empty> {
    shim.events.has_room()?;
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    container.check_not_being_saved()?;
    container.init.state.pause(|| Ok(container.cgroup.freeze()?))?;
    let container_id = request.id.clone();
    shim.events.publish(&TaskPaused { container_id, ..Default::default() });
    Ok(Empty::default())
}
