//! `tmpcopyup`: copies the content of the image's directory into the tmpfs that will hide
//! it. Symlinks are copied and not followed. Owners, modes, times, extended attributes, hard
//! links and holes are those of the image.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::setfsgid;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, RawMode, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, fchmod, fgetxattr, flistxattr, fsetxattr, fstat, ftruncate,
    futimens, linkat, mkdirat, mknodat, openat, readlinkat, seek, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

/// The most directories that lie in each other. Each takes two descriptors while it is copied.
const MAX_DEPTH: usize = 256;

/// What the kernel did not let this process copy.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    /// The number of attributes and device nodes.
    pub(crate) count: usize,
    /// The first one: a file and what it lost.
    pub(crate) first: String,
}

/// Copies a directory's content, and the directory's own attributes. The mode of `to` is set
/// already, and its owner if `keep_owner`.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd, keep_owner: bool) -> io::Result<Lost> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = openat(from, ".", flags, Mode::empty())?;
    let to = openat(to, ".", flags, Mode::empty())?;
    let mut copy = Copy { top: &to, links: HashMap::new(), lost: Lost::default() };
    copy.content(&from, &to, Path::new(""), 0)?;
    let stat = fstat(&from)?;
    if !keep_owner {
        own(&to, c"", &stat, AtFlags::EMPTY_PATH)?;
    }
    copy.attributes(&from, &to, Path::new("."))?;
    futimens(&to, &times(&stat))?;
    Ok(copy.lost)
}

/// A copy that is being made.
struct Copy<'a> {
    top: &'a OwnedFd,
    /// The place in the copy of each file that has several names, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    lost: Lost,
}

