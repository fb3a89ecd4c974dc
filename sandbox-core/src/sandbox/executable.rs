//! Opens the `palisade-sandbox` executable so that no process can change it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, OFlags};

use super::lock;
use crate::error::{Context, Error, Result};
use crate::sys::mount::{AttrChange, Depth, clone_mount, mount_setattr, open_again};

/// An open executable on its own private, read-only mount. Otherwise a container that
/// runs as the host's root could write to it through `/proc/<pid>/exe` while a process
/// of Palisade prepares its execve (CVE-2019-5736).
///
/// While the mount is only detached, a process with CAP_SYS_ADMIN in any user namespace that
/// opens `/proc/<pid>/exe` can make it writable with mount_setattr(2). The last close of the
/// descriptor of open_tree dissolves the mount. Then no process can change it, and it lives
/// on through the other descriptor. That close waits for a grace period of the kernel, so
/// the last one is left to the first gofer, which closes it when it ends; nobody waits for
/// that, but the first program of a container does until the mount is dissolved.
#[derive(Debug)]
pub struct Executable {
    file: OwnedFd,
    mount: Mutex<Option<OwnedFd>>,
    /// What [`Executable::is_dissolved`] has found.
    dissolved: AtomicBool,
}

/// Returns the error for an unusable executable, with what to do about it.
fn wrong(path: &Path, what: &str) -> Error {
    let advice = "install it beside containerd-shim-palisade-v1, owned by root, mode 0755";
    Error::internal(format!("{} {what}; {advice}", path.display()))
}

fn check_mode(path: &Path, mode: u32) -> Result<()> {
    match mode & libc::S_IFMT == libc::S_IFREG && mode & 0o001 != 0 {
        true => Ok(()),
        false => Err(wrong(path, "is not a file that every user may execute")),
    }
}

impl Executable {
    /// Checks that the executable can be opened.
    ///
    /// # Errors
    /// As [`Executable::open`].
    pub fn check(path: &Path) -> Result<()> {
        match std::fs::metadata(path) {
            Ok(metadata) => check_mode(path, metadata.mode()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(wrong(path, "is missing")),
            Err(e) => Err(e).context(|| format!("stat {}", path.display())),
        }
    }

    /// Opens the executable.
    ///
    /// # Errors
    /// The error names the path if the file is missing or not executable for all users:
    /// boot runs with an ID of its own.
    pub fn open(path: &Path) -> Result<Self> {
        let mount = match clone_mount(CWD, path, Depth::Top) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(wrong(path, "is missing"));
            }
            other => other.context(|| format!("open_tree {}", path.display()))?,
        };
        let stat = rustix::fs::fstat(&mount).context(|| format!("stat {}", path.display()))?;
        check_mode(path, stat.st_mode)?;
        mount_setattr(&mount, Depth::Top, AttrChange::READ_ONLY)
            .context(|| format!("make a read-only mount of {}", path.display()))?;
        let file = open_again(&mount, OFlags::empty())
            .context(|| format!("open {} again", path.display()))?;
        Ok(Self { file, mount: Mutex::new(Some(mount)), dissolved: AtomicBool::new(false) })
    }

    /// Takes the mount's own descriptor, if it is still here.
    pub(super) fn leave_mount(&self) -> Option<OwnedFd> {
        lock(&self.mount).take()
    }

    /// Whether no process can change the mount any more.
    pub(super) fn is_dissolved(&self) -> bool {
        // The kernel refuses a mount that is nowhere. Nothing would change: it is read-only.
        if !self.dissolved.load(Ordering::Relaxed) {
            let changed = mount_setattr(&self.file, Depth::Top, AttrChange::READ_ONLY);
            let gone = changed.is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL));
            self.dissolved.store(gone, Ordering::Relaxed);
        }
        self.dissolved.load(Ordering::Relaxed)
    }

    /// Returns the file, to be executed.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
