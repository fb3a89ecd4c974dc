//! Makes new file systems, and sets the attributes of mounts.

use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::MountAttrFlags;

use crate::error::{Context, Result};
use crate::spec::plan::{FsOption, MountAttributes};
use crate::sys::mount::{AttrChange, Depth, FsContext, mount_setattr};

/// Makes a file system and a detached mount of it: fsopen(2) to fsmount(2).
pub(crate) fn file_system(fs_type: &str, options: &[FsOption]) -> Result<OwnedFd> {
    let context = FsContext::open(fs_type).context(|| format!("fsopen {fs_type}"))?;
    for (key, value) in options {
        context.option(key, value.as_deref()).context(|| match value {
            Some(value) => format!("{fs_type} option {key}={value}"),
            None => format!("{fs_type} option {key}"),
        })?;
    }
    context.create().context(|| format!("make a {fs_type}"))?;
    context.mount(MountAttrFlags::empty()).context(|| format!("mount a {fs_type}"))
}

/// Sets `MOUNT_ATTR_` flags, the recursive ones first, so that the mount's own take
/// precedence.
pub(crate) fn set_attributes(mount: impl AsFd, wanted: &MountAttributes) -> std::io::Result<()> {
    let changes = [
        (Depth::Tree, wanted.recursive_set, wanted.recursive_clear),
        (Depth::Top, wanted.set, wanted.clear),
    ];
    for (depth, set, clear) in changes {
        if !(set | clear).is_empty() {
            mount_setattr(&mount, depth, AttrChange { set, clear, ..AttrChange::default() })?;
        }
    }
    Ok(())
}
