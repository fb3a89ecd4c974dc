//! Passes the host's sysfs through, below the two directories that boot was given.
//!
//! What the container asks for is a name in a directory, never a path. It is opened below the
//! directory by openat2(2), which follows no link on the way and never leaves it, and only for
//! reading.

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;

use super::nodes::Tree;
use super::reply::{Attributes, Moment, Validity};
use crate::sys::mount::open_plain_beneath;
use crate::views::File;

/// The longest text that a file of sysfs may have here. Most are a page at most; the longest
/// known is a list of thousands of CPUs.
const MAX_TEXT: usize = 64 * 1024;

/// The bytes of entries that the kernel is asked for at once.
const ENTRIES: usize = 2048;

/// How long the kernel may keep what it was told of something here: CPUs come and go.
pub(super) const VALID: Validity = Validity::Seconds(1);

/// Opens what is at a path below a root, for one kind of use.
fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { "." } else { path };
    let opened = open_plain_beneath(root, path, flags | OFlags::NOFOLLOW);
    opened.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Returns what stat(2) says, and the kind.
pub(super) fn stat(root: BorrowedFd<'_>, path: &str) -> Result<Stat, Errno> {
    let stat = rustix::fs::fstat(open(root, path, OFlags::PATH)?)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory | FileType::RegularFile | FileType::Symlink => Ok(stat),
        _ => Err(Errno::NOENT),
    }
}

/// Returns what the kernel says of something, but for the owner: the containers' root stands in
/// for the host's.
pub(super) fn attributes(stat: &Stat, owner: (u32, u32)) -> Attributes {
    // What lies before 1970 or beyond what the fields hold is of no file of sysfs.
    let moment = |seconds, nanoseconds| Moment {
        seconds: u64::try_from(seconds).unwrap_or(0),
        nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
    };
    Attributes {
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode,
        links: u32::try_from(stat.st_nlink).unwrap_or(1),
        block_size: u32::try_from(stat.st_blksize).unwrap_or(4096),
        owner,
        accessed: moment(stat.st_atime, stat.st_atime_nsec),
        modified: moment(stat.st_mtime, stat.st_mtime_nsec),
        changed: moment(stat.st_ctime, stat.st_ctime_nsec),
        valid: VALID,
    }
}

/// Looks whether a file can be read.
pub(super) fn check(root: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    open_text(root, path).map(drop)
}

fn open_text(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let file = open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    let stat = rustix::fs::fstat(&file)?;
    match FileType::from_raw_mode(stat.st_mode) {
        // A file that only the host's root may read is not for the container's, although boot
        // may be able to.
        FileType::RegularFile if !Mode::from_raw_mode(stat.st_mode).contains(Mode::ROTH) => {
            Err(Errno::ACCESS)
        }
        FileType::RegularFile => Ok(file),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::INVAL),
    }
}

/// Reads a file.
///
/// # Errors
/// `EFBIG` if it is longer than 64 KiB.
pub(super) fn read(root: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>, Errno> {
    let file = open_text(root, path)?;
    let mut text = Vec::with_capacity(4096);
    loop {
        let offset = text.len();
        if offset > MAX_TEXT {
            return Err(Errno::FBIG);
        }
        text.resize(offset + 4096, 0);
        let read = rustix::io::retry_on_intr(|| {
            rustix::io::pread(&file, &mut text[offset..], offset as u64)
        })?;
        text.truncate(offset + read);
        if read == 0 {
            return Ok(text);
        }
    }
}

/// Returns where a link leads, as it says.
pub(super) fn link(root: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>, Errno> {
    let link = open(root, path, OFlags::PATH)?;
    Ok(rustix::fs::readlinkat(link, c"", Vec::new())?.into_bytes())
}

/// An entry of a directory of sysfs.
pub(super) struct Named<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u64,
    pub(super) kind: FileType,
    pub(super) next: u64,
}

/// Calls `each` for the entries of a directory from an offset on, until it returns false. The
/// offsets are the host's kernel's own, so nothing has to be kept between two calls.
pub(super) fn list(
    root: BorrowedFd<'_>,
    path: &str,
    offset: u64,
    mut each: impl FnMut(&Named<'_>) -> Result<bool, Errno>,
) -> Result<(), Errno> {
    let directory = open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    if offset != 0 {
        rustix::fs::seek(&directory, SeekFrom::Start(offset))?;
    }
    let mut buffer = [MaybeUninit::uninit(); ENTRIES];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let named = Named {
            name: entry.file_name().to_bytes(),
            inode: entry.ino(),
            kind: entry.file_type(),
            next: entry.next_entry_cookie(),
        };
        if !each(&named)? {
            break;
        }
    }
    Ok(())
}

/// Returns the file at a path below `node`, if boot makes its text from the kernel's.
pub(super) fn made_here(tree: Tree, path: &str) -> Option<File> {
    let (directory, file) = path.split_once('/').filter(|_| tree == Tree::Node)?;
    let node = number(directory, "node")?;
    match file {
        "cpulist" => Some(File::NodeCpulist(node)),
        "cpumap" => Some(File::NodeCpumap(node)),
        "meminfo" => Some(File::NodeMeminfo(node)),
        _ => None,
    }
}

/// Returns the CPU that a name in a directory stands for, if it is one: `cpuN` in `cpu`, and
/// in `node/nodeN`.
pub(super) fn cpu(tree: Tree, directory: &str, name: &str) -> Option<u32> {
    let holds_cpus = match tree {
        Tree::Cpu => directory.is_empty(),
        Tree::Node => number(directory, "node").is_some(),
    };
    number(name, "cpu").filter(|_| holds_cpus)
}

/// Reads the number at the end of a name such as `cpu12`.
fn number(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    digits.parse().ok().filter(|_| digits.bytes().all(|digit| digit.is_ascii_digit()))
}
