//! The time at which each mount of a container can be made, and the process that makes it.
//!
//! A mount that one user namespace attaches is locked for those below it. So as much
//! as possible is attached in boot's user namespace.

use std::path::Path;

use crate::spec::plan::{ContainerPlan, MountPlan, MountSource};

/// The process that makes a mount, in order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MountPhase {
    /// boot, since the mount does not depend on the container's namespaces.
    Boot,
    /// The newborn in boot's user namespace.
    Newborn,
    /// The newborn in its own user namespace.
    Own,
}

/// Returns the phase in which a path can be mounted on or covered: after all mounts at it
/// and above it.
pub(crate) fn phase_of(plan: &ContainerPlan, path: &Path) -> MountPhase {
    let above = plan.mounts.iter().filter(|mount| path.starts_with(&mount.destination));
    above.map(|mount| earliest(plan, mount)).max().unwrap_or(MountPhase::Boot)
}

/// Returns the phase in which a mount could be made if it were the only one.
fn earliest(plan: &ContainerPlan, mount: &MountPlan) -> MountPhase {
    match mount.source {
        MountSource::Proc if plan.pids_below() => MountPhase::Newborn,
        MountSource::Cgroup => MountPhase::Newborn,
        MountSource::Mqueue if plan.namespaces.ipc => MountPhase::Own,
        _ => MountPhase::Boot,
    }
}
