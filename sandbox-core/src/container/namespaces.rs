//! The namespaces that are a container's own, and the time at which each is made.

use nix::sched::CloneFlags;

use crate::spec::plan::ContainerPlan;
use crate::sys::namespace::NEW_TIME;

/// Returns the namespaces that are the container's own and not boot's.
pub(crate) fn own_namespaces(plan: &ContainerPlan) -> CloneFlags {
    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWUSER, plan.user_namespace);
    flags.set(CloneFlags::CLONE_NEWPID, plan.namespaces.pid);
    flags.set(CloneFlags::CLONE_NEWIPC, plan.namespaces.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, plan.namespaces.uts);
    flags.set(CloneFlags::CLONE_NEWCGROUP, plan.namespaces.cgroup);
    flags.set(NEW_TIME, plan.namespaces.time || plan.times_of.is_some());
    flags
}

/// Returns the own namespaces that are made while the newborn is in boot's user namespace,
/// so that boot's user namespace owns the mounts that show them.
pub(crate) fn early_namespaces(plan: &ContainerPlan) -> CloneFlags {
    let early = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWCGROUP;
    own_namespaces(plan) & early
}

/// Returns the own namespaces that are made once the newborn is in the containers' user
/// namespace, which owns them. The mounts are among them: their copy is locked.
pub(crate) fn late_namespaces(plan: &ContainerPlan) -> CloneFlags {
    let mut late = own_namespaces(plan) - early_namespaces(plan) - CloneFlags::CLONE_NEWUSER;
    late.set(CloneFlags::CLONE_NEWNS, plan.user_namespace);
    late.set(NEW_TIME, plan.namespaces.time);
    late
}

/// Returns the namespaces that the clone of the init makes. The cgroup namespace is made
/// later: its root is the cgroup of the process that makes it.
pub(crate) fn clone_flags(plan: &ContainerPlan) -> CloneFlags {
    early_namespaces(plan) - CloneFlags::CLONE_NEWCGROUP
}
