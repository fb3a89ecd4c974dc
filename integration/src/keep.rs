//! `PALISADE_TEST_KEEP=1` leaves everything that a failing test has made, still
//! running: its directory with the daemon's and the shims' log, the state, the
//! containers. `report` prints where. A kept slot is passed over by tests that
//! run with the variable; the next test that runs without it clears all of them.

use std::fs::{self, File};
use std::thread;

use crate::leaks;
use crate::slot::{Slot, keeping_is_requested};

/// Whether this test has failed and its files and processes stay.
pub(crate) fn keeps() -> bool {
    keeping_is_requested() && thread::panicking()
}

/// Marks a slot as kept until its directory is removed, even if the test is killed.
pub(crate) fn mark(slot: &Slot) {
    if keeping_is_requested() {
        fs::create_dir_all(slot.directory()).expect("make the test's directory");
        File::create(slot.kept_file()).expect("mark the test's directory as kept");
    }
}

/// Removes what earlier tests kept, unless this one is to keep as well.
pub(crate) fn clear_away() {
    if !keeping_is_requested() {
        Slot::kept().iter().for_each(leaks::clear_away);
    }
}

/// Prints where everything is. `client` is a command line for a client of the daemon.
pub(crate) fn report(slot: &Slot, client: &str) {
    let directory = slot.directory();
    eprintln!("--- kept, and still running, since PALISADE_TEST_KEEP is set:");
    eprintln!("  files         {}", directory.display());
    eprintln!("  log           {}/log (the daemon's and the shims')", directory.display());
    eprintln!("  state         /run/palisade/NAMESPACE/ID");
    eprintln!("  client        {client}");
    eprintln!("  look inside   nsenter --all --target PID");
    eprintln!("The next test that runs without PALISADE_TEST_KEEP clears it away.");
}
