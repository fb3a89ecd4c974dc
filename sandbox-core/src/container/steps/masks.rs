//! Masked and read-only paths (OCI `linux.maskedPaths`, `linux.readonlyPaths`).

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;

use super::file_system::file_system;
use super::phase::{MountPhase, Phases};
use crate::container::paths::DEV_NULL;
use crate::error::{Context, Error, Result};
use crate::places::{find, is_directory};
use crate::spec::plan::ContainerPlan;
use crate::sys::mount::{AttrChange, Depth, attach_to, clone_mount, mount_setattr};

/// Masks and protects the paths that come in this phase.
pub(crate) fn cover(root: BorrowedFd<'_>, plan: &ContainerPlan, now: MountPhase) -> Result<()> {
    let phases = Phases::of(plan);
    let ours = |paths: &[PathBuf]| -> Vec<PathBuf> {
        paths.iter().filter(|path| phases.of_path(path) == now).cloned().collect()
    };
    ours(&plan.readonly_paths).iter().try_for_each(|p| make_read_only(root, p))?;
    ours(&plan.masked_paths).iter().try_for_each(|p| mask(root, p))
}

/// Hides a path: a file behind /dev/null, a directory behind an empty one. A path that
/// does not exist needs no mask.
fn mask(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let Some(place) = find(root, path)? else {
        return Ok(());
    };
    let what = || format!("mask {}", path.display());
    let cover = if is_directory(&place)? {
        let empty = file_system("tmpfs", &[("nr_inodes".to_owned(), Some("1".to_owned()))])?;
        mount_setattr(&empty, Depth::Top, AttrChange::READ_ONLY).context(what)?;
        empty
    } else {
        null_device().context(what)?
    };
    attach_to(&cover, &place).context(what)
}

/// Makes a path and all mounts below it read-only.
fn make_read_only(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let Some(place) = find(root, path)? else {
        return Ok(());
    };
    let what = || format!("make {} read-only", path.display());
    let again = clone_mount(&place, "", Depth::Tree).context(what)?;
    mount_setattr(&again, Depth::Tree, AttrChange::READ_ONLY).context(what)?;
    attach_to(&again, place.as_fd()).context(what)
}

/// Clones the sandbox's own null device. An image can fake the container's `/dev/null`
/// (CVE-2025-31133).
fn null_device() -> std::io::Result<std::os::fd::OwnedFd> {
    let null = clone_mount(CWD, DEV_NULL, Depth::Top)?;
    let stat = rustix::fs::fstat(&null)?;
    let is_null =
        stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3);
    match is_null {
        true => Ok(null),
        false => Err(std::io::Error::other(Error::internal(format!(
            "{DEV_NULL} is not the null device"
        )))),
    }
}
