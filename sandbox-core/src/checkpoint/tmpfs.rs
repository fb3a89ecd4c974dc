//! What is in a file system in memory, as an archive of tar: criu would look at it as root of the
//! host, who has no ID there, so Palisade carries it.
//!
//! Carried are directories, regular files (with their holes and hard links), symbolic links and
//! FIFOs, with owners, modes and times in seconds. Sockets are not: criu binds those that are bound
//! anew. What is mounted on a tmpfs is none of its content. Extended attributes and devices are
//! refused by name when they are saved.
//!
//! An archive is hostile: it names nothing outside of the directory that it is unpacked into, and
//! nothing is followed, within that either. Its entries, names and bytes are bounded.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use nix::unistd::setfsgid;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    chownat, fchmod, fchown, flistxattr, fstat, futimens, linkat, mkdirat, mknodat, openat,
    openat2, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Builder, EntryType, GnuExtSparseHeader, Header};

use crate::error::{Context, Error, Result};

/// The most files of a tmpfs.
const MAX_FILES: usize = 1 << 20;
/// The most bytes that its files have together, holes and all.
const MAX_BYTES: u64 = 64 << 30;
/// How deep directories may lie.
const MAX_DEPTH: usize = 128;
/// The longest path.
const MAX_PATH: usize = 4096;
/// The unit of an archive.
const BLOCK: u64 = 512;

/// The name of the archive of a mount, by its index in the plan's mounts.
pub fn file_name(index: usize) -> String {
    format!("tmpfs-{index}.tar")
}

/// Writes what is in a tmpfs, whose root is `root`. Owners are those that the caller's user
/// namespace has.
///
/// # Errors
/// `Invalid` names what cannot be carried.
pub fn save(root: BorrowedFd<'_>, to: File) -> Result<()> {
    let mut archive = Builder::new(BufWriter::new(to));
    let mut saving = Saving { archive: &mut archive, links: HashMap::new(), files: 0, bytes: 0 };
    let open = open_directory(root, OsStr::new(".")).context(|| "open the root of a tmpfs")?;
    saving.directory(open, Path::new("."), 0)?;
    let written = archive.into_inner().and_then(|buffer| Ok(buffer.into_inner()?));
    written.map(drop).context(|| "write the archive of a tmpfs")
}

struct Saving<'a> {
    archive: &'a mut Builder<BufWriter<File>>,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    files: usize,
    bytes: u64,
}

