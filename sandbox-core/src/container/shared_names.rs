//! The names and sysctls that a container sets in namespaces that it shares with the
//! sandbox.

use std::os::fd::AsFd;

use super::own_id::OwnId;
use super::steps::names::{open_sysctls, set_names, set_sysctls};
use crate::error::Result;
use crate::spec::plan::ContainerPlan;

/// Sets a container's names and sysctls in namespaces that it shares with the sandbox, for
/// which the container's own root lacks the privilege.
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
    // The kernel checks for root here, not for capabilities.
    own_id.leave()?;
    let set = set_sysctls(plan, directory.as_fd());
    own_id.restore()?;
    set
}
