//! Resume: thaws a paused container.

use containerd_shim_protos::api::{Empty, ResumeRequest};
use containerd_shim_protos::events::task::TaskResumed;

use super::shim::Shim;
use crate::error::Result;

pub(super) fn resume(shim: &Shim, request: &ResumeRequest) -> Result<Empty> {
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    container.check_not_being_saved()?;
    container.init.state.resume(|| Ok(container.cgroup.thaw()?))?;
    let container_id = request.id.clone();
    shim.events.publish(&TaskResumed { container_id, ..Default::default() });
    Ok(Empty::default())
}
