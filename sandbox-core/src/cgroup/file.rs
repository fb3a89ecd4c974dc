//! Reads and writes the small files of a cgroup.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// Opens a file of a cgroup, close-on-exec.
pub(super) fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a cgroup's directory, for `CLONE_INTO_CGROUP`. The error names it.
pub(super) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    open(path, flags).context(|| format!("open {}", path.display()))
}

/// Reads a whole file with as few system calls as possible. Most fit one read.
pub(super) fn read_io(path: &Path) -> io::Result<String> {
    read_whole(&open(path, OFlags::RDONLY)?)
}

fn read_whole(fd: &OwnedFd) -> io::Result<String> {
    let mut text = vec![0; 4096];
    let mut filled = 0;
    loop {
        match rustix::io::read(fd, &mut text[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        if filled == text.len() {
            text.resize(filled * 2, 0);
        }
    }
    text.truncate(filled);
    String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Reads a whole file. The error names it.
pub(super) fn read(path: &Path) -> Result<String> {
    read_io(path).context(|| format!("read {}", path.display()))
}

/// Reads a file that may be missing: the controller is not enabled, or the
/// kernel is older.
pub(super) fn read_if_any(path: &Path) -> Result<Option<String>> {
    match read_io(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if gone(&e) => Ok(None),
        Err(e) => Err(e).context(|| format!("read {}", path.display())),
    }
}

/// As [`read_if_any`], by the directory and the name.
pub(super) fn read_at(dir: BorrowedFd<'_>, name: &str) -> Result<Option<String>> {
    let opened = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    match opened.map_err(io::Error::from).and_then(|fd| read_whole(&fd)) {
        Ok(text) => Ok(Some(text)),
        Err(e) if gone(&e) => Ok(None),
        Err(e) => Err(e).context(|| format!("read {name} of a cgroup")),
    }
}

/// Whether an error means that the file or its cgroup does not exist (any
/// more), or that the kernel does not support it.
pub(super) fn gone(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    [Errno::NOENT, Errno::NODEV, Errno::OPNOTSUPP].map(Some).contains(&errno)
}

/// Writes a value in one write, as cgroup files demand.
pub(super) fn write_io(path: &Path, value: &str) -> io::Result<()> {
    let fd = open(path, OFlags::WRONLY)?;
    rustix::io::retry_on_intr(|| rustix::io::write(&fd, value.as_bytes()))?;
    Ok(())
}

/// Writes a value. The error names the value and the file.
pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    write_io(path, value).context(|| format!("write {value:?} to {}", path.display()))
}

/// Parses a number. `max` is the largest.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        text => text.parse().ok(),
    }
}

/// Reads a file that holds one number. `None` if the file is missing.
pub(super) fn read_number(path: &Path) -> Result<Option<u64>> {
    let Some(text) = read_if_any(path)? else {
        return Ok(None);
    };
    let value = number(&text);
    let wrong =
        || Error::internal(format!("{}: expected a number, found {text:?}", path.display()));
    value.map(Some).ok_or_else(wrong)
}

/// Returns the lines `key value` of a file such as memory.stat ("flat keyed" in
/// the kernel's cgroup-v2.rst). Other lines are skipped.
pub(super) fn keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, number(value)?))
    })
}

/// Returns the value of one key of such a file.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    keyed(text).find(|(k, _)| *k == key).map(|(_, value)| value)
}
