//! The names and sysctls that a container sets in namespaces of its own.

use std::os::fd::{AsFd, OwnedFd};

use crate::container::steps::names::{open_sysctls, set_names, set_sysctls};
use crate::error::Result;
use crate::spec::plan::ContainerPlan;

/// Opens the directory with the sysctls of the newborn's IPC namespace. Must be called in
/// the sandbox's root: the container's own `/proc/sys` is read-only, if it has one at all.
pub(super) fn own_sysctls(plan: &ContainerPlan) -> Result<Option<OwnedFd>> {
    let wanted = plan.namespaces.ipc && !plan.sysctls.is_empty();
    wanted.then(open_sysctls).transpose()
}

/// Sets the names and sysctls.
pub(super) fn set_own(plan: &ContainerPlan, sysctls: Option<OwnedFd>) -> Result<()> {
    if plan.namespaces.uts {
        set_names(plan)?;
    }
    sysctls.map_or(Ok(()), |directory| set_sysctls(plan, directory.as_fd()))
}
