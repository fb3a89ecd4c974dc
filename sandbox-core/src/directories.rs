//! Directories that many processes share: whoever needs one makes it, and the last to go takes it
//! away. So one that was there, or was just made, may be gone in the next moment.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open, stat};
use rustix::io::Errno;

/// The number of attempts that may fail in vain while the same directory is there. A directory
/// that was removed, but is a mount's root, takes nothing and can be replaced by none.
const IN_VAIN: u32 = 1000;

/// Makes something in a directory by `make`, and the directory by `make_directory` as often as it
/// is not there, until that works or fails for another reason than
/// [`NotFound`](ErrorKind::NotFound).
pub fn make_in<T>(
    directory: &Path,
    mut make: impl FnMut() -> io::Result<T>,
    mut make_directory: impl FnMut() -> io::Result<()>,
) -> io::Result<T> {
    let (mut before, mut in_vain) = (None, 0);
    loop {
        match make() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let now = identity(directory);
                in_vain = if now.is_some() && now == before { in_vain + 1 } else { 0 };
                if in_vain == IN_VAIN {
                    return Err(error);
                }
                make_directory()?;
                before = identity(directory);
            }
            other => return other,
        }
    }
}

/// Makes something in a directory, as [`make_in`] does. The directory, and those above it, get
/// this mode.
pub fn make_below<T>(
    directory: &Path,
    mode: u32,
    make: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    make_in(directory, make, || make_all(directory, mode))
}

/// Makes a directory, and those above it, unless it is there.
fn make_all(directory: &Path, mode: u32) -> io::Result<()> {
    let make = || make_one(directory, mode);
    match directory.parent() {
        Some(above) if !above.as_os_str().is_empty() => make_below(above, mode, make),
        _ => make(),
    }
}

/// Makes a directory, unless it is there.
fn make_one(directory: &Path, mode: u32) -> io::Result<()> {
    loop {
        match DirBuilder::new().mode(mode).create(directory) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => return other,
        }
        match (fs::metadata(directory), fs::symlink_metadata(directory)) {
            (Ok(there), _) if there.is_dir() => return Ok(()),
            // Another process has taken it away in between.
            (_, Err(gone)) if gone.kind() == ErrorKind::NotFound => {}
            _ => return Err(ErrorKind::NotADirectory.into()),
        }
    }
}

/// The result of an attempt to lock a directory.
#[derive(Debug)]
pub enum Lock {
    /// This process has it, as long as the descriptor is open.
    Taken(OwnedFd),
    /// There is no such directory.
    NoDirectory,
    /// Another process has it.
    OfAnother,
    /// Whoever held it before has removed the directory.
    OfARemoved,
}

/// Tries to take the lock of a directory, which is on the directory itself: flock(2).
pub fn try_lock(directory: &Path) -> io::Result<Lock> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = match open(directory, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Lock::NoDirectory),
        other => other?,
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN) => return Ok(Lock::OfAnother),
        other => other?,
    }
    let locked = fstat(&lock).map(|stat| (stat.st_dev, stat.st_ino));
    match stat(directory).map(|stat| (stat.st_dev, stat.st_ino)) == locked {
        true => Ok(Lock::Taken(lock)),
        false => Ok(Lock::OfARemoved),
    }
}

/// Takes the lock of a directory. Waits two seconds at most for another process, since containerd
/// allows five for `delete`.
pub fn lock(directory: &Path) -> io::Result<Lock> {
    for _ in 0..100 {
        match try_lock(directory)? {
            Lock::OfAnother => std::thread::sleep(Duration::from_millis(20)),
            Lock::OfARemoved => {}
            lock => return Ok(lock),
        }
    }
    Ok(Lock::OfAnother)
}

fn identity(directory: &Path) -> Option<(u64, u64)> {
    fs::metadata(directory).ok().map(|there| (there.dev(), there.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_another_takes_away_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("above/shared");
        let mut left = 100;
        let made = make_below(&directory, 0o700, || {
            if left > 0 && directory.exists() {
                left -= 1;
                fs::remove_dir_all(root.path().join("above")).unwrap();
            }
            fs::write(directory.join("file"), "")
        });
        made.unwrap();
        assert_eq!(left, 0);
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_fails_for_another_reason_is_not_tried_again() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let dangling = root.path().join("dangling");
        symlink("nowhere", &dangling).unwrap();
        for wrong in [file, dangling] {
            let make = || fs::create_dir(wrong.join("below/this"));
            let error = make_below(&wrong.join("below"), 0o700, make).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotADirectory, "{}", wrong.display());
        }
    }

    #[test]
    fn a_lock_is_one_process_s_until_it_is_dropped() {
        let root = tempfile::tempdir().unwrap();
        let taken = try_lock(root.path()).unwrap();
        assert!(matches!(taken, Lock::Taken(_)), "{taken:?}");
        assert!(matches!(try_lock(root.path()).unwrap(), Lock::OfAnother));
        drop(taken);
        assert!(matches!(lock(root.path()).unwrap(), Lock::Taken(_)));
        assert!(matches!(lock(&root.path().join("none")).unwrap(), Lock::NoDirectory));
    }

    /// As in a bind mount of a directory that was removed.
    #[test]
    fn a_directory_that_takes_nothing_is_given_up() {
        let root = tempfile::tempdir().unwrap();
        let mut attempts = 0;
        let made: io::Result<()> = make_below(root.path(), 0o700, || {
            attempts += 1;
            Err(ErrorKind::NotFound.into())
        });
        assert_eq!(made.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(attempts > 1);
    }
}
