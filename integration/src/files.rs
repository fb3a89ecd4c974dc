//! Copies of files.

use std::fs;
use std::io::{ErrorKind, Result};
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::Path;

/// Makes a hard link, or a copy if the two are on different file systems.
pub(crate) fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    match fs::hard_link(from, to) {
        Err(e) if e.kind() == ErrorKind::CrossesDevices => copy(from, to),
        linked => linked,
    }
}

/// Copies a file or a symbolic link, with its owner.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let original = fs::symlink_metadata(from)?;
    if original.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else {
        fs::copy(from, to)?;
    }
    lchown(to, Some(original.uid()), Some(original.gid()))
}
