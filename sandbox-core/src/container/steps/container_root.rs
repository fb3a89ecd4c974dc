//! The container's root, as which boot and a newborn access files.

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

/// Makes this process access files as the container's root until it is dropped. boot's own
/// ID is not the container's, and files that boot made in a root file system would belong
/// to it.
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
