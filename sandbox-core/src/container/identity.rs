//! Who a process is for the kernel.

use nix::unistd::{Gid, Uid, setfsgid, setfsuid, setgroups, setresgid, setresuid};

use crate::error::{Context, Result};

/// Becomes ID 0 of the user namespace that this process is in.
pub(super) fn become_root() -> Result<()> {
    setgroups(&[]).context(|| "setgroups")?;
    let gid = Gid::from_raw(0);
    setresgid(gid, gid, gid).context(|| "setresgid 0")?;
    let uid = Uid::from_raw(0);
    setresuid(uid, uid, uid).context(|| "setresuid 0")
}

/// While it lives, files are made and looked at as the container's root. boot
/// itself is nobody, and what nobody makes in a root file system would stay
/// nobody's.
pub(super) struct AsContainerRoot {
    uid: Uid,
    gid: Gid,
}

impl AsContainerRoot {
    pub(super) fn begin() -> Self {
        Self { gid: setfsgid(Gid::from_raw(0)), uid: setfsuid(Uid::from_raw(0)) }
    }
}

impl Drop for AsContainerRoot {
    fn drop(&mut self) {
        setfsgid(self.gid);
        setfsuid(self.uid);
    }
}
