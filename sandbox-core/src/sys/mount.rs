//! Mounts by descriptor: the parts of Linux 5.12's mount API that rustix lacks, and the
//! combinations that both the gofer and boot use.
//!
//! A mount without a place is a *detached mount*: an `OwnedFd` from [`clone_mount`] or
//! [`FsContext::mount`]. Closing it destroys the mount.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use rustix::path::Arg;
use serde::{Deserialize, Serialize};

use super::check;
use super::let_go::let_go_later;

/// The mounts that a change applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Only the top mount.
    Top,
    /// The top mount and all below it.
    Tree,
}

impl From<bool> for Depth {
    /// Converts the `recursive` of a plan.
    fn from(recursive: bool) -> Self {
        if recursive { Self::Tree } else { Self::Top }
    }
}

/// Makes a detached copy of the mount at `path`, with that directory or file as its root
/// (open_tree(2) with `OPEN_TREE_CLONE`). Follows symlinks. An empty path means `dir`
/// itself.
pub fn clone_mount(dir: impl AsFd, path: impl Arg, depth: Depth) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if depth == Depth::Tree {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(dir, path, flags)?)
}

/// Opens a place (`O_PATH`) for [`clone_mount`]. Follows symlinks, and has the kernel mount
/// what is mounted at its first use, as open_tree(2) does.
pub fn open_place(path: impl Arg) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

/// The mount that a descriptor is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnMount {
    /// Its ID in the mount table.
    pub id: u64,
    /// Whether the descriptor is its root.
    pub at_root: bool,
}

/// Returns the mount that a descriptor is on. Asks no file system, which could block.
pub fn mount_of(fd: impl AsFd) -> io::Result<OnMount> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(fd, c"", flags, StatxFlags::MNT_ID)?;
    let at_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok(OnMount { id: stat.stx_mnt_id, at_root })
}

/// Opens a directory (`O_PATH`) on a mount of its own that is nowhere, so that `..` leads no
/// further: a process of another mount namespace that has the descriptor would otherwise climb
/// to the root of this one.
pub fn open_alone(directory: impl Arg) -> io::Result<OwnedFd> {
    let mount = clone_mount(CWD, directory, Depth::Top)?;
    let directory = open_again(&mount, OFlags::DIRECTORY)?;
    let_go_later([mount]);
    Ok(directory)
}

/// Opens the root of a detached mount once more, with `O_PATH`. This descriptor does not
/// dissolve the mount when it is closed, and survives that.
pub fn open_again(mount: impl AsFd, flags: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", mount.as_fd().as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty())?)
}

/// Attaches a detached mount to the file or directory of a descriptor (move_mount(2)),
/// so that no symlink can redirect it. `target` may be opened with `O_PATH`.
pub fn attach_to(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, c"", target, c"", flags)?)
}

/// Attaches a detached mount at a path in which all directories are trusted
/// (move_mount(2)). Does not follow a symlink in the last component.
pub fn attach_at(mount: impl AsFd, path: impl Arg) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, c"", CWD, path, flags)?)
}

/// The changes for mount_setattr(2). By default, none.
#[derive(Clone, Copy, Debug)]
pub struct AttrChange<'a> {
    /// Attributes to set. A call that sets an access time mode must also clear
    /// `MOUNT_ATTR__ATIME`.
    pub set: MountAttrFlags,
    /// Attributes to clear, before [`AttrChange::set`].
    pub clear: MountAttrFlags,
    /// New kind of propagation.
    pub propagation: Option<PropagationKind>,
    /// User namespace by which the mount's owners are mapped (`MOUNT_ATTR_IDMAP`). The
    /// mount must be detached and not idmapped yet.
    pub idmap: Option<BorrowedFd<'a>>,
}

impl AttrChange<'_> {
    const NONE: Self = Self {
        set: MountAttrFlags::empty(),
        clear: MountAttrFlags::empty(),
        propagation: None,
        idmap: None,
    };

    /// Makes the mount read-only and changes nothing else.
    pub const READ_ONLY: Self = Self { set: MountAttrFlags::MOUNT_ATTR_RDONLY, ..Self::NONE };
}

