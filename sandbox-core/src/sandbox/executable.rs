//! The `palisade` executable, opened so that nothing can change it.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::CWD;

use crate::error::{Context, Error, Result};
use crate::sys::mount::{AttrChange, Depth, clone_mount, mount_setattr};
use crate::sys::process::execute_descriptor;

/// An open executable on a private, read-only mount of its own. A container
/// that runs as the host's root could otherwise write to it through
/// `/proc/<pid>/exe` while one of our processes prepares its execve
/// (CVE-2019-5736).
#[derive(Debug)]
pub struct Executable(OwnedFd);

/// What to do about an executable that is not as it should be.
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
    /// Looks whether it could be opened.
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

    /// Opens it.
    ///
    /// # Errors
    /// A sentence that names the path when it is missing or cannot be executed
    /// by everybody: the sandbox process runs as nobody.
    pub fn open(path: &Path) -> Result<Self> {
        let mount = match clone_mount(CWD, path, Depth::Top) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(wrong(path, "is missing"));
            }
            other => other.context(|| format!("open_tree {}", path.display()))?,
        };
        let stat = rustix::fs::fstat(&mount).context(|| format!("stat {}", path.display()))?;
        check_mode(path, stat.st_mode)?;
        let read_only = AttrChange { set: libc::MOUNT_ATTR_RDONLY, ..AttrChange::default() };
        mount_setattr(&mount, Depth::Top, read_only)
            .context(|| format!("make a read-only mount of {}", path.display()))?;
        Ok(Self(mount))
    }

    /// Executes it with an empty environment. Returns only to say why not.
    pub fn execute(&self, args: &[CString]) -> Error {
        match execute_descriptor(self.0.as_fd(), args, &[]) {
            Err(e) => Error::internal(format!("execveat palisade: {e}")),
            Ok(never) => match never {},
        }
    }
}
