//! The file that a verb writes.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::exit::Failure;

/// A file that was made for what is collected. It is removed unless something was.
pub(super) struct Output {
    path: PathBuf,
    is_new: bool,
    keep: bool,
}

impl Output {
    /// Makes a file. One that exists is written over only by `force`.
    ///
    /// # Errors
    /// The error says why it cannot be made.
    pub(super) fn create(path: &Path, force: bool) -> Result<(Self, File)> {
        let is_new = !path.exists();
        let made = match force {
            true => File::create(path),
            false => File::create_new(path),
        };
        let file = match made {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let path = path.display();
                let why = format!("{path} exists; --force writes over it, -o names another file");
                return Err(Failure::Failed(why).into());
            }
            other => other.with_context(|| format!("make {}", path.display()))?,
        };
        Ok((Self { path: path.to_owned(), is_new, keep: false }, file))
    }

    /// Keeps the file: there is something in it.
    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.is_new && !self.keep {
            let _ = fs::remove_file(&self.path);
        }
    }
}
