//! The names and sysctls that a container sets in namespaces of its own.

use std::os::fd::{AsFd, OwnedFd};

use crate::container::steps::names::{open_sysctls, set_names, set_sysctls};
use crate::error::Result;
use crate::spec::plan::ContainerPlan;

/// Opens the directory with the sysctls of the newborn's IPC and user namespaces. Must be
/// called in the sandbox's root: the container's own `/proc/sys` is read-only, if it has one
/// at all.
pub(super) fn own_sysctls(plan: &ContainerPlan) -> Result<Option<OwnedFd>> {
    let wanted = plan.namespaces.ipc && !plan.sysctls.is_empty() || !plan.user_sysctls.is_empty();
    wanted.then(open_sysctls).transpose()
}

/// Sets the names and sysctls.
pub(super) fn set_own(plan: &ContainerPlan, sysctls: Option<OwnedFd>) -> Result<()> {
    if plan.namespaces.uts {
        set_names(plan)?;
    }
    let Some(directory) = sysctls else { return Ok(()) };
    if plan.namespaces.ipc {
        set_sysctls(&plan.sysctls, directory.as_fd())?;
    }
    // The kernel looks at the user namespace of the process that opens one of these.
    set_sysctls(&plan.user_sysctls, directory.as_fd())
}

/// Sets the names and sysctls of a container whose IPC namespace criu restores, with its sysctls.
pub(super) fn set_own_names(plan: &ContainerPlan, sysctls: Option<OwnedFd>) -> Result<()> {
    if plan.namespaces.uts {
        set_names(plan)?;
    }
    let Some(directory) = sysctls else { return Ok(()) };
    set_sysctls(&plan.user_sysctls, directory.as_fd())
}
