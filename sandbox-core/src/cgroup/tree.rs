//! Goes through a cgroup and all below it, however deep a container made them.
//!
//! A container that divides its cgroup may nest cgroups until their path is longer
//! than the kernel takes one (`PATH_MAX`). So the way down and up is by single names,
//! with one open directory at a time: a cgroup never moves to another parent, so `..` leads
//! back (cgroup-v2.rst; version 1 renames within a parent only).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::Errno;

use super::file;
use crate::error::{Context, Result};

/// Calls `visit` with each directory, parents first. Does nothing if the top is gone.
pub(super) fn each(top: &Path, visit: impl FnMut(BorrowedFd<'_>) -> Result<()>) -> Result<()> {
    go(top, visit, |_, _| Ok(()))
}

/// Removes as much as possible, children first. Returns whether everything is removed.
pub(super) fn remove(top: &Path) -> Result<bool> {
    match rustix::fs::rmdir(top) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(e) => return Err(e).context(|| format!("rmdir {}", top.display())),
    }
    go(
        top,
        |_| Ok(()),
        |parent, name| match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY) => Ok(()),
            Err(e) => Err(e).context(|| format!("rmdir {name:?} below {}", top.display())),
        },
    )?;
    match rustix::fs::rmdir(top) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(false),
        Err(e) => Err(e).context(|| format!("rmdir {}", top.display())),
    }
}

/// Calls `down` with each directory on the way down, and `up` with the parent and the name
/// of each but the top on the way up.
fn go(
    top: &Path,
    mut down: impl FnMut(BorrowedFd<'_>) -> Result<()>,
    mut up: impl FnMut(BorrowedFd<'_>, &CStr) -> Result<()>,
) -> Result<()> {
    let at = |what: &str| format!("{what} below {}", top.display());
    let mut here = match file::open(top, DIRECTORY) {
        Ok(opened) => opened,
        Err(e) if is_gone(e) => return Ok(()),
        Err(e) => return Err(e).context(|| format!("open {}", top.display())),
    };
    down(here.as_fd())?;
    let mut left = children(&here).context(|| at("list a cgroup"))?;
    // The way back: what is left to visit beside each name.
    let mut way: Vec<(CString, Vec<CString>)> = Vec::new();
    loop {
        if let Some(name) = left.pop() {
            here = match openat(&here, &name, DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(below) => below,
                // The container may remove one at any time.
                Err(e) if is_gone(e) => continue,
                Err(e) => return Err(e).context(|| at("open a cgroup")),
            };
            down(here.as_fd())?;
            let below = children(&here).context(|| at("list a cgroup"))?;
            way.push((name, std::mem::replace(&mut left, below)));
        } else if let Some((name, beside)) = way.pop() {
            here = openat(&here, "..", DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .context(|| at("return from a cgroup"))?;
            up(here.as_fd(), &name)?;
            left = beside;
        } else {
            return Ok(());
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);

fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NODEV)
}

/// Lists the cgroups below one. None, if it is gone.
fn children(dir: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    // A cgroup has two links and one more for each child. Without children its
    // many files need not be listed.
    if fstat(dir)?.st_nlink == 2 {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) if is_gone(e) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::mkdirat;

    /// Makes directories inside each other until their path is too long for the kernel.
    fn nest(top: &Path) -> usize {
        let mut here = file::open(top, DIRECTORY).unwrap();
        let name = "n".repeat(200);
        let depth = 40;
        for _ in 0..depth {
            mkdirat(&here, &name, Mode::from_raw_mode(0o755)).unwrap();
            here = openat(&here, &name, DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        }
        assert!(depth * name.len() > 4096);
        depth
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_listed_and_removed() {
        let parent = tempfile::tempdir().unwrap();
        let top = parent.path().join("top");
        std::fs::create_dir_all(top.join("beside/below")).unwrap();
        let depth = nest(&top);
        let mut seen = 0;
        each(&top, |_| {
            seen += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, depth + 3);
        assert!(remove(&top).unwrap());
        assert!(!top.exists());
    }

    #[test]
    fn what_is_busy_stays_and_the_rest_goes() {
        let parent = tempfile::tempdir().unwrap();
        let top = parent.path().join("top");
        std::fs::create_dir_all(top.join("gone/below")).unwrap();
        std::fs::create_dir_all(top.join("busy")).unwrap();
        std::fs::write(top.join("busy/file"), "").unwrap();
        assert!(!remove(&top).unwrap());
        let left: Vec<_> =
            std::fs::read_dir(&top).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["busy"]);
    }

    #[test]
    fn a_cgroup_removed_while_it_is_listed_has_no_children() {
        let parent = tempfile::tempdir().unwrap();
        let top = parent.path().join("top");
        std::fs::create_dir_all(top.join("child")).unwrap();
        let mut seen = 0;
        each(&top, |_| {
            seen += 1;
            let _ = std::fs::remove_dir(top.join("child"));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, 1);
        std::fs::remove_dir(&top).unwrap();
        each(&top, |_| unreachable!("it is gone")).unwrap();
        assert!(remove(&top).unwrap());
    }
}
