//! What a container's plan says about whether it can be saved.

use std::fs::File;
use std::io::Read;

use sandbox_core::spec::plan::{ContainerPlan, Plan};
use sandbox_core::spec::seccomp;

use super::boot::BootClient;
use super::container::Container;
use crate::error::{Context, Error, Result};
use crate::rootless;

/// `CAP_SYS_ADMIN`, as a bit.
const SYS_ADMIN: u64 = 1 << 21;

/// The longest seccomp program: 4096 instructions of 8 bytes.
const MAX_PROGRAM: u64 = 4096 * 8;

/// Refuses a container that cannot be saved.
///
/// # Errors
/// The error names the option or the field of the spec, and what to set.
pub(super) fn check_plan(container: &Container) -> Result<()> {
    let plan = &container.plan;
    if !container.options.checkpoint {
        return Err(Error::state(
            "this node's options do not allow that containers are saved, for which criu works as \
             root of the host on their processes; set checkpoint = true",
        ));
    }
    if container.is_pause() {
        return Err(Error::state(format!(
            "container {} is the pod's pause container, in whose place the sandbox process stands; \
             save the others",
            container.id
        )));
    }
    let refused = [
        (
            rootless::of_this_process().is_some(),
            "the shim is not root of the host, as which criu must save processes",
        ),
        (
            !container.boot.sandbox.has_user_namespace(),
            "its pod has no user namespace (it is privileged, or has a namespace of the host's): \
             only pods that have one are saved",
        ),
        (
            plan.container.pids_of.is_some() || !plan.container.namespaces.pid,
            "linux.namespaces: pid: it shares its PIDs, with which processes come back; only \
             containers with a PID namespace of their own are saved",
        ),
        (
            plan.host.seccomp.as_ref().is_some_and(seccomp::notifies),
            "linux.seccomp: the profile has SCMP_ACT_NOTIFY, whose agent would know nothing of \
             the processes that come back",
        ),
        (
            plan.container.namespaces.time || plan.container.times_of.is_some(),
            "linux.namespaces: time: it has a time namespace of its own, which is not saved",
        ),
    ];
    match refused.into_iter().find(|(refused, _)| *refused) {
        None => Ok(()),
        Some((_, why)) => {
            Err(Error::state(format!("container {} cannot be saved: {why}", container.id)))
        }
    }
}

/// Returns the container's own seccomp program; empty if it has none.
pub(super) fn own_program(boot: &BootClient, plan: &Plan) -> Result<Vec<u8>> {
    match boot.sandbox.seccomp(plan)? {
        Some((file, _)) => {
            let mut program = Vec::new();
            let read = File::from(file).take(MAX_PROGRAM).read_to_end(&mut program);
            read.map(|_| program).context(|| "read the container's seccomp program")
        }
        None => Ok(plan.container.baseline.clone()),
    }
}

/// Whether the container's processes can mount.
pub(super) fn may_mount(plan: &ContainerPlan) -> bool {
    plan.process.as_ref().is_none_or(|process| process.capabilities.bounding & SYS_ADMIN != 0)
}
