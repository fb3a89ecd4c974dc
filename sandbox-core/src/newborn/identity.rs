//! Changes a newborn's user for the kernel.

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::error::{Context, Result};

/// Becomes ID 0 of the user namespace that this process is in.
pub(super) fn become_root() -> Result<()> {
    setgroups(&[]).context(|| "setgroups")?;
    let gid = Gid::from_raw(0);
    setresgid(gid, gid, gid).context(|| "setresgid 0")?;
    let uid = Uid::from_raw(0);
    setresuid(uid, uid, uid).context(|| "setresuid 0")
}