impl Saving<'_> {
    fn directory(&mut self, directory: OwnedFd, path: &Path, depth: usize) -> Result<()> {
        let what = || format!("save {}", shown(path));
        if depth > MAX_DEPTH || path.as_os_str().len() > MAX_PATH {
            return Err(refused(path, &format!("lies deeper than {MAX_DEPTH} directories")));
        }
        let stat = fstat(&directory).context(what)?;
        refuse_attributes(&directory, path)?;
        let mut header = header(EntryType::Directory, &stat);
        self.archive.append_data(&mut header, path, io::empty()).context(what)?;
        let mut entries = Dir::read_from(&directory).context(what)?;
        while let Some(entry) = entries.read() {
            let entry = entry.context(what)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                self.entry(directory.as_fd(), name, &below(path, name), depth + 1)?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        depth: usize,
    ) -> Result<()> {
        let what = || format!("save {}", shown(path));
        self.files += 1;
        if self.files > MAX_FILES {
            return Err(refused(path, &format!("is one of more than {MAX_FILES} files")));
        }
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).context(what)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 && self.is_link(&stat, path)? {
            return Ok(());
        }
        match kind {
            FileType::Directory => match open_directory(directory, name) {
                Ok(below) => self.directory(below, path, depth),
                // Something is mounted there, which lies over this tmpfs.
                Err(Errno::XDEV) => Ok(()),
                Err(e) => Err(e).context(what),
            },
            FileType::RegularFile => {
                match open_here(directory, name, OFlags::RDONLY | OFlags::NONBLOCK) {
                    Ok(file) => self.regular(file.into(), &stat, path),
                    Err(Errno::XDEV) => Ok(()),
                    Err(e) => Err(e).context(what),
                }
            }
            FileType::Symlink => {
                let target = readlinkat(directory, name, Vec::new()).context(what)?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                let mut header = header(EntryType::Symlink, &stat);
                self.archive.append_link(&mut header, path, target).context(what)
            }
            FileType::Fifo => {
                let mut header = header(EntryType::Fifo, &stat);
                self.archive.append_data(&mut header, path, io::empty()).context(what)
            }
            FileType::Socket => Ok(()),
            _ => Err(refused(path, "is a device")),
        }
    }

    /// Writes a file that has another name before this one as a link to that.
    fn is_link(&mut self, stat: &Stat, path: &Path) -> Result<bool> {
        let of = (stat.st_dev, stat.st_ino);
        let Some(first) = self.links.get(&of) else {
            self.links.insert(of, path.to_owned());
            return Ok(false);
        };
        let mut header = header(EntryType::Link, stat);
        let linked = self.archive.append_link(&mut header, path, first);
        linked.map(|()| true).context(|| format!("save {}", shown(path)))
    }

    fn regular(&mut self, mut file: File, expected: &Stat, path: &Path) -> Result<()> {
        let what = || format!("save {}", shown(path));
        let stat = fstat(&file).context(what)?;
        if (stat.st_dev, stat.st_ino) != (expected.st_dev, expected.st_ino) {
            return Err(refused(path, "was replaced while it was saved"));
        }
        self.bytes = self.bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(u64::MAX));
        if self.bytes > MAX_BYTES {
            return Err(refused(
                path,
                &format!("is one of files that have more than {MAX_BYTES} bytes together"),
            ));
        }
        refuse_attributes(&file, path)?;
        self.archive.append_file(path, &mut file).context(what)
    }
}

/// Makes the entry of a file that has no bytes.
fn header(kind: EntryType, stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}

/// Refuses a file with extended attributes, but for the label that SELinux gives each.
fn refuse_attributes(file: impl AsFd, path: &Path) -> Result<()> {
    let mut names = [0; 4096];
    let length = match flistxattr(file, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(e) => return Err(e).context(|| format!("list the attributes of {}", shown(path))),
    };
    let mut names = names[..length].split_inclusive(|byte| *byte == 0);
    let carried = |name: &[u8]| name == b"security.selinux\0";
    match names.find(|name| !carried(name)) {
        None => Ok(()),
        Some(name) => {
            let name = CStr::from_bytes_with_nul(name).unwrap_or_default().to_string_lossy();
            Err(refused(path, &format!("has the extended attribute {name}")))
        }
    }
}

fn refused(path: &Path, why: &str) -> Error {
    Error::invalid(format!("{}, in a tmpfs, {why}, which a checkpoint does not carry", shown(path)))
}

/// Returns a path for people, without what a terminal would obey.
fn shown(path: &Path) -> String {
    format!("{path:?}")
}

fn below(path: &Path, name: &OsStr) -> PathBuf {
    if path == Path::new(".") { name.into() } else { path.join(name) }
}

