//! The names and sysctls that a container sets in namespaces which it shares with
//! the sandbox.

use std::os::fd::AsFd;

use super::own_id::OwnId;
use super::steps::names::{open_sysctls, set_names, set_sysctls};
use crate::error::Result;
use crate::spec::plan::ContainerPlan;

/// Sets what a container wants in namespaces that it shares with the sandbox,
/// where the container's own root has no say.
pub(crate) fn set_shared(plan: &ContainerPlan, own_id: OwnId) -> Result<()> {
    if !plan.namespaces.uts {
        set_names(plan)?;
    }
    if plan.namespaces.ipc || plan.sysctls.is_empty() {
        return Ok(());
    }
    let directory = open_sysctls()?;
    if !plan.user_namespace {
        return set_sysctls(plan, directory.as_fd());
    }
    // The kernel looks at who is root here, not at capabilities.
    own_id.leave()?;
    let set = set_sysctls(plan, directory.as_fd());
    own_id.restore()?;
    set
}
