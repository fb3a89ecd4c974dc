//! Files: where they stand, who holds them, and those that have no name any more.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{OFlags, fcntl_getfl, inotify};

use crate::{Check, Given, Result, same};

const CONTENT: &str = "0123456789abcdef";

/// An open file, read to its middle, and one that is only appended to.
pub fn position(_: &Given) -> Result<Check> {
    stands(Path::new("/tmp/carried-position"))
}

/// The same on a volume.
pub fn volume_file(given: &Given) -> Result<Check> {
    stands(&given.on_volume("carried-position"))
}

fn stands(path: &Path) -> Result<Check> {
    fs::write(path, CONTENT)?;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(10))?;
    let log = path.with_extension("log");
    let mut append = File::options().append(true).create(true).open(&log)?;
    append.set_len(0)?;
    let mut round = 0;
    Ok(Box::new(move || {
        same("its position", file.stream_position()?, 10)?;
        let mut read = String::new();
        file.read_to_string(&mut read)?;
        file.seek(SeekFrom::Start(10))?;
        same("its rest", read.as_str(), &CONTENT[10..])?;
        append.write_all(b"line\n")?;
        round += 1;
        let flags = fcntl_getfl(&append)?;
        same("whether it is appended to", flags.contains(OFlags::APPEND), true)?;
        same("how long the log is", fs::metadata(&log)?.len(), 5 * round)
    }))
}

/// An open file that was deleted, in the root file system.
pub fn deleted(_: &Given) -> Result<Check> {
    without_name(Path::new("/tmp/carried-deleted"))
}

/// An open file that was deleted, on a volume.
pub fn volume_deleted(given: &Given) -> Result<Check> {
    without_name(&given.on_volume("carried-deleted"))
}

fn without_name(path: &Path) -> Result<Check> {
    let mut file = File::options().create_new(true).read(true).write(true).open(path)?;
    file.write_all(CONTENT.as_bytes())?;
    fs::remove_file(path)?;
    let path = path.to_owned();
    Ok(Box::new(move || {
        let mut read = String::new();
        file.rewind()?;
        file.read_to_string(&mut read)?;
        same("its content", read.as_str(), CONTENT)?;
        same("its links", file.metadata()?.nlink(), 0)?;
        same("whether its name is there", path.exists(), false)
    }))
}

/// flock(2) in the root file system.
pub fn flock(_: &Given) -> Result<Check> {
    held(Path::new("/tmp/carried-flock"))
}

/// flock(2) on a volume.
pub fn volume_flock(given: &Given) -> Result<Check> {
    held(&given.on_volume("carried-flock"))
}

fn held(path: &Path) -> Result<Check> {
    let file = File::create(path)?;
    file.try_lock()?;
    let path = path.to_owned();
    Ok(Box::new(move || {
        let _ = file.metadata()?;
        match File::open(&path)?.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(()),
            Err(TryLockError::Error(error)) => Err(error.into()),
            Ok(()) => Err("another could lock it".into()),
        }
    }))
}

/// A lock of some bytes, as fcntl(2) makes it.
pub fn lock(_: &Given) -> Result<Check> {
    let path = "/tmp/carried-lock";
    let file = File::create(path)?;
    fcntl(file.as_fd(), FcntlArg::F_SETLK(&bytes(100, 50)))?;
    // For another open file, the process's own lock is another's. It stays open, as closing any
    // file of that name takes the process's lock away.
    let other = File::options().read(true).write(true).open(path)?;
    Ok(Box::new(move || {
        let mut found = bytes(0, 0);
        fcntl(other.as_fd(), FcntlArg::F_OFD_GETLK(&mut found))?;
        same("what is locked", (found.l_start, found.l_len), (100, 50))?;
        same("by whom", found.l_pid, file.metadata().map(|_| std::process::id().cast_signed())?)
    }))
}

fn bytes(start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// An open directory.
pub fn directory(_: &Given) -> Result<Check> {
    fs::create_dir_all("/tmp/carried-directory/below")?;
    let directory = File::open("/tmp/carried-directory")?;
    Ok(Box::new(move || {
        let below = rustix::fs::statat(&directory, "below", rustix::fs::AtFlags::empty())?;
        same("what is in it", below.st_mode & libc::S_IFMT, libc::S_IFDIR)
    }))
}

/// Files in the tmpfs on /run: one that is open, one that is not, with modes and owner.
pub fn run(_: &Given) -> Result<Check> {
    in_memory(Path::new("/run"))
}

/// Files in the tmpfs on /dev/shm.
pub fn shm(_: &Given) -> Result<Check> {
    in_memory(Path::new("/dev/shm"))
}

fn in_memory(mount: &Path) -> Result<Check> {
    let folder = mount.join("carried");
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, Permissions::from_mode(0o2750))?;
    let (closed, opened) = (folder.join("closed"), folder.join("opened"));
    fs::write(&closed, CONTENT)?;
    fs::set_permissions(&closed, Permissions::from_mode(0o604))?;
    std::os::unix::fs::symlink("closed", folder.join("link"))?;
    let mut file =
        File::options().create(true).truncate(true).read(true).write(true).open(&opened)?;
    file.write_all(CONTENT.as_bytes())?;
    let owner = fs::metadata(&closed)?;
    Ok(Box::new(move || {
        same("the closed file", fs::read_to_string(&closed)?.as_str(), CONTENT)?;
        same("the link", fs::read_link(folder.join("link"))?.to_str(), Some("closed"))?;
        let now = fs::metadata(&closed)?;
        same("its mode", now.mode(), owner.mode())?;
        same("its owner", (now.uid(), now.gid()), (owner.uid(), owner.gid()))?;
        same("the folder's mode", fs::metadata(&folder)?.mode() & 0o7777, 0o2750)?;
        same("the position", file.stream_position()?, CONTENT.len() as u64)?;
        let mut read = String::new();
        file.rewind()?;
        file.read_to_string(&mut read)?;
        same("the open file", read.as_str(), CONTENT)?;
        same("whether both are one", fs::metadata(&opened)?.ino(), file.metadata()?.ino())
    }))
}

/// A watch on a folder of the volume.
pub fn volume_inotify(given: &Given) -> Result<Check> {
    let folder = given.on_volume("carried-watched");
    fs::create_dir_all(&folder)?;
    let watcher = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watcher, &folder, inotify::WatchFlags::CREATE)?;
    Ok(Box::new(move || {
        let made = folder.join("made");
        File::create(&made)?;
        fs::remove_file(&made)?;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
        let mut reader = inotify::Reader::new(&watcher, &mut buffer);
        let event = reader.next()?;
        same("what is seen", event.file_name(), Some(c"made"))
    }))
}
