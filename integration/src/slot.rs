//! Tests run beside each other. Each takes a *slot*, a number that no other
//! test on this machine holds, and derives all its names from it: directory,
//! containerd namespace, cgroup, bridge, subnet. A slot is held by a lock that
//! goes with the process, and whoever takes a slot first clears away what a
//! test that was killed may have left under its names.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::keep;

/// How many tests can run at once: one per subnet 10.213.N.0/24.
const SLOTS: u8 = 250;

/// The name of [`Slot::kept_file`].
const KEPT: &str = "kept";

/// A number that is this test's alone.
#[derive(Debug)]
pub struct Slot {
    number: u8,
    _lock: Flock<File>,
}

impl Slot {
    /// Takes a free slot.
    pub fn take() -> Slot {
        let free = |slot: &Slot| !(keep::is_asked() && slot.kept_file().exists());
        let slot = (1..=SLOTS).filter_map(Slot::try_take).find(free);
        slot.unwrap_or_else(|| panic!("all {SLOTS} test slots are taken"))
    }

    /// Takes the slots whose tests were to keep what they made, and have ended.
    pub(crate) fn kept() -> Vec<Slot> {
        let kept = |number: &u8| directory(*number).join(KEPT).exists();
        (1..=SLOTS).filter(kept).filter_map(Slot::try_take).collect()
    }

    fn try_take(number: u8) -> Option<Slot> {
        let locks = Path::new("/run/lock/palisade-test");
        fs::create_dir_all(locks).expect("make the directory of the slots' locks");
        let path = locks.join(number.to_string());
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
        Some(Slot { number, _lock: lock })
    }

    /// Everything of this test on disk. Short, as sockets lie below it.
    pub fn directory(&self) -> PathBuf {
        directory(self.number)
    }

    /// The file that marks the directory as one to keep.
    pub(crate) fn kept_file(&self) -> PathBuf {
        self.directory().join(KEPT)
    }

    /// containerd's namespace, and the cgroup that pods go into. Ends in a
    /// letter, so that no slot's name is the beginning of another's.
    pub fn name(&self) -> String {
        format!("palisade-test-{}-ns", self.number)
    }

    /// The pods' bridge.
    pub fn bridge(&self) -> String {
        format!("palt{}", self.number)
    }

    /// The pods' subnet, without its last octet.
    pub fn subnet(&self) -> String {
        format!("10.213.{}", self.number)
    }
}

fn directory(number: u8) -> PathBuf {
    PathBuf::from(format!("/tmp/palisade-test-{number}"))
}
