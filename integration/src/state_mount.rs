//! A file system of a test's own for the state of its shims, which can be full.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::containerd::Containerd;

/// The bytes that it has.
const SIZE: usize = 1 << 20;

/// What each file begins with a new one of.
const PAGE: usize = 4096;

/// A small tmpfs on the state directory of a containerd's namespace, until it is dropped.
#[derive(Debug)]
pub struct StateMount(PathBuf);

impl StateMount {
    /// Mounts it.
    pub fn on(daemon: &Containerd) -> Self {
        let place = Path::new("/run/palisade").join(daemon.namespace());
        fs::create_dir_all(&place).expect("make a directory");
        let data = format!("size={SIZE},mode=700");
        let flags = MsFlags::empty();
        let mounted = mount(Some("test"), &place, Some("tmpfs"), flags, Some(data.as_str()));
        mounted.expect("mount a tmpfs");
        Self(place)
    }

    /// Fills it, but for so many pages.
    pub fn fill_but(&self, pages: usize) {
        // The end of what is written is lost.
        let _ = fs::write(self.filler(), vec![0; SIZE]);
        let length = fs::metadata(self.filler()).expect("stat the filler").len();
        let file = fs::File::options().write(true).open(self.filler()).expect("open the filler");
        let room = (pages * PAGE) as u64;
        file.set_len(length.saturating_sub(room)).expect("truncate the filler");
    }

    /// Gives all room back.
    pub fn empty(&self) {
        let _ = fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.0.join(".filler")
    }
}

impl Drop for StateMount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
