//! `/dev/shm` of a pod whose containers share their IPC namespace, for a sandbox of the
//! Sandbox service. Without a sandbox container containerd makes none
//! (`internal/cri/server/container_create.go`, `linuxContainerMounts`, leaves it to the
//! sandbox).

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::io::Errno;

use super::container_root::AsContainerRoot;
use super::file_system::file_system;
use crate::container::own_id::ContainerRoot;
use crate::container::paths::SHARED_MEMORY;
use crate::error::{Context, Result};
use crate::spec::plan::{ContainerPlan, FsOption, MountSource};
use crate::sys::mount::{Depth, attach_at, clone_mount};

/// Makes the pod's only tmpfs, as boot, if the container wants it and is the first one.
pub(crate) fn make_if_wanted(plan: &ContainerPlan, root: ContainerRoot) -> Result<()> {
    let wanted = plan.mounts.iter().find_map(|mount| match &mount.source {
        MountSource::SharedMemory(options) => Some(options),
        _ => None,
    });
    let Some(options) = wanted else { return Ok(()) };
    let _as_root = AsContainerRoot::begin(root);
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
    Ok(())
}

/// Clones a mount of it.
pub(crate) fn open() -> Result<OwnedFd> {
    clone_mount(CWD, SHARED_MEMORY, Depth::Top).context(|| "open the pod's shared memory")
}

fn make(options: &[FsOption]) -> Result<()> {
    let tmpfs = file_system("tmpfs", options)?;
    attach_at(&tmpfs, SHARED_MEMORY).context(|| "attach the pod's shared memory")
}
