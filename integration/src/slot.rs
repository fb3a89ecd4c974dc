//! Tests run in parallel. Each takes a *slot*, a number that no other test on
//! this machine holds, and derives all its names from it: directory, containerd
//! namespace, cgroup, bridge, subnet. A lock that ends with the process holds
//! the slot. A test that takes a slot first removes what a killed test may have
//! left under its names.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// The most tests that can run at once: one for each subnet 10.213.N.0/24.
const SLOTS: u8 = 250;

/// The name of [`Slot::kept_file`].
const KEPT: &str = "kept";

/// A number that only this test has.
#[derive(Debug)]
pub struct Slot {
    number: u8,
    _lock: Flock<File>,
}

impl Slot {
    /// Takes a free slot.
    pub fn take() -> Slot {
        let free = |slot: &Slot| !(keeping_is_requested() && slot.kept_file().exists());
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

    /// Returns its number.
    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    /// Returns the directory of this test's files. The path is short, since
    /// sockets are below it.
    pub fn directory(&self) -> PathBuf {
        directory(self.number)
    }

    /// The file that marks the directory as one to keep.
    pub(crate) fn kept_file(&self) -> PathBuf {
        self.directory().join(KEPT)
    }

    /// Returns containerd's namespace, which also names the cgroup of the pods.
    /// It ends in a letter, so that no slot's name is the beginning of
    /// another's.
    pub fn name(&self) -> String {
        format!("palisade-test-{}-ns", self.number)
    }

    /// Returns the name of the pods' bridge.
    pub fn bridge(&self) -> String {
        format!("palt{}", self.number)
    }

    /// Returns the pods' subnet, without its last octet.
    pub fn subnet(&self) -> String {
        format!("10.213.{}", self.number)
    }
}

fn directory(number: u8) -> PathBuf {
    PathBuf::from(format!("/tmp/palisade-test-{number}"))
}

/// Whether `PALISADE_TEST_KEEP` requests that failing tests keep what they have made.
pub(crate) fn keeping_is_requested() -> bool {
    std::env::var_os("PALISADE_TEST_KEEP").is_some_and(|value| !value.is_empty() && value != "0")
}
