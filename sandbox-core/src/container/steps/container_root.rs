//! The container's root, as whom files are made.

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

/// While it lives, files are made and looked at as the container's root. boot
/// itself is nobody, and what nobody makes in a root file system would stay
/// nobody's.
pub(crate) struct AsContainerRoot {
    uid: Uid,
    gid: Gid,
}

impl AsContainerRoot {
    pub(crate) fn begin() -> Self {
        Self { gid: setfsgid(Gid::from_raw(0)), uid: setfsuid(Uid::from_raw(0)) }
    }
}

impl Drop for AsContainerRoot {
    fn drop(&mut self) {
        setfsgid(self.gid);
        setfsuid(self.uid);
    }
}
