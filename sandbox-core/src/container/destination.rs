//! Places inside a container's root file system, which is the workload's to
//! arrange: every component may be a symlink to anywhere. All walks are made by
//! the kernel with the container's root as root (openat2(2),
//! `RESOLVE_IN_ROOT`), and what is found is held by descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use crate::error::{Context, Result};
use crate::sys::mount::open_in_root;

/// What a mount point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// Opens a place as a path descriptor; `None` when there is nothing.
pub(super) fn find(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    match open_in_root(root, path, OFlags::PATH, Mode::empty()) {
        Ok(found) => Ok(Some(found)),
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NOTDIR)) => {
            Ok(None)
        }
        Err(e) => Err(e).context(|| format!("open {} in the container", path.display())),
    }
}

/// Opens a mount point, and makes it and the directories above it when they
/// are missing.
pub(super) fn ensure(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> Result<OwnedFd> {
    if let Some(found) = find(root, path)? {
        return Ok(found);
    }
    make(root, path, kind)
        .context(|| format!("make the mount point {} in the container", path.display()))?;
    open_in_root(root, path, OFlags::PATH, Mode::empty())
        .context(|| format!("open the mount point {} in the container", path.display()))
}

/// Makes what is missing on the way, component by component, each below a
/// directory that is held open.
fn make(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<()> {
    let mut so_far = std::path::PathBuf::from("/");
    let names: Vec<_> = path
        .components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    for (n, name) in names.iter().enumerate() {
        let parent = open_in_root(root, &so_far, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        so_far.push(name);
        match open_in_root(root, &so_far, OFlags::PATH, Mode::empty()) {
            Ok(_) => continue,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let last = n + 1 == names.len();
        if last && kind == Kind::File {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
            openat(parent.as_fd(), *name, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
        } else {
            mkdirat(parent.as_fd(), *name, Mode::from_raw_mode(0o755))?;
        }
    }
    Ok(())
}

/// Whether a descriptor refers to a directory.
pub(super) fn is_directory(fd: impl AsFd) -> Result<bool> {
    let stat = rustix::fs::fstat(fd).context(|| "fstat in the container")?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}