impl Copy<'_> {
    fn content(&mut self, from: &OwnedFd, to: &OwnedFd, at: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            let message = format!("{} lies in more than {MAX_DEPTH} directories", at.display());
            return Err(io::Error::other(message));
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                let place = at.join(OsStr::from_bytes(name.to_bytes()));
                self.entry(from, to, name, &place, depth)
                    .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", place.display())))?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        place: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return Ok(linkat(self.top, first, to, name, AtFlags::empty())?);
            }
            self.links.insert((stat.st_dev, stat.st_ino), place.to_owned());
        }
        match kind {
            FileType::Directory => self.directory(from, to, name, place, depth)?,
            FileType::RegularFile => {
                let copy = self.file(from, to, name, &stat)?;
                self.attributes(&copy.0, &copy.1, place)?;
                futimens(&copy.1, &times(&stat))?;
                return Ok(());
            }
            FileType::Symlink => {
                symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
                own(to, name, &stat, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => return self.node(to, name, &stat, place),
        }
        Ok(utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets the attributes of a directory once its content is there: its access list would
    /// otherwise be inherited, and its time change.
    fn directory(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        place: &Path,
        depth: usize,
    ) -> io::Result<()> {
        mkdirat(to, name, Mode::from_raw_mode(0o700))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let below = openat(from, name, flags, Mode::empty())?;
        let made = openat(to, name, flags, Mode::empty())?;
        self.content(&below, &made, place, depth + 1)?;
        let stat = fstat(&below)?;
        own(&made, c"", &stat, AtFlags::EMPTY_PATH)?;
        set_mode(&stat, |mode| fchmod(&made, mode))?;
        self.attributes(&below, &made, place)
    }

    fn file(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        stat: &Stat,
    ) -> io::Result<(File, File)> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = File::from(openat(from, name, flags, Mode::empty())?);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let copy = File::from(openat(to, name, flags, Mode::from_raw_mode(0o600))?);
        copy_data(&source, &copy, stat.st_size.unsigned_abs())?;
        // Giving a file away clears its set-user-ID bit and its capabilities.
        own(&copy, c"", stat, AtFlags::EMPTY_PATH)?;
        set_mode(stat, |mode| fchmod(&copy, mode))?;
        Ok((source, copy))
    }

    /// Makes a FIFO, a socket or a device node. Only root of the host may make the latter.
    fn node(&mut self, to: &OwnedFd, name: &CStr, stat: &Stat, place: &Path) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        match mknodat(to, name, kind, mode(stat), stat.st_rdev) {
            Err(Errno::PERM) => {
                self.links.remove(&(stat.st_dev, stat.st_ino));
                self.lose(place, "the device node");
                return Ok(());
            }
            other => other?,
        }
        own(to, name, stat, AtFlags::SYMLINK_NOFOLLOW)?;
        // Neither the umask nor the change of owner may decide. It is no symlink: it was
        // made here, in a tmpfs that no other process sees.
        set_mode(stat, |mode| chmodat(to, name, mode, AtFlags::empty()))?;
        Ok(utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Copies extended attributes: access lists, file capabilities, those of users.
    fn attributes(&mut self, from: impl AsFd, to: impl AsFd, place: &Path) -> io::Result<()> {
        let names = match read_list(|buffer| flistxattr(&from, buffer)) {
            Err(Errno::NOTSUP) => return Ok(()),
            names => names?,
        };
        for name in names.split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            let value = match read_list(|buffer| fgetxattr(&from, name, buffer)) {
                Err(Errno::NODATA) => continue,
                value => value?,
            };
            match fsetxattr(&to, name, &value, XattrFlags::empty()) {
                Ok(()) => {}
                // The security module gives labels by its own rules.
                Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP) if is_label(name) => {}
                Err(Errno::PERM | Errno::NOTSUP) => {
                    self.lose(place, &format!("the attribute {}", name.to_string_lossy()));
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn lose(&mut self, place: &Path, what: &str) {
        self.lost.count += 1;
        if self.lost.count == 1 {
            self.lost.first = format!("{} lost {what}", place.display());
        }
    }
}

fn is_label(attribute: &CStr) -> bool {
    [c"security.selinux", c"security.SMACK64"].contains(&attribute)
}

/// The size of the largest attribute, and of the largest list of names: `XATTR_SIZE_MAX`.
const MAX_ATTRIBUTE: usize = 1 << 16;

/// Reads an attribute, or the list of their names. Most are short.
fn read_list(
    read: impl Fn(&mut [u8]) -> std::result::Result<usize, Errno>,
) -> std::result::Result<Vec<u8>, Errno> {
    for room in [1 << 8, MAX_ATTRIBUTE] {
        let mut value = vec![0; room];
        match read(&mut value) {
            Err(Errno::RANGE) => {}
            length => {
                value.truncate(length?);
                return Ok(value);
            }
        }
    }
    Err(Errno::RANGE)
}

/// Copies what is not a hole.
fn copy_data(from: &File, to: &File, size: u64) -> io::Result<()> {
    let mut at = 0;
    loop {
        let data = match seek(from, SeekFrom::Data(at)) {
            // Only a hole follows.
            Err(Errno::NXIO) => break,
            data => data?,
        };
        let end = seek(from, SeekFrom::Hole(data))?;
        seek(from, SeekFrom::Start(data))?;
        seek(to, SeekFrom::Start(data))?;
        let (mut source, mut copy) = (from, to);
        if io::copy(&mut (&mut source).take(end - data), &mut copy)? == 0 {
            break;
        }
        at = end;
    }
    Ok(ftruncate(to, size)?)
}

fn own(directory: impl AsFd, name: &CStr, stat: &Stat, flags: AtFlags) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok(chownat(directory, name, Some(uid), Some(gid), flags)?)
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777)
}

/// Sets a file's mode. Without CAP_FSETID, a process of another group would clear the
/// set-group-ID bit.
fn set_mode(stat: &Stat, set: impl FnOnce(Mode) -> rustix::io::Result<()>) -> io::Result<()> {
    let mode = mode(stat);
    if !mode.contains(Mode::SGID) {
        return Ok(set(mode)?);
    }
    let own = setfsgid(nix::unistd::Gid::from_raw(stat.st_gid));
    let done = set(mode);
    setfsgid(own);
    Ok(done?)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use rustix::fs::{CWD, fsetxattr, open};

    use super::*;

    fn directory(path: &Path) -> OwnedFd {
        open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    /// On the file system of temporary files, which has extended attributes as a tmpfs has.
    #[test]
    fn a_copy_is_like_its_original() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &[u8]| from.path().join(OsStr::from_bytes(name));
        fs::create_dir(at(b"deep")).unwrap();
        fs::write(at(b"deep/\xff"), "text").unwrap();
        std::os::unix::fs::chown(at(b"deep/\xff"), Some(7), Some(8)).unwrap();
        fs::set_permissions(at(b"deep/\xff"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(at(b"deep/\xff"), at(b"second")).unwrap();
        symlink("deep/nowhere", at(b"link")).unwrap();
        let holes = File::create(at(b"holes")).unwrap();
        holes.set_len(1 << 30).unwrap();
        seek(&holes, SeekFrom::Start(1 << 20)).unwrap();
        rustix::io::write(&holes, b"in the middle").unwrap();
        fsetxattr(&holes, c"user.colour", b"plum", XattrFlags::empty()).unwrap();
        mknodat(CWD, at(b"fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        mknodat(CWD, at(b"socket"), FileType::Socket, Mode::from_raw_mode(0o600), 0).unwrap();
        fs::set_permissions(at(b"fifo"), fs::Permissions::from_mode(0o666)).unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 5);
        File::open(at(b"deep")).unwrap().set_modified(old).unwrap();

        let lost = copy(&directory(from.path()), &directory(to.path()), false).unwrap();

        assert_eq!(lost.count, 0, "{}", lost.first);
        let names = [&b"deep"[..], b"deep/\xff", b"second", b"link", b"holes", b"fifo", b"socket"];
        for name in names {
            let (original, copy) = (at(name), to.path().join(OsStr::from_bytes(name)));
            let seen = |path: &Path| {
                let m = fs::symlink_metadata(path).unwrap();
                let size = if m.is_dir() { 0 } else { m.len() };
                (
                    m.mode(),
                    m.uid(),
                    m.gid(),
                    size,
                    m.mtime(),
                    m.mtime_nsec(),
                    m.is_dir() || m.nlink() < 3,
                )
            };
            assert_eq!(seen(&original), seen(&copy), "{name:?}");
        }
        let inode = |name: &[u8]| to.path().join(OsStr::from_bytes(name)).metadata().unwrap().ino();
        assert_eq!(inode(b"second"), inode(b"deep/\xff"));
        let copied = File::open(to.path().join("holes")).unwrap();
        assert!(copied.metadata().unwrap().blocks() < 1 << 12);
        let colour = read_list(|buffer| fgetxattr(&copied, c"user.colour", buffer)).unwrap();
        assert_eq!(colour, b"plum");
        assert_eq!(fs::read_link(to.path().join("link")).unwrap(), Path::new("deep/nowhere"));
    }
}
