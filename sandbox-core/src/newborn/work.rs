//! The directory that criu reads a checkpoint's images from and writes to, while it restores.
//!
//! ```text
//! criu/     criu, its loader and its libraries
//! images/   the images, as the checkpoint has them
//! work/     a link to each image, but for those that are written anew; criu's log
//! mounts    a link to the mount namespace that the container's first process joins
//! ```

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, renameat, statat, symlinkat,
};
use rustix::process::Pid;

use crate::checkpoint::{read_regular, seccomp};
use crate::container::filter::Filter;
use crate::container::own_id::ContainerRoot;
use crate::container::steps::container_root::{AsContainerRoot, own_root_of};
use crate::container::steps::file_system::file_system;
use crate::error::{Context, Error, FailureKind, Result};

/// Where it is attached in criu's sight: a directory that every proc has.
pub(crate) const WORK: &str = "/proc/driver";
/// criu's log, in the directory `work`.
pub(crate) const LOG: &str = "restore.log";
/// The directory that criu takes the images from.
pub(crate) const IMAGES: &str = "work";
/// The link to the mount namespace that the container's first process joins.
pub(crate) const MOUNTS: &str = "mounts";
/// The most images of a checkpoint. A process has about ten.
const MOST_IMAGES: usize = 1 << 16;

/// The directory, on a mount that is not attached.
pub(super) struct Work {
    pub(super) mount: OwnedFd,
    root: ContainerRoot,
}

/// Makes it. The container's processes get the seccomp program of its plan, whatever the images
/// say.
pub(super) fn make(images: &OwnedFd, root: ContainerRoot, filter: &Filter) -> Result<Work> {
    let _as_root = AsContainerRoot::begin(root);
    let options = [("mode", "0755"), ("size", "64m"), ("nr_inodes", "128k")];
    let options = options.map(|(key, value)| (key.to_owned(), Some(value.to_owned())));
    let mount = file_system("tmpfs", &options)?;
    own_root_of(&mount).context(|| "give criu's directory to the container's root")?;
    for name in ["criu", "images", IMAGES] {
        mkdirat(&mount, name, Mode::from_raw_mode(0o755))
            .context(|| format!("make criu's directory {name}"))?;
    }
    symlinkat("/proc/self/ns/mnt", &mount, MOUNTS).context(|| "link criu's mounts")?;
    let work = open_directory(&mount, IMAGES)?;
    let listed =
        openat(images, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context(|| "open the checkpoint's images")?;
    let mut count = 0;
    for entry in Dir::new(listed).context(|| "list the checkpoint's images")? {
        let entry = entry.context(|| "list the checkpoint's images")?;
        let name = entry.file_name();
        let Ok(text) = name.to_str() else { continue };
        if !text.ends_with(".img") || text == seccomp::NAME {
            continue;
        }
        count += 1;
        if count > MOST_IMAGES {
            return Err(Error::invalid(format!(
                "the checkpoint has more than {MOST_IMAGES} images"
            )));
        }
        // criu would wait for the writer of a FIFO.
        let found = statat(images, name, AtFlags::SYMLINK_NOFOLLOW)
            .context(|| format!("stat {text} of the checkpoint"))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(Error::invalid(format!("{text} of the checkpoint is no regular file")));
        }
        symlinkat(format!("../images/{text}"), &work, name)
            .context(|| format!("link the image {text}"))?;
    }
    write_seccomp(images, &work, filter)?;
    Ok(Work { mount, root })
}

/// Writes the image with the seccomp programs anew.
fn write_seccomp(images: &OwnedFd, work: &OwnedFd, filter: &Filter) -> Result<()> {
    let image = match read_regular(images.as_fd(), seccomp::NAME, seccomp::MAX_SIZE) {
        Err(e) if e.kind == FailureKind::NotFound => return Ok(()),
        image => image?,
    };
    let bytes = seccomp::with_program(&image, &filter.program, filter.flags)?;
    let what = || format!("write {} anew", seccomp::NAME);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let made = openat(work, seccomp::NAME, flags, Mode::from_raw_mode(0o644)).context(what)?;
    File::from(made).write_all(&bytes).context(what)
}

impl Work {
    /// Opens the directory that criu writes to.
    pub(super) fn directory(&self) -> Result<OwnedFd> {
        open_directory(&self.mount, IMAGES)
    }

    /// Leads the container's first process to the mounts of a process of the pod.
    pub(super) fn show_mounts_of(&self, process: Pid) -> Result<()> {
        let _as_root = AsContainerRoot::begin(self.root);
        let target = format!("/proc/{}/ns/mnt", process.as_raw_nonzero());
        symlinkat(target, &self.mount, "new").context(|| "link the container's mounts")?;
        renameat(&self.mount, "new", &self.mount, MOUNTS).context(|| "link the container's mounts")
    }
}

fn open_directory(mount: impl AsFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(mount, name, flags, Mode::empty()).context(|| format!("open criu's directory {name}"))
}
