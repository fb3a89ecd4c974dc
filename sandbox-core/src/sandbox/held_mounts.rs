//! Holds the mounts of a pod's processes until nobody waits for their end.

use std::os::fd::OwnedFd;

use super::{Process, open_namespace};
use crate::sys::let_go::let_go;
use crate::sys::pidfd::mount_namespace_of;
use crate::types::HostPid;

/// A mount namespace of the pod. While it is held, the last process in it ends without
/// destroying its mounts: the kernel waits for a grace period then, and for an overlay's
/// files to be written, before it reports the exit. They are destroyed some time after this
/// value is dropped, by the kernel.
#[derive(Debug)]
pub struct HeldMounts(Option<OwnedFd>);

impl HeldMounts {
    /// Holds the mounts of a container's init, at its gate. If they cannot be held, its exit
    /// takes longer.
    pub fn of_process(process: &Process) -> Self {
        // Linux 6.11 and later.
        let by_pidfd = mount_namespace_of(&process.pidfd).ok();
        Self(by_pidfd.or_else(|| open_namespace(process.pid, "mnt").ok()))
    }

    /// Holds the mounts of boot.
    pub(super) fn of_boot(boot: HostPid) -> Self {
        Self(open_namespace(boot, "mnt").ok())
    }
}

impl Drop for HeldMounts {
    fn drop(&mut self) {
        let_go(self.0.take());
    }
}
