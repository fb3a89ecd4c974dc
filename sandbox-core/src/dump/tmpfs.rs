//! Saves what is in a container's tmpfs, as the root of its user namespace, in its mounts.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags, fstatfs};

use super::visit::Visit;
use crate::checkpoint::tmpfs;
use crate::error::{Context, Error, Result};
use crate::sys::mount::{mount_of, open_in_root};
use crate::sys::process::{become_root, set_dumpable};

/// The type of a tmpfs (`linux/magic.h`).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Begins to save the tmpfs at a place in a container, by the pidfd of its init, into `to`.
///
/// The clone enters the container's user namespace, in which its processes have power over it.
/// None of them can name it: it stays in the host's PID namespace. And it has no descriptor of the
/// shim's but these two.
pub fn save(init: BorrowedFd<'_>, place: &Path, to: &File) -> Result<Visit> {
    Visit::begin(&[init, to.as_fd()], || {
        set_dumpable(false).context(|| "prctl PR_SET_DUMPABLE")?;
        setns(init, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
            .context(|| "enter the container's namespaces")?;
        become_root().context(|| "become root of the container's user namespace")?;
        let what = || format!("open {} in the container", place.display());
        let root = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", root, Mode::empty()).context(what)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = open_in_root(&root, place, flags, Mode::empty()).context(what)?;
        let is_tmpfs = fstatfs(&directory).context(what)?.f_type as i64 == TMPFS_MAGIC;
        if !is_tmpfs || !mount_of(&directory).context(what)?.at_root {
            return Err(Error::invalid(format!(
                "{} is no tmpfs any more, so that it cannot be saved",
                place.display()
            )));
        }
        let to = to.try_clone().context(|| "dup")?;
        tmpfs::save(directory.as_fd(), to)?;
        Ok(Vec::new())
    })
}
