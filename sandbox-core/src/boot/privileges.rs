//! What boot may still do once it is up.

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::container::own_id::OwnId;
use crate::error::{Context, Error, Result};
use crate::sys::process::separate_ids_from_capabilities;

/// What boot needs inside its user namespace, and for what.
const NEEDED: [Capability; 10] = [
    // Mounts, and entering containers.
    Capability::CAP_SYS_ADMIN,
    // Entering the namespaces of a container's process by its pidfd.
    Capability::CAP_SYS_PTRACE,
    // The ID maps of containers, ID 0 among them.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETFCAP,
    // Mount points in root file systems that belong to container users.
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    // Terminals belong to the user of their process.
    Capability::CAP_CHOWN,
    // Containers that are deleted before they started.
    Capability::CAP_KILL,
    // The pod's host name lies in a namespace of boot's; see also SYS_ADMIN.
    Capability::CAP_SYS_CHROOT,
];

/// Leaves ID 0 for its own, with the capabilities that are needed and no others.
pub(super) fn drop_all_but_needed(own: OwnId) -> Result<()> {
    let needed: CapsHashSet = NEEDED.into_iter().collect();
    for capability in caps::all().difference(&needed) {
        // A kernel that does not know it has nothing to drop.
        let _ = caps::drop(None, CapSet::Bounding, *capability);
    }
    // From here on IDs and capabilities have nothing to do with each other. A
    // container's user namespace does not inherit that.
    separate_ids_from_capabilities().context(|| "prctl PR_SET_SECUREBITS")?;
    setgroups(&[]).context(|| "setgroups")?;
    let gid = Gid::from_raw(own.id());
    setresgid(gid, gid, gid).context(|| format!("setresgid {gid}"))?;
    let uid = Uid::from_raw(own.id());
    setresuid(uid, uid, uid).context(|| format!("setresuid {uid}"))?;
    set(CapSet::Effective, &needed)?;
    set(CapSet::Permitted, &needed)?;
    set(CapSet::Inheritable, &CapsHashSet::new())
}

fn set(which: CapSet, members: &CapsHashSet) -> Result<()> {
    caps::set(None, which, members)
        .map_err(|e| Error::internal(format!("set {which:?} capabilities: {e}")))
}
