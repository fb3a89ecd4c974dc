//! `tmpcopyup`: copies the content of the image's directory into the tmpfs that will hide
//! it. Symlinks are copied and not followed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, Gid, Mode, OFlags, RawMode, Stat, Uid, chownat, fchmod, mkdirat, openat,
    readlinkat, statat, symlinkat,
};

/// Copies directories, regular files and symlinks with their owners and modes.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let from =
        openat(from, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => {
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = openat(&from, name, flags, Mode::empty())?;
                let made = openat(to, name, flags, Mode::empty())?;
                copy(&below, &made)?;
                own(to, name, &stat)?;
                fchmod(&made, mode(&stat))?;
            }
            libc::S_IFREG => copy_file(&from, to, name, &stat)?,
            libc::S_IFLNK => {
                symlinkat(readlinkat(&from, name, Vec::new())?, to, name)?;
                own(to, name, &stat)?;
            }
            // A copy of a socket, pipe or device is useless.
            _ => {}
        }
    }
    Ok(())
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &std::ffi::CStr, stat: &Stat) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut source = File::from(openat(from, name, flags, Mode::empty())?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut copy = File::from(openat(to, name, flags, Mode::from_raw_mode(0o600))?);
    io::copy(&mut source, &mut copy)?;
    own(to, name, stat)?;
    Ok(fchmod(&copy, mode(stat))?)
}

fn own(directory: impl AsFd, name: &std::ffi::CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok(chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777)
}
