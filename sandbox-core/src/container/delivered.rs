//! The mounts that the gofer delivered for one container.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// One container's mounts, still detached.
#[derive(Debug, Default)]
pub(crate) struct DeliveredMounts {
    /// The root file system; absent for a container that runs nothing.
    pub(crate) rootfs: Option<OwnedFd>,
    /// The mounts by index into the plan's, each with whether it is not a directory.
    pub(crate) mounts: BTreeMap<usize, (OwnedFd, bool)>,
    /// The container's own device nodes.
    pub(crate) devices: Option<OwnedFd>,
}
