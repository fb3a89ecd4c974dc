//! Enters boot's root file system, which is empty except for the places of
//! `container/paths.rs`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, mkdirat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};
use rustix::process::{WaitId, WaitIdOptions, chdir, fchdir, pivot_root, waitid};

use crate::container::paths::{CONTAINER, DEVICES, OWN_DEVICES, PROC, UNCOVERED, VIEWS};
use crate::error::{Context, Result};
use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
use crate::sys::mount::{
    AttrChange, Depth, FsContext, PropagationKind, attach_at, mount_setattr_at,
};
use crate::sys::process::exit_now;

/// Replaces the host's file systems by an empty one.
pub(super) fn enter_empty(alone: &SingleThreaded) -> Result<()> {
    // The host's /proc goes with the rest.
    let mounts = std::fs::File::open("/proc/self/mountinfo").context(|| "open mountinfo")?;
    // Changes of mounts in here must not reach the host.
    let private =
        AttrChange { propagation: Some(PropagationKind::Private), ..AttrChange::default() };
    mount_setattr_at("/", Depth::Tree, private).context(|| "make all mounts private")?;

    let root = FsContext::open("tmpfs").context(|| "fsopen tmpfs")?;
    for (key, value) in [("mode", "0755"), ("size", "64k"), ("nr_inodes", "256")] {
        root.string(key, value).context(|| format!("tmpfs option {key}={value}"))?;
    }
    root.create().context(|| "make the root file system")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = root.mount(attributes).context(|| "mount the root file system")?;
    attach_at(&root, "/").context(|| "attach the root file system")?;

    fchdir(&root).context(|| "enter the root file system")?;
    pivot_root(".", ".").context(|| "pivot_root")?;
    // The old root is now mounted over the new one.
    detach_here(alone, mounts.into()).context(|| "detach the host's file systems")?;
    chdir("/").context(|| "chdir /")?;

    for directory in [PROC, DEVICES, CONTAINER, OWN_DEVICES, VIEWS, UNCOVERED] {
        mkdirat(CWD, directory, Mode::from_raw_mode(0o755))
            .context(|| format!("mkdir {directory}"))?;
    }
    Ok(())
}

/// Detaches the mount at the working directory. The system call returns only after a grace
/// period of the kernel, but the mount is gone before that. So a child makes the call, and
/// `mountinfo` of this mount namespace reports the change (proc_pid_mountinfo(5)). boot
/// collects the child as it does any other.
fn detach_here(alone: &SingleThreaded, mountinfo: OwnedFd) -> io::Result<()> {
    let detach = || unmount(".", UnmountFlags::DETACH);
    // Forgets the changes so far.
    poll(&mut [PollFd::new(&mountinfo, PollFlags::PRI)], Some(&Timespec::default()))?;
    let pidfd = match clone_into(alone, CloneFlags::empty(), None) {
        Ok(Cloned::Parent { pidfd, .. }) => pidfd,
        Ok(Cloned::Child) => exit_now(detach().is_err().into()),
        // The cgroup may have room for no more processes.
        Err(_) => return Ok(detach()?),
    };
    let mut either = [PollFd::new(&mountinfo, PollFlags::PRI), PollFd::new(&pidfd, PollFlags::IN)];
    while let Err(Errno::INTR) = poll(&mut either, None) {}
    if !either[0].revents().is_empty() {
        return Ok(());
    }
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), options)?;
    match status.and_then(|status| status.exit_status()) {
        Some(0) => Ok(()),
        _ => Err(io::Error::other("umount2 failed in a child")),
    }
}
