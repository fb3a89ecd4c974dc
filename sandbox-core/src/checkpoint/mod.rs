//! The image of a container: a flat folder with the images of CRIU, which saves and brings back
//! processes, the contents of file systems in memory, and Palisade's own notes.
//!
//! | file | written by | what it is |
//! |---|---|---|
//! | `*.img` | criu; three of them are rewritten by [`images::make_portable`] | processes, memory, sockets, descriptors |
//! | `tmpfs-INDEX.tar` | [`tmpfs::save`] | what was in a tmpfs of the plan, by its index among the plan's mounts |
//! | `palisade.json` | [`manifest::Manifest::write`] | what a restore compares with its own plan |
//! | `dump.log`, `stats-dump` | criu | for people |
//!
//! A container shapes these files, and anybody may have sent them: whoever reads one takes it for
//! hostile. It is a regular file of the folder itself, and is read with a bound.

pub mod criu;
mod fields;
pub mod images;
pub mod manifest;
pub mod seccomp;
pub mod tmpfs;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// Opens a regular file of an image's folder to read it. Follows no link, and waits for no writer
/// of a FIFO.
///
/// # Errors
/// `NotFound` if there is no such file, `Invalid` if it is no regular file.
pub fn open_regular(folder: BorrowedFd<'_>, name: &str) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => {
            return Err(Error::new(
                crate::error::FailureKind::NotFound,
                format!("the checkpoint has no file {name}"),
            ));
        }
        Err(Errno::LOOP) => return Err(no_file(name)),
        Err(e) => return Err(e).context(|| format!("open {name} of the checkpoint")),
    };
    let stat = fstat(&file).context(|| format!("stat {name} of the checkpoint"))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(file.into()),
        _ => Err(no_file(name)),
    }
}

/// Reads a regular file of an image's folder that may have `limit` bytes at most.
///
/// # Errors
/// As [`open_regular`], and `Invalid` if it is longer.
pub fn read_regular(folder: BorrowedFd<'_>, name: &str, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = open_regular(folder, name)?;
    // The file may grow while it is read.
    let read: io::Result<usize> = file.take(limit + 1).read_to_end(&mut bytes);
    let length = read.context(|| format!("read {name} of the checkpoint"))? as u64;
    if length > limit {
        return Err(Error::invalid(format!(
            "{name} of the checkpoint is longer than the {limit} bytes that it may have"
        )));
    }
    Ok(bytes)
}

fn no_file(name: &str) -> Error {
    Error::invalid(format!("{name} of the checkpoint is no regular file"))
}