fn open_directory(directory: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    open_here(directory, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens a place below a directory, on the same mount, to which no link leads.
fn open_here(
    directory: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..128 {
        match openat2(directory, name, flags, Mode::empty(), resolve) {
            // Something was renamed meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => continue,
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// An owner: user and group.
pub type Owner = (u32, u32);

/// Unpacks the archive of a tmpfs into a directory, the root of a new tmpfs on which the mounts
/// that belong there may lie already. `ids` translates an owner to what it is in the caller's user
/// namespace; `None` if there is none.
///
/// # Errors
/// `Invalid` names what is wrong with the archive. What was unpacked by then stays.
pub fn unpack(
    mut archive: File,
    into: BorrowedFd<'_>,
    ids: &dyn Fn(Owner) -> Option<Owner>,
) -> Result<()> {
    check(&mut archive)?;
    let into = open_directory(into, OsStr::new(".")).context(|| "open the root of a tmpfs")?;
    let unpacking = Unpacking { root: into.as_fd() };
    let mut archive = Archive::new(BufReader::new(archive));
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(malformed)? {
        let mut entry = entry.map_err(malformed)?;
        let path = entry.path().map_err(malformed)?.into_owned();
        let place = Place::of(&path)?;
        let found = Found::read(entry.header(), ids, &path)?;
        let unpacked = match entry.header().entry_type() {
            EntryType::Directory => {
                unpacking.directory(&place)?;
                directories.push((place, found));
                continue;
            }
            EntryType::Link => {
                let target = entry.link_name().map_err(malformed)?;
                let target = target.ok_or_else(|| wrong(&path, "is a link to nothing"))?;
                unpacking.link(&place, &Place::of(&target)?)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes();
                let target = target.ok_or_else(|| wrong(&path, "is a link to nothing"))?;
                unpacking.symlink(&place, &target, found)
            }
            EntryType::Fifo => unpacking.fifo(&place, found),
            EntryType::Regular | EntryType::GNUSparse => {
                let size = entry.size();
                unpacking.regular(&place, found, size, &mut entry)
            }
            _ => return Err(wrong(&path, "is of a kind that no tmpfs is saved with")),
        };
        unpacked.map_err(|e| Error::new(e.kind, format!("{} of a tmpfs: {e}", shown(&path))))?;
    }
    // What is made in a directory changes its time, and may need a mode that it has not.
    for (place, found) in directories.iter().rev() {
        unpacking.finish_directory(place, *found)?;
    }
    Ok(())
}

/// Looks through the headers of an archive: an entry's name, which its reader keeps in memory, has
/// a bound, and so have the files.
fn check(archive: &mut File) -> Result<()> {
    let mut at = 0;
    let (mut files, mut bytes) = (0, 0_u64);
    let mut header = Header::new_old();
    while read_block(archive, at, header.as_mut_bytes())? {
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            break;
        }
        at += BLOCK;
        let size = header.entry_size().map_err(malformed)?;
        match header.entry_type() {
            EntryType::GNULongName | EntryType::GNULongLink if size <= MAX_PATH as u64 + 1 => {}
            EntryType::GNUSparse => {
                let gnu = header.as_gnu().ok_or_else(|| malformed("a header is not GNU's"))?;
                bytes = bytes.saturating_add(gnu.real_size().map_err(malformed)?);
                let mut more = gnu.is_extended();
                while more {
                    let mut next = GnuExtSparseHeader::new();
                    if !read_block(archive, at, next.as_mut_bytes())? {
                        return Err(malformed("it ends too early"));
                    }
                    at += BLOCK;
                    more = next.is_extended();
                }
            }
            EntryType::Regular => bytes = bytes.saturating_add(size),
            EntryType::Directory | EntryType::Link | EntryType::Symlink | EntryType::Fifo => {}
            other => return Err(malformed(format!("it has an entry of the kind {other:?}"))),
        }
        files += 1;
        // A name of its own for each, and a link's.
        if files > 3 * MAX_FILES || bytes > MAX_BYTES {
            return Err(malformed("it has more files or bytes than a tmpfs is saved with"));
        }
        let end = size.checked_next_multiple_of(BLOCK).and_then(|length| at.checked_add(length));
        at = end.ok_or_else(|| malformed("a size is too large"))?;
    }
    archive.seek(SeekFrom::Start(0)).map(drop).context(|| "read the archive of a tmpfs")
}

/// Reads a block. Returns whether there is one.
fn read_block(archive: &File, at: u64, block: &mut [u8]) -> Result<bool> {
    match archive.read_exact_at(block, at) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e).context(|| "read the archive of a tmpfs"),
    }
}

fn malformed(why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the archive of a tmpfs: {why}"))
}

fn wrong(path: &Path, why: &str) -> Error {
    malformed(format!("{} {why}", shown(path)))
}

/// A place below the root of a tmpfs.
struct Place {
    /// The directory that it is in.
    parent: PathBuf,
    /// Its name there; `None` for the root itself.
    name: Option<std::ffi::OsString>,
}

impl Place {
    fn of(path: &Path) -> Result<Self> {
        let bad = || wrong(path, "is no path within a tmpfs");
        if path.as_os_str().len() > MAX_PATH || path.components().count() > MAX_DEPTH + 1 {
            return Err(bad());
        }
        let normal = |part| match part {
            Component::Normal(name) => Some(Ok(name)),
            Component::CurDir => None,
            _ => Some(Err(bad())),
        };
        let mut names: Vec<&OsStr> =
            path.components().filter_map(normal).collect::<Result<Vec<_>>>()?;
        let name = names.pop().map(OsStr::to_owned);
        let parent = names.iter().fold(PathBuf::from("."), |path, name| path.join(name));
        Ok(Self { parent, name })
    }
}

/// What an archive says of a file.
#[derive(Clone, Copy)]
struct Found {
    owner: Owner,
    mode: Mode,
    time: i64,
}

impl Found {
    fn read(header: &Header, ids: &dyn Fn(Owner) -> Option<Owner>, path: &Path) -> Result<Self> {
        let id = |id: io::Result<u64>| -> Result<u32> {
            let id = id.map_err(malformed)?;
            u32::try_from(id).map_err(|_| wrong(path, "has an owner that is too high"))
        };
        let (uid, gid) = (id(header.uid())?, id(header.gid())?);
        let owner = ids((uid, gid)).ok_or_else(|| {
            wrong(path, &format!("belongs to {uid}:{gid}, which the sandbox does not have"))
        })?;
        let mode = Mode::from_raw_mode(header.mode().map_err(malformed)? & 0o7777);
        let time = i64::try_from(header.mtime().map_err(malformed)?).unwrap_or(i64::MAX);
        Ok(Self { owner, mode, time })
    }

    fn ids(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.owner.0)), Some(Gid::from_raw(self.owner.1)))
    }

    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.time, tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    }

    /// Gives an open file what it had. A change of owner takes bits of the mode away.
    fn apply(&self, file: impl AsFd) -> Result<()> {
        let (uid, gid) = self.ids();
        fchown(&file, uid, gid).context(|| "chown")?;
        // Only who is in a file's group may set this bit, or has CAP_FSETID.
        let own = self
            .mode
            .contains(Mode::SGID)
            .then(|| setfsgid(nix::unistd::Gid::from_raw(self.owner.1)));
        let changed = fchmod(&file, self.mode).context(|| "chmod");
        if let Some(own) = own {
            setfsgid(own);
        }
        changed?;
        futimens(&file, &self.times()).context(|| "set its time")
    }
}

