//! Opens what a container is restored from: the images, which criu reads as nobody on the host,
//! and criu itself with its loader and libraries.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, mknodat};
use rustix::mount::MountAttrFlags;

use crate::error::{Context, Error, Result};
use crate::gofer::assemble::{Way, assemble};
use crate::gofer::bind;
use crate::gofer::cloned_tree::{ClonedTree, MOUNT_REMEDY, restrict};
use crate::gofer::filesystem::finish;
use crate::gofer::users::Users;
use crate::spec::plan::IdmapChoice;
use crate::sys::mount::{Depth, FsContext, PropagationKind};

/// Opens the directory with the images, read-only. It belongs to the host's root and is closed to
/// all others, so its owners are mapped.
pub(super) fn images(directory: &Path, users: Option<&Users>) -> Result<OwnedFd> {
    let choice = IdmapChoice::Sandbox;
    let opened = bind::open(directory, Depth::Top, &choice, None, users)
        .map_err(|e| Error::new(e.kind, format!("checkpoint: {e}")))?;
    if opened.is_file {
        return Err(Error::invalid(format!(
            "checkpoint: expected a directory, and {} is none",
            directory.display()
        )));
    }
    restrict(&opened.mount, read_only() | MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    Ok(opened.mount)
}

/// Makes a tmpfs on which the files of criu are mounted, read-only.
pub(super) fn programs(files: &[(String, PathBuf)]) -> Result<OwnedFd> {
    let tmpfs = tmpfs()?;
    let mut parts = Vec::new();
    for (name, path) in files {
        mknodat(&tmpfs, name.as_str(), FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
            .context(|| format!("making the place of {}", path.display()))?;
        let clone = ClonedTree::open(path, Depth::Top, MOUNT_REMEDY)?;
        let mount = clone.keep_owners(Some(PropagationKind::Private))?;
        restrict(&mount, read_only())?;
        parts.push((Path::new(name), mount));
    }
    let made = assemble(&tmpfs, &parts, Way::Plain)?;
    restrict(&made, read_only())?;
    Ok(made)
}

fn read_only() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
}

fn tmpfs() -> Result<OwnedFd> {
    let make = || {
        let context = FsContext::open("tmpfs")?;
        context.string("mode", "755")?;
        context.string("size", "64k")?;
        finish(&context, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)
    };
    make().context(|| "mounting a tmpfs for criu")
}
