//! The container's root, as which boot and a newborn access files.

use std::io;
use std::os::fd::AsFd;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{AtFlags, chownat};

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

/// Gives the root of a new file system to the container's root, as whom this process makes
/// files now. The kernel gives it to ID 0 of the mounter's user namespace, and boot's has
/// none (chown(2) of a file without an owner takes CAP_CHOWN there).
pub(crate) fn own_root_of(mount: impl AsFd) -> io::Result<()> {
    // No user has this ID, so nothing changes: setfsuid(2), setfsgid(2).
    let uid = setfsuid(Uid::from_raw(u32::MAX)).as_raw();
    let gid = setfsgid(Gid::from_raw(u32::MAX)).as_raw();
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    Ok(chownat(mount, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}