impl Default for AttrChange<'_> {
    fn default() -> Self {
        Self::NONE
    }
}

/// Changes the mount of a descriptor (mount_setattr(2)). With [`Depth::Tree`] all mounts
/// change, or none.
pub fn mount_setattr(mount: impl AsFd, depth: Depth, change: AttrChange<'_>) -> io::Result<()> {
    setattr(mount.as_fd(), c"", depth, change)
}

/// Changes the mount at a path in which all directories are trusted (mount_setattr(2)).
pub fn mount_setattr_at(path: impl Arg, depth: Depth, change: AttrChange<'_>) -> io::Result<()> {
    let path = path.into_c_str()?;
    setattr(CWD, &path, depth, change)
}

fn setattr(
    dir: BorrowedFd<'_>,
    path: &CStr,
    depth: Depth,
    change: AttrChange<'_>,
) -> io::Result<()> {
    let mut set = change.set;
    set.set(MountAttrFlags::MOUNT_ATTR_IDMAP, change.idmap.is_some());
    let attr = libc::mount_attr {
        attr_set: set.bits().into(),
        attr_clr: change.clear.bits().into(),
        propagation: change.propagation.map_or(0, propagation_bits),
        userns_fd: change.idmap.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let mut flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    if depth == Depth::Tree {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `path` is a C string and `attr` a whole `struct mount_attr` of
    // the size that is passed; both outlive the call, which only reads them.
    // The kernel keeps no pointer, and the descriptors are borrowed by the caller.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// The four kinds of propagation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PropagationKind {
    /// `MS_SHARED`
    Shared,
    /// `MS_SLAVE`
    Slave,
    /// `MS_PRIVATE`
    Private,
    /// `MS_UNBINDABLE`
    Unbindable,
}

fn propagation_bits(kind: PropagationKind) -> u64 {
    match kind {
        PropagationKind::Shared => libc::MS_SHARED,
        PropagationKind::Slave => libc::MS_SLAVE,
        PropagationKind::Private => libc::MS_PRIVATE,
        PropagationKind::Unbindable => libc::MS_UNBINDABLE,
    }
}

/// A file system that is being configured (fsopen(2)). Its errors have the kernel's
/// messages as well as the number.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// Starts to make a file system of this type. Fails with `ENODEV` if the kernel does
    /// not know the type.
    pub fn open(fs_type: impl Arg) -> Result<Self, FsError> {
        Ok(Self(rustix::mount::fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?))
    }

    /// Sets an option without a value.
    pub fn flag(&self, key: &str) -> Result<(), FsError> {
        self.explain(rustix::mount::fsconfig_set_flag(&self.0, key))
    }

    /// Sets an option.
    pub fn string(&self, key: &str, value: impl Arg) -> Result<(), FsError> {
        self.explain(rustix::mount::fsconfig_set_string(&self.0, key, value))
    }

    /// Sets an option whose value is a descriptor.
    pub fn fd(&self, key: &str, value: impl AsFd) -> Result<(), FsError> {
        self.explain(rustix::mount::fsconfig_set_fd(&self.0, key, value))
    }

    /// Sets `key` or `key=value`.
    pub fn option(&self, key: &str, value: Option<&str>) -> Result<(), FsError> {
        match value {
            Some(value) => self.string(key, value),
            None => self.flag(key),
        }
    }

    /// Makes the file system. If its type shares file systems with the same source, takes
    /// an existing one.
    pub fn create(&self) -> Result<(), FsError> {
        self.explain(rustix::mount::fsconfig_create(&self.0))
    }

    /// Makes a detached mount of the file system that [`FsContext::create`] made
    /// (fsmount(2)).
    pub fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd, FsError> {
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        self.explain(rustix::mount::fsmount(&self.0, flags, attributes))
    }

    /// Adds the context's messages to an error. Each read returns one, with a severity
    /// letter in front.
    fn explain<T>(&self, result: rustix::io::Result<T>) -> Result<T, FsError> {
        result.map_err(|errno| {
            let mut messages = Vec::new();
            let mut line = [0; 1024];
            while let Ok(length) = rustix::io::read(&self.0, &mut line) {
                let text = String::from_utf8_lossy(&line[..length]);
                let text = text.trim_end();
                messages.push(text.get(2..).unwrap_or(text).to_owned());
                if length == 0 || messages.len() == 8 {
                    break;
                }
            }
            FsError { errno, messages }
        })
    }
}

impl AsFd for FsContext {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The reason why a file system could not be made.
#[derive(Clone, Debug)]
pub struct FsError {
    /// The kernel's error number.
    pub errno: Errno,
    /// The file system's messages in the context.
    pub messages: Vec<String>,
}

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        Self { errno, messages: Vec::new() }
    }
}

