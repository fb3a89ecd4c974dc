//! When each mount of a container can be made, and by which process.
//!
//! A mount that one user namespace attaches is locked for those below it. So as much
//! as possible is attached in boot's user namespace.

use std::path::Path;

use crate::spec::plan::{ContainerPlan, MountPlan, MountSource};

/// Who can make a mount, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MountPhase {
    /// boot, for it needs nothing of the container's.
    Boot,
    /// The newborn container in boot's user namespace.
    Newborn,
    /// The newborn in its own user namespace.
    Own,
}

/// When a path is there to be mounted on or covered: after all that is mounted
/// at it or above it.
pub(crate) fn phase_of(plan: &ContainerPlan, path: &Path) -> MountPhase {
    let above = plan.mounts.iter().filter(|mount| path.starts_with(&mount.destination));
    above.map(|mount| earliest(plan, mount)).max().unwrap_or(MountPhase::Boot)
}

/// When a mount can be made, were it alone.
fn earliest(plan: &ContainerPlan, mount: &MountPlan) -> MountPhase {
    match mount.source {
        MountSource::Proc if plan.pids_below() => MountPhase::Newborn,
        MountSource::Cgroup => MountPhase::Newborn,
        MountSource::Mqueue if plan.namespaces.ipc => MountPhase::Own,
        _ => MountPhase::Boot,
    }
}
