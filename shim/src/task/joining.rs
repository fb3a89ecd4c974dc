//! The cgroups that a process of a container joins.

use std::os::fd::OwnedFd;

use sandbox_core::cgroup::Cgroup;
use sandbox_core::spec::plan::Plan;
use sandbox_core::types::HostPid;

use crate::error::{Context, Result};

/// The open cgroups that a process of a container has to join. There are none for the root
/// container, since boot is in its cgroup and its children start there. But if the
/// container divides its cgroup, boot is in a part of its own. The groups of `linux.intelRdt`
/// are joined in the same way; boot is in none.
#[derive(Debug, Default)]
pub(super) struct CgroupsToJoin {
    /// The directory of the cgroup that boot may clone a process into, on version 2.
    pub(super) directory: Option<OwnedFd>,
    pub(super) procs: Vec<OwnedFd>,
    /// Where the init of a container that divides its cgroup goes after that.
    pub(super) of_init: Option<OwnedFd>,
}

impl CgroupsToJoin {
    /// Opens those of a container that is made.
    pub(super) fn of_init(is_root: bool, plan: &Plan, cgroup: &Cgroup) -> Result<Self> {
        let divided = cgroup.is_divided_by(&plan.container);
        let mut procs = if is_root && !divided { Vec::new() } else { cgroup.procs()? };
        procs.extend(cgroup.resctrl_tasks()?);
        let of_init = divided.then(|| cgroup.procs_of_init()).transpose()?;
        let directory = birthplace(cgroup)?;
        Ok(Self { directory, procs, of_init })
    }

    /// Opens those of a process that joins a container.
    pub(super) fn of_exec(
        is_root: bool,
        plan: &Plan,
        cgroup: &Cgroup,
        init: Option<HostPid>,
    ) -> Result<Self> {
        let divided = cgroup.is_divided_by(&plan.container);
        let mut procs = match init {
            _ if is_root && !divided => Vec::new(),
            Some(init) => cgroup.procs_beside(init, divided)?,
            None => cgroup.procs()?,
        };
        procs.extend(cgroup.resctrl_tasks()?);
        let directory = birthplace(cgroup)?;
        Ok(Self { directory, procs, of_init: None })
    }
}

/// Opens the directory for births in the container's cgroup, if boot may have them.
fn birthplace(cgroup: &Cgroup) -> Result<Option<OwnedFd>> {
    let directory = cgroup.birthplace().map(|directory| directory.try_clone_to_owned());
    directory.transpose().context(|| "dup of a cgroup's directory")
}
