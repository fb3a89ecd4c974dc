//! Notes of sandboxes that are being cleaned up, or could not be torn down:
//! `<state root>/.unfinished/<namespace>/<sandbox>`, a symbolic link to the inode number of the
//! sandbox's state directory.
//!
//! A note is made before the first step and removed after the last one, so that what a killed
//! `delete` has left, or a busy cgroup, is found by the next shim of the namespace without a look
//! at anything else: as a rule the directory is not there. The inode number tells the sandbox
//! from a later one with its ID.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::state::PRIVATE;
use crate::directories::make_below;
use crate::error::{Context, Result};

/// No namespace of containerd's begins with a dot.
const DIRECTORY: &str = ".unfinished";

/// A note, which may be there or not.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
    state: PathBuf,
}

impl Note {
    pub(super) fn of(state_root: &Path, namespace: &str, id: &str) -> Self {
        let path = state_root.join(DIRECTORY).join(namespace).join(id);
        Self { path, state: state_root.join(namespace).join(id) }
    }

    /// Makes it. Idempotent.
    pub(super) fn make(&self) -> Result<()> {
        let what = || format!("note in {} what is unfinished", self.path.display());
        let inode = fs::metadata(&self.state).context(what)?.ino().to_string();
        let directory = self.path.parent().unwrap_or(&self.path);
        // The directory goes with the last note.
        match make_below(directory, PRIVATE, || symlink(&inode, &self.path)) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists && self.is_valid() => Ok(()),
            // It is of an earlier sandbox with this ID.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                fs::remove_file(&self.path).context(what)?;
                symlink(&inode, &self.path).context(what)
            }
            other => other.context(what),
        }
    }

    /// Whether it is there, and of the sandbox that has its state there now.
    pub(super) fn is_valid(&self) -> bool {
        let noted = fs::read_link(&self.path).ok();
        let found = fs::metadata(&self.state).map(|state| state.ino().to_string());
        noted.zip(found.ok()).is_some_and(|(noted, found)| noted == Path::new(&found))
    }

    /// Removes it. Idempotent.
    pub(super) fn strike_off(&self) {
        if fs::remove_file(&self.path).is_ok() {
            let of_namespace = self.path.parent();
            let _ = of_namespace.map(fs::remove_dir);
            let _ = of_namespace.and_then(Path::parent).map(fs::remove_dir);
        }
    }
}

/// Returns the IDs of the sandboxes of a namespace of which there are notes.
pub(super) fn noted(state_root: &Path, namespace: &str) -> Vec<String> {
    let directory = state_root.join(DIRECTORY).join(namespace);
    let Ok(entries) = fs::read_dir(&directory) else { return Vec::new() };
    let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
    let found: Vec<String> = entries.flatten().filter_map(name).collect();
    if found.is_empty() {
        // Whoever has struck off the last note was killed.
        let _ = fs::remove_dir(&directory);
        let _ = fs::remove_dir(state_root.join(DIRECTORY));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_of_one_sandbox_and_of_no_later_one() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("ns/a");
        let note = Note::of(root.path(), "ns", "a");
        assert!(note.make().is_err(), "there is no sandbox");
        fs::create_dir_all(&state).unwrap();
        note.make().unwrap();
        note.make().unwrap();
        assert!(note.is_valid());
        assert_eq!(noted(root.path(), "ns"), ["a"]);
        assert!(noted(root.path(), "other").is_empty());
        // Keeps the number of the old one from being used again.
        fs::rename(&state, root.path().join("moved")).unwrap();
        fs::create_dir(&state).unwrap();
        assert!(!note.is_valid());
        note.make().unwrap();
        assert!(note.is_valid());
        note.strike_off();
        note.strike_off();
        assert!(!root.path().join(DIRECTORY).exists());
    }
}
