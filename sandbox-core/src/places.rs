//! Places inside a container's root file system, for boot, newborns, and a gofer that shows it to
//! hooks. The workload controls it, so every
//! component may be a symlink to anywhere. The kernel resolves all paths with the
//! container's root as root (openat2(2), `RESOLVE_IN_ROOT`), and descriptors hold the
//! result.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, mkdirat, open, openat, readlinkat};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::sys::mount::{open_in_root, open_plain_in_root};

/// The types of proc and sysfs (`linux/magic.h`).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// The type of a mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// Opens a container's root, or this process's, as a path descriptor.
pub(crate) fn open_root(path: &str) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).context(|| format!("open {path}"))
}

/// Opens a place with `O_PATH`. `None` if it does not exist.
pub(crate) fn find(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    match open_in_root(root, path, OFlags::PATH, Mode::empty()) {
        Ok(found) => Ok(Some(found)),
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NOTDIR)) => {
            Ok(None)
        }
        Err(e) => Err(e).context(|| format!("open {} in the container", path.display())),
    }
}

/// Opens a mount point. Makes it and the directories above it if they are missing.
pub(crate) fn ensure(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> Result<OwnedFd> {
    if let Some(found) = find(root, path)? {
        return Ok(found);
    }
    make(root, path, kind)
        .context(|| format!("make the mount point {} in the container", path.display()))?;
    open_in_root(root, path, OFlags::PATH, Mode::empty())
        .context(|| format!("open the mount point {} in the container", path.display()))
}

/// As [`ensure`], for a directory to which no symlink may lead.
///
/// # Errors
/// `Invalid` if a component of the path is a symlink.
fn ensure_plain(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    ensure(root, path, Kind::Directory)?;
    open_plain_in_root(root, path, OFlags::PATH | OFlags::DIRECTORY).map_err(|e| {
        match Errno::from_io_error(&e) {
            Some(Errno::LOOP) => Error::invalid(format!(
                "{} is or leads through a symlink in the image; expected a plain directory",
                path.display()
            )),
            _ => Error::internal(format!("open {} in the container: {e}", path.display())),
        }
    })
}

/// Opens the place of a mount. A proc or sysfs at its usual place takes a plain directory, as in
/// runc: what masks it must be certain to lie on it.
pub(crate) fn ensure_for(
    root: BorrowedFd<'_>,
    path: &Path,
    kind: Kind,
    shows_the_kernel: bool,
) -> Result<OwnedFd> {
    let is_usual = path == Path::new("/proc") || path == Path::new("/sys");
    if kind == Kind::Directory && shows_the_kernel && is_usual {
        return ensure_plain(root, path);
    }
    ensure(root, path, kind)
}

/// Whether a mount is a proc or a sysfs.
pub(crate) fn shows_the_kernel(mount: &OwnedFd) -> Result<bool> {
    Ok([PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&file_system_type(mount)?))
}

/// Whether a mount is a proc.
pub(crate) fn is_proc(mount: &OwnedFd) -> Result<bool> {
    Ok(file_system_type(mount)? == PROC_SUPER_MAGIC)
}

fn file_system_type(mount: &OwnedFd) -> Result<i64> {
    Ok(rustix::fs::fstatfs(mount).context(|| "fstatfs of a mount")?.f_type)
}

/// The most symlinks that the kernel follows in one path: path_resolution(7).
const MAX_LINKS: usize = 40;

/// Makes the missing components of a path, each below a directory that is held open. A
/// dangling symlink is followed, inside the root, and its target is made: an image's
/// `/etc/resolv.conf` may lead into an empty `/run`.
fn make(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<()> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match make_up_to_link(root, &path, kind)? {
            None => return Ok(()),
            Some(onwards) => path = onwards,
        }
    }
    Err(Errno::LOOP.into())
}

/// Makes the missing components up to the first dangling symlink. Returns the rest of the
/// path through that symlink.
fn make_up_to_link(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<Option<PathBuf>> {
    let names: Vec<_> = path.components().filter(|c| *c != Component::RootDir).collect();
    let mut so_far = PathBuf::from("/");
    for (n, name) in names.iter().enumerate() {
        let parent = open_in_root(root, &so_far, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        let above = so_far.clone();
        so_far.push(name);
        match open_in_root(root, &so_far, OFlags::PATH, Mode::empty()) {
            Ok(_) => continue,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let name = name.as_os_str();
        if let Ok(target) = readlinkat(&parent, name, Vec::new()) {
            let target = Path::new(OsStr::from_bytes(target.to_bytes()));
            return Ok(Some(above.join(target).join(names[n + 1..].iter().collect::<PathBuf>())));
        }
        if n + 1 == names.len() && kind == Kind::File {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
            openat(&parent, name, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
        } else {
            mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
        }
    }
    Ok(None)
}

/// Whether a descriptor refers to a directory.
pub(crate) fn is_directory(fd: impl AsFd) -> Result<bool> {
    let stat = rustix::fs::fstat(fd).context(|| "fstat in the container")?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}
