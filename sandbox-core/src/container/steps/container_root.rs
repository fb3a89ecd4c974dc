//! The container's root, as which boot and a newborn access files.

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::container::own_id::ContainerRoot;

/// Makes this process access files as the container's root until it is dropped. boot's own
/// ID is not the container's, and files that boot made in a root file system would belong
/// to it.
pub(crate) struct AsContainerRoot {
    uid: Uid,
    gid: Gid,
}

impl AsContainerRoot {
    pub(crate) fn begin(root: ContainerRoot) -> Self {
        let (uid, gid) = (Uid::from_raw(root.uid), Gid::from_raw(root.gid));
        Self { gid: setfsgid(gid), uid: setfsuid(uid) }
    }
}

impl Drop for AsContainerRoot {
    fn drop(&mut self) {
        setfsgid(self.gid);
        setfsuid(self.uid);
    }
}
