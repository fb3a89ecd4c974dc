//! Enters boot's root file system, which is empty except for the places of
//! `container/paths.rs`.

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::container::paths::{CONTAINER, DEVICES, OWN_DEVICES, PROC};
use crate::error::{Context, Result};
use crate::sys::mount::{
    AttrChange, Depth, FsContext, PropagationKind, attach_at, mount_setattr_at,
};

/// Replaces the host's file systems by an empty one.
pub(super) fn enter_empty() -> Result<()> {
    // Changes of mounts in here must not reach the host.
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
    // The old root is now mounted over the new one.
    unmount(".", UnmountFlags::DETACH).context(|| "detach the host's file systems")?;
    chdir("/").context(|| "chdir /")?;

    for directory in [PROC, DEVICES, CONTAINER, OWN_DEVICES] {
        mkdirat(CWD, directory, Mode::from_raw_mode(0o755))
            .context(|| format!("mkdir {directory}"))?;
    }
    Ok(())
}
