//! The time at which each mount of a container can be made.
//!
//! A mount that one user namespace attaches is locked for those below it. So as much
//! as possible is attached in boot's user namespace.

use std::path::Path;

use crate::spec::plan::{ContainerPlan, MountPlan, MountSource};

/// The time at which the newborn makes a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MountPhase {
    /// At first, since the mount depends on none of the container's namespaces.
    First,
    /// Once it is in its cgroup namespace, still in boot's user namespace. proc comes then as
    /// well: no symlink of the image can put anything on it that came at first, such as a
    /// device.
    InCgroup,
    /// Once it is in its own user namespace.
    Own,
}

/// The mounts of a container that cannot be made at first, and what lies on them.
#[derive(Debug)]
pub(crate) struct Phases<'a>(Vec<Late<'a>>);

#[derive(Debug)]
struct Late<'a> {
    place: &'a Path,
    /// Index in the plan's mounts.
    index: usize,
    phase: MountPhase,
    /// Whether its mount point lies on another late mount.
    on_late: bool,
}

impl<'a> Phases<'a> {
    /// Sorts the mounts of a plan. The order of the spec holds, as in runc: a mount waits for
    /// those before it that it lies on, and hides those before it that lie below it.
    pub(crate) fn of(plan: &'a ContainerPlan) -> Self {
        let mut late: Vec<Late<'_>> = Vec::new();
        for (index, mount) in plan.mounts.iter().enumerate() {
            let place = mount.destination.as_path();
            late.retain(|before| !before.place.starts_with(place));
            let below = late.iter().filter(|before| place.starts_with(before.place));
            let below = below.map(|before| before.phase).max();
            let phase = earliest(plan, mount).max(below.unwrap_or(MountPhase::First));
            if phase > MountPhase::First {
                late.push(Late { place, index, phase, on_late: below.is_some() });
            }
        }
        Self(late)
    }

    /// Returns the phase in which a mount of the plan is made. `None` if a later mount hides
    /// it, so that the container would never see it.
    pub(crate) fn of_mount(&self, plan: &ContainerPlan, index: usize) -> Option<MountPhase> {
        match self.0.iter().find(|late| late.index == index) {
            Some(late) => Some(late.phase),
            None if earliest(plan, &plan.mounts[index]) > MountPhase::First => None,
            None => Some(MountPhase::First),
        }
    }

    /// Whether the mount point of a late mount is on one that is made at first.
    pub(crate) fn is_on_first(&self, index: usize) -> bool {
        self.0.iter().any(|late| late.index == index && !late.on_late)
    }

    /// Returns the phase in which a path can be covered: after all mounts at it and above
    /// it.
    pub(crate) fn of_path(&self, path: &Path) -> MountPhase {
        let above = self.0.iter().filter(|late| path.starts_with(late.place));
        above.map(|late| late.phase).max().unwrap_or(MountPhase::First)
    }
}

/// Returns the phase in which a mount could be made if it were the only one.
fn earliest(plan: &ContainerPlan, mount: &MountPlan) -> MountPhase {
    match mount.source {
        MountSource::Proc if plan.pids_below() => MountPhase::InCgroup,
        MountSource::Cgroup => MountPhase::InCgroup,
        MountSource::Mqueue if plan.namespaces.ipc => MountPhase::Own,
        _ => MountPhase::First,
    }
}
