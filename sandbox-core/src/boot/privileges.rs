//! Drops the privileges that boot does not need once it is up.

use caps::{CapSet, Capability, CapsHashSet};

use crate::error::{Context, Error, Result};
use crate::sys::process::separate_ids_from_capabilities;

/// The capabilities that boot needs inside its user namespace, and for what.
const NEEDED: [Capability; 10] = [
    // To mount, and to enter containers.
    Capability::CAP_SYS_ADMIN,
    // To enter the namespaces of a container's process by its pidfd.
    Capability::CAP_SYS_PTRACE,
    // To write the ID maps of containers, including ID 0.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETFCAP,
    // To make mount points in root file systems that belong to container users.
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    // To give terminals to the user of their process.
    Capability::CAP_CHOWN,
    // To kill containers that are deleted before they started.
    Capability::CAP_KILL,
    // To enter mount namespaces, together with SYS_ADMIN (setns(2)).
    Capability::CAP_SYS_CHROOT,
];

/// What boot needs besides, until it is up.
const NEEDED_AT_FIRST: [Capability; 2] = [
    // To bring the loopback interface up, and to set the sysctls of a new network.
    Capability::CAP_NET_ADMIN,
    // To take capabilities from the bounding set.
    Capability::CAP_SETPCAP,
];

/// A part of boot's life, with the capabilities that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Until it has its network and its root.
    Start,
    /// While it serves.
    Serve,
}

/// Keeps only the capabilities that a stage and those after it need.
pub(super) fn keep_for(stage: Stage) -> Result<()> {
    let mut needed: CapsHashSet = NEEDED.into_iter().collect();
    if stage == Stage::Start {
        needed.extend(NEEDED_AT_FIRST);
    }
    for capability in caps::all().difference(&needed) {
        // The kernel may not know it.
        let _ = caps::drop(None, CapSet::Bounding, *capability);
    }
    // From here on a change of IDs leaves the capabilities alone, should the containers'
    // root be the host's. A container's user namespace does not inherit that.
    separate_ids_from_capabilities().context(|| "prctl PR_SET_SECUREBITS")?;
    set(CapSet::Effective, &needed)?;
    set(CapSet::Permitted, &needed)?;
    // With the inheritable capabilities go the ambient ones.
    set(CapSet::Inheritable, &CapsHashSet::new())
}

fn set(which: CapSet, members: &CapsHashSet) -> Result<()> {
    caps::set(None, which, members)
        .map_err(|e| Error::internal(format!("set {which:?} capabilities: {e}")))
}
