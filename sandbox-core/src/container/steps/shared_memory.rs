//! `/dev/shm` of a pod whose containers share their IPC namespace, for a sandbox of the
//! Sandbox service. Without a sandbox container containerd makes none
//! (`internal/cri/server/container_create.go`, `linuxContainerMounts`, leaves it to the
//! sandbox).

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::io::Errno;

use super::file_system::file_system;
use crate::container::paths::SHARED_MEMORY;
use crate::error::{Context, Result};
use crate::spec::plan::FsOption;
use crate::sys::mount::{Depth, attach_at, clone_mount};

/// Clones a mount of the pod's only tmpfs. The first container that wants it makes it
/// with its `options`.
pub(crate) fn open(options: &[FsOption]) -> Result<OwnedFd> {
    match mkdirat(CWD, SHARED_MEMORY, Mode::from_raw_mode(0o755)) {
        Ok(()) => {
            // The next container would take a directory without a tmpfs for the pod's.
            make(options).inspect_err(|_| {
                let _ = rustix::fs::rmdir(SHARED_MEMORY);
            })?;
        }
        Err(Errno::EXIST) => {}
        Err(e) => return Err(e).context(|| format!("mkdir {SHARED_MEMORY}")),
    }
    clone_mount(CWD, SHARED_MEMORY, Depth::Top).context(|| "open the pod's shared memory")
}

fn make(options: &[FsOption]) -> Result<()> {
    let tmpfs = file_system("tmpfs", options)?;
    attach_at(&tmpfs, SHARED_MEMORY).context(|| "attach the pod's shared memory")
}