impl From<FsError> for io::Error {
    fn from(error: FsError) -> Self {
        if error.messages.is_empty() { error.errno.into() } else { io::Error::other(error) }
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from(self.errno))?;
        if self.messages.is_empty() {
            return Ok(());
        }
        write!(f, " (the kernel's message: {})", self.messages.join("; "))
    }
}

impl std::error::Error for FsError {}

/// Opens `path` as a process whose root is `root` would: neither `..` nor an absolute
/// symlink leads out of it. Magic links of /proc are refused (openat2(2),
/// `RESOLVE_IN_ROOT`).
pub fn open_in_root(
    root: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    resolve(root.as_fd(), path.as_ref(), flags, mode, ResolveFlags::IN_ROOT)
}

/// As [`open_in_root`], but a symlink in the path is an error, `ELOOP` (openat2(2),
/// `RESOLVE_NO_SYMLINKS`).
pub fn open_plain_in_root(
    root: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
) -> io::Result<OwnedFd> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    resolve(root.as_fd(), path.as_ref(), flags, Mode::empty(), how)
}

/// Opens `path` below `dir`. A component that leads out is an error (openat2(2),
/// `RESOLVE_BENEATH`), rather than resolved inside.
pub fn open_beneath(
    dir: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    resolve(dir.as_fd(), path.as_ref(), flags, mode, ResolveFlags::BENEATH)
}

/// As [`open_beneath`], but a symlink in the path is an error, `ELOOP` (openat2(2),
/// `RESOLVE_NO_SYMLINKS`).
pub fn open_plain_beneath(
    dir: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
) -> io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    resolve(dir.as_fd(), path.as_ref(), flags, Mode::empty(), how)
}

fn resolve(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: a directory was renamed or mounted meanwhile, so the kernel could not prove
    // that the path stays inside. Bounded, since an attacker can rename forever.
    for _ in 0..128 {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => continue,
            result => return Ok(result?),
        }
    }
    Err(Errno::AGAIN.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_error_has_the_kernel_s_message() {
        let context = FsContext::open("tmpfs").expect("the tests run as root");
        let error = context.string("size", "many").unwrap_err();
        assert_eq!(error.errno, Errno::INVAL);
        assert!(error.to_string().contains("size"), "{error}");
    }

    #[test]
    fn nothing_above_a_directory_that_is_alone_can_be_reached() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("above/alone/below")).unwrap();
        let path = dir.path().join("above/alone");
        let names = |fd: &OwnedFd| -> Vec<_> {
            let list = std::fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
            list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let up = |fd: &OwnedFd| rustix::fs::openat(fd, "..", OFlags::PATH, Mode::empty()).unwrap();
        let alone = open_alone(&path).unwrap();
        assert_eq!(names(&alone), ["below"]);
        assert_eq!(names(&up(&alone)), ["below"]);
        // From a directory of a mount that is somewhere, it leads on.
        let there = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap();
        assert_eq!(names(&up(&there)), ["alone"]);
    }

    #[test]
    fn a_path_in_a_root_stays_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/../../x", dir.path().join("out")).unwrap();
        std::fs::write(dir.path().join("x"), "inside").unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let found = open_in_root(&root, "/out", OFlags::PATH, Mode::empty()).unwrap();
        let stat = rustix::fs::fstat(&found).unwrap();
        assert_eq!(stat.st_size, 6);
        assert!(open_beneath(&root, "out", OFlags::PATH, Mode::empty()).is_err());
    }
}
