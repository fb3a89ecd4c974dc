//! Tests run beside each other. Each takes a *slot*, a number that no other
//! test on this machine holds, and derives all its names from it: directory,
//! containerd namespace, cgroup, bridge, subnet. A slot is held by a lock that
//! goes with the process, and whoever takes a slot first clears away what a
//! test that was killed may have left under its names.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};

/// How many tests can run at once: one per subnet 10.213.N.0/24.
const SLOTS: u8 = 250;

/// A number that is this test's alone.
#[derive(Debug)]
pub struct Slot {
    number: u8,
    _lock: Flock<File>,
}

impl Slot {
    /// Takes a free slot.
    pub fn take() -> Slot {
        let directory = PathBuf::from("/run/lock/palisade-test");
        fs::create_dir_all(&directory).expect("make the directory of the slots' locks");
        for number in 1..=SLOTS {
            let path = directory.join(number.to_string());
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let file = file.unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
            if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                return Slot { number, _lock: lock };
            }
        }
        panic!("all {SLOTS} test slots are taken");
    }

    /// Everything of this test on disk. Short, as sockets lie below it.
    pub fn directory(&self) -> PathBuf {
        PathBuf::from(format!("/tmp/palisade-test-{}", self.number))
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