#[derive(Clone, Copy)]
struct Unpacking<'a> {
    root: BorrowedFd<'a>,
}

impl Unpacking<'_> {
    fn parent(&self, place: &Place) -> Result<OwnedFd> {
        open_here(self.root, &*place.parent, OFlags::PATH | OFlags::DIRECTORY)
            .context(|| format!("open the directory {}", shown(&place.parent)))
    }

    /// Makes a directory. One that is there, or a mount, may be what the container was made with.
    fn directory(&self, place: &Place) -> Result<()> {
        let Some(name) = &place.name else { return Ok(()) };
        let parent = self.parent(place)?;
        match mkdirat(&parent, &**name, Mode::RWXU) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => match open_here(parent.as_fd(), &**name, OFlags::PATH) {
                Ok(there) => {
                    let stat = fstat(&there).context(|| "stat")?;
                    match FileType::from_raw_mode(stat.st_mode) {
                        FileType::Directory => Ok(()),
                        _ => Err(wrong(Path::new(name), "is no directory in the new tmpfs")),
                    }
                }
                Err(Errno::XDEV) => Ok(()),
                Err(e) => Err(e).context(|| format!("open {}", shown(Path::new(name)))),
            },
            Err(e) => Err(e).context(|| format!("mkdir {}", shown(Path::new(name)))),
        }
    }

    fn finish_directory(&self, place: &Place, found: Found) -> Result<()> {
        let path = match &place.name {
            Some(name) => place.parent.join(name),
            None => place.parent.clone(),
        };
        match open_here(self.root, &*path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => found
                .apply(directory)
                .map_err(|e| Error::new(e.kind, format!("{} of a tmpfs: {e}", shown(&path)))),
            Err(Errno::XDEV) => Ok(()),
            Err(e) => Err(e).context(|| format!("open {} of a tmpfs", shown(&path))),
        }
    }

    fn name<'a>(&self, place: &'a Place) -> Result<&'a OsStr> {
        place.name.as_deref().ok_or_else(|| malformed("its root is no directory"))
    }

    fn regular(
        &self,
        place: &Place,
        found: Found,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<()> {
        let (parent, name) = (self.parent(place)?, self.name(place)?);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = match openat(&parent, name, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR) {
            Ok(file) => File::from(file),
            Err(Errno::EXIST) => match existing(parent.as_fd(), name)? {
                Some(file) => file,
                None => return Ok(()),
            },
            Err(e) => return Err(e).context(|| "make it"),
        };
        copy(content, &file, size)?;
        found.apply(&file)
    }

    fn symlink(&self, place: &Place, target: &[u8], found: Found) -> Result<()> {
        let (parent, name) = (self.parent(place)?, self.name(place)?);
        symlinkat(OsStr::from_bytes(target), &parent, name).context(|| "make the link")?;
        let (uid, gid) = found.ids();
        chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).context(|| "chown")?;
        utimensat(&parent, name, &found.times(), AtFlags::SYMLINK_NOFOLLOW)
            .context(|| "set its time")
    }

    fn fifo(&self, place: &Place, found: Found) -> Result<()> {
        let (parent, name) = (self.parent(place)?, self.name(place)?);
        mknodat(&parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .context(|| "make the FIFO")?;
        // Nobody else is here, and a path descriptor takes no change of mode.
        let fifo = open_here(parent.as_fd(), name, OFlags::RDONLY | OFlags::NONBLOCK)
            .context(|| "open the FIFO")?;
        found.apply(fifo)
    }

    fn link(&self, place: &Place, target: &Place) -> Result<()> {
        let (parent, name) = (self.parent(place)?, self.name(place)?);
        let (from, old) = (self.parent(target)?, self.name(target)?);
        linkat(&from, old, &parent, name, AtFlags::empty()).context(|| "make the link")
    }
}

