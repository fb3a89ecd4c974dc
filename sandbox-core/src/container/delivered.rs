//! The mounts that the gofer delivered for one container.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// One container's mounts, still detached.
#[derive(Debug, Default)]
pub(crate) struct DeliveredMounts {
    /// The root file system; absent for a container that runs nothing.
    pub(crate) rootfs: Option<OwnedFd>,
    /// The mounts by index into the plan's, each with whether it is not a directory.
    pub(crate) mounts: BTreeMap<usize, (OwnedFd, bool)>,
    /// The mounts that hooks made, in order, each with its path and whether it is not a
    /// directory.
    pub(crate) of_hooks: Vec<(PathBuf, OwnedFd, bool)>,
    /// The container's own device nodes.
    pub(crate) devices: Option<OwnedFd>,
    /// The images of the checkpoint that it is restored from.
    pub(crate) images: Option<OwnedFd>,
    /// criu with what it needs to run, likewise.
    pub(crate) programs: Option<OwnedFd>,
}
