//! What the gofer delivered for one container.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// One container's mounts, still detached.
#[derive(Debug, Default)]
pub(crate) struct DeliveredMounts {
    /// The root file system; absent for a container that runs nothing.
    pub(crate) rootfs: Option<OwnedFd>,
    /// By index into the plan's mounts, with whether it is no directory.
    pub(crate) mounts: BTreeMap<usize, (OwnedFd, bool)>,
    /// The container's own device nodes.
    pub(crate) devices: Option<OwnedFd>,
}