/// Opens a file that is there before it was unpacked; `None` if it is a mount.
fn existing(parent: BorrowedFd<'_>, name: &OsStr) -> Result<Option<File>> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK;
    let file = match open_here(parent, name, flags) {
        Ok(file) => File::from(file),
        Err(Errno::XDEV) => return Ok(None),
        Err(e) => return Err(e).context(|| "open it"),
    };
    let stat = fstat(&file).context(|| "stat")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(wrong(Path::new(name), "is no regular file in the new tmpfs"));
    }
    file.set_len(0).context(|| "empty it")?;
    Ok(Some(file))
}

/// Copies the content of a file, and leaves out what is zero: there it has holes.
fn copy(content: &mut dyn Read, file: &File, size: u64) -> Result<()> {
    const CHUNK: usize = 64 * 1024;
    static ZEROS: [u8; CHUNK] = [0; CHUNK];
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    let mut file_at = file;
    loop {
        let length = match content.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(malformed(e)),
        };
        let bytes = &chunk[..length];
        if bytes != &ZEROS[..length] {
            file_at.seek(SeekFrom::Start(at)).context(|| "seek")?;
            file_at.write_all(bytes).context(|| "write it")?;
        }
        at += length as u64;
    }
    if at != size {
        return Err(malformed("it ends too early"));
    }
    file.set_len(size).context(|| "set its size")
}

#[cfg(test)]
#[path = "tmpfs_tests.rs"]
mod tests;
