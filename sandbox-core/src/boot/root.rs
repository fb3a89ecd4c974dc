//! boot's root file system: empty but for what every container is made from.
//!
//! ```text
//! /proc         the pod's processes; attached when the gofer delivers it
//! /dev          the default device nodes; likewise
//! /containers   one directory a container while it is being made
//! /shm          the pod's shared memory, where containerd brings none
//! ```

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::error::{Context, Result};
use crate::sys::mount::{
    AttrChange, Depth, FsContext, PropagationKind, attach_at, mount_setattr_at,
};

/// The pod's processes.
pub(crate) const PROC: &str = "/proc";
/// The default device nodes.
pub(crate) const DEVICES: &str = "/dev";
/// The null device among them.
pub(crate) const DEV_NULL: &str = "/dev/null";
/// Where the pod's shared memory is attached, if it has one.
pub(crate) const SHARED_MEMORY: &str = "/shm";
/// Below this, containers are put together.
pub(crate) const CONTAINERS: &str = "/containers";

/// Leaves the host's file systems for an empty one.
pub(super) fn enter_empty() -> Result<()> {
    // Nothing that happens to mounts in here may reach the host.
    let private =
        AttrChange { propagation: Some(PropagationKind::Private), ..AttrChange::default() };
    mount_setattr_at("/", Depth::Tree, private).context(|| "make all mounts private")?;

    let root = FsContext::open("tmpfs").context(|| "fsopen tmpfs")?;
    for (key, value) in [("mode", "0755"), ("size", "64k"), ("nr_inodes", "256")] {
        root.string(key, value).context(|| format!("tmpfs option {key}={value}"))?;
    }
    root.create().context(|| "make the root file system")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = root.mount(attributes).context(|| "mount the root file system")?;
    attach_at(&root, "/").context(|| "attach the root file system")?;

    fchdir(&root).context(|| "enter the root file system")?;
    pivot_root(".", ".").context(|| "pivot_root")?;
    // The old root now lies on top of the new one.
    unmount(".", UnmountFlags::DETACH).context(|| "detach the host's file systems")?;
    chdir("/").context(|| "chdir /")?;

    for directory in [PROC, DEVICES, CONTAINERS] {
        mkdirat(CWD, directory, Mode::from_raw_mode(0o755))
            .context(|| format!("mkdir {directory}"))?;
    }
    Ok(())
}
