//! A containerd's root with the images in it, made once rather than by every
//! test: importing and unpacking them costs several times as much as a test.
//!
//! Each slot keeps one for each containerd in `.cache/prepared`. Its first test
//! imports the images and keeps a copy of containerd's files. Each later test
//! starts from a copy of that copy, in which layers and blobs, which are never
//! written, are hard links. The copy belongs to the process that holds the
//! slot's lock. It is valid only with a key beside it, which names everything
//! that it was made from. A test removes the key, and restores it after a good
//! end. After a test that failed or was killed, the next starts from nothing.

use std::fs::{self, Metadata};
use std::io::Result;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use crate::built::repository;
use crate::files::{self, link_or_copy};
use crate::image::{self, sha256};
use crate::slot::Slot;
use crate::version::Version;

/// The code that determines the content of a prepared root.
const RECIPE: [&str; 3] =
    [include_str!("prepared.rs"), include_str!("image.rs"), include_str!("config.rs")];

/// The place in which one slot keeps the root of one containerd.
#[derive(Debug)]
pub struct Prepared {
    folder: PathBuf,
    key: String,
}

impl Prepared {
    /// Returns the place, whether or not there is something in it.
    pub fn of(version: Version, slot: &Slot) -> Prepared {
        let name = format!("{}-{}", version.number(), slot.name());
        let folder = repository().join(".cache/prepared").join(name);
        Prepared { folder, key: key(version) }
    }

    /// Copies the prepared root if it is valid. Returns whether it is.
    pub fn lend(&self, to: &Path) -> bool {
        let current = fs::read_to_string(self.key_file()).is_ok_and(|key| key == self.key);
        let _ = fs::remove_file(self.key_file());
        if current {
            copy_tree(&self.root(), to);
        }
        current
    }

    /// Replaces the prepared root by a copy of this one, whose containerd has
    /// ended.
    pub fn keep(&self, root: &Path) {
        let _ = fs::remove_dir_all(&self.folder);
        fs::create_dir_all(&self.folder).expect("make a folder in .cache/prepared");
        copy_tree(root, &self.root());
        fs::write(self.diff_id_file(), image::busybox_diff_id()).expect("write the digest");
    }

    /// Makes the prepared root valid for the next test.
    pub fn give_back(&self) {
        fs::write(self.key_file(), &self.key).expect("write a key in .cache/prepared");
    }

    /// Returns the name of the snapshot with the busybox image, which takes
    /// long to compute.
    pub fn busybox_snapshot(&self) -> String {
        fs::read_to_string(self.diff_id_file()).expect("read the digest")
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    fn key_file(&self) -> PathBuf {
        self.folder.join("key")
    }

    fn diff_id_file(&self) -> PathBuf {
        self.folder.join("busybox")
    }
}

/// Returns the key: everything that a prepared root depends on. The boot is
/// part of it, since a machine that crashed may have lost half of the files.
fn key(version: Version) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read boot_id");
    let mut key = format!("boot {boot}recipe {}\n", sha256(RECIPE.concat().as_bytes()));
    let programs = ["containerd", "ctr"].map(|name| version.executables().join(name));
    for file in image::ingredients().iter().chain(&programs) {
        let found = fs::metadata(file).unwrap_or_else(|e| panic!("stat {}: {e}", file.display()));
        key += &format!("{} {}\n", file.display(), identity(&found));
    }
    key
}

/// Returns a text that changes whenever the file's content may have changed.
fn identity(file: &Metadata) -> String {
    let changed = (file.ctime(), file.ctime_nsec());
    format!("{} {} {} {}.{:09}", file.dev(), file.ino(), file.size(), changed.0, changed.1)
}

fn copy_tree(from: &Path, to: &Path) {
    let copied = copy_directory(from, to, false);
    copied.unwrap_or_else(|e| panic!("copy {} to {}: {e}", from.display(), to.display()));
}

fn copy_directory(from: &Path, to: &Path, shared: bool) -> Result<()> {
    let original = fs::metadata(from)?;
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        // All other files, such as databases, are changed in place by
        // containerd.
        let shared = shared || entry.file_name() == "blobs" || entry.file_name() == "snapshots";
        match entry.file_type()? {
            kind if kind.is_dir() => copy_directory(&path, &copy, shared)?,
            _ if shared => link_or_copy(&path, &copy)?,
            _ => files::copy(&path, &copy)?,
        }
    }
    lchown(to, Some(original.uid()), Some(original.gid()))?;
    fs::set_permissions(to, original.permissions())
}
