//! Block devices over files, for root file systems with the option `loop`: containerd's
//! blockfile and erofs snapshotters leave them to the shim.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use crate::error::{Context, Error, Result};
use crate::gofer::options::Options;
use crate::sys::loop_device::{Backing, backing, configure, free_number};

/// A loop device. It is over its file until this and every mount of it are gone.
pub(super) struct LoopDevice {
    pub(super) path: PathBuf,
    /// Keeps the device until it is mounted.
    _open: OwnedFd,
}

/// How often a device is looked for that another process does not take first.
const TRIES: usize = 20;

/// Puts a device over a file. One that is over the same file already is used again, as
/// mount(8) does: a file system that was mounted from two devices would be destroyed.
pub(super) fn attach(file: &str, options: &Options) -> Result<LoopDevice> {
    let read_only = options.read_only();
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let what = || format!("putting a loop device over {file:?}");
    let opened = open(file, access | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::invalid(format!("{}: the file cannot be opened: {e}", what())))?;
    let opened = File::from(opened);
    let stat = opened.metadata().context(what)?;
    if !stat.is_file() {
        return Err(Error::invalid(format!("{}: expected a plain file", what())));
    }
    if let Some(device) = over((stat.dev(), stat.ino()), read_only).context(what)? {
        return Ok(device);
    }
    let direct_io = options.fs.iter().any(|(key, value)| key == DIRECT_IO && value.is_none());
    fresh(&opened, read_only, direct_io)
        .context(|| format!("{} (does the host lend loop devices, /dev/loop-control?)", what()))
}

/// The option of containerd's for a device without a page cache of its own.
pub(super) const DIRECT_IO: &str = "direct-io";

fn fresh(file: &File, read_only: bool, direct_io: bool) -> io::Result<LoopDevice> {
    let control = open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut tried = 0;
    loop {
        let path = PathBuf::from(format!("/dev/loop{}", free_number(&control)?));
        let device = device(&path, read_only)?;
        match configure(&device, file, read_only, direct_io) {
            Ok(()) => return Ok(LoopDevice { path, _open: device }),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && tried < TRIES => tried += 1,
            Err(e) => return Err(e),
        }
    }
}

/// Finds a device that is over a file.
fn over(file: (u64, u64), read_only: bool) -> io::Result<Option<LoopDevice>> {
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        // Only a device that is over something has this directory.
        if !entry.path().join("loop").exists() {
            continue;
        }
        let path = Path::new("/dev").join(entry.file_name());
        let Ok(device) = device(&path, read_only) else { continue };
        let serves =
            |found: Backing| found.file == file && found.whole && (read_only || !found.read_only);
        if !backing(&device).is_ok_and(serves) {
            continue;
        }
        return Ok(Some(LoopDevice { path, _open: device }));
    }
    Ok(None)
}

fn device(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    Ok(open(path, access | OFlags::CLOEXEC, Mode::empty())?)
}
