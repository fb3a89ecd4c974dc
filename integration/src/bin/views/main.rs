//! Shows what programs see of their limits, under runc, under runc with lxcfs, and under
//! Palisade: `ci/views` makes the root file system and starts lxcfs, and then this. It also
//! reads in the containers of `integration/tests/views`.
//!
//! ```text
//! views table ROOT LXCFS         prints what each program sees, before and after an Update
//! views reads LXCFS LXCFS_PID    prints what reading costs
//! views read RATE SECONDS        reads: what the containers of `views reads` run
//! views keep FILE                prints the first line of an open file whenever it changes
//! views hammer                   reads without a pause
//! ```

mod programs;
mod reads;
mod setups;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let as_wanted = match arguments[..] {
        ["table", root, lxcfs] => table::print(Path::new(root), Path::new(lxcfs)),
        ["reads", lxcfs, pid] => {
            reads::measure(PathBuf::from(lxcfs), pid.parse().expect("a process ID"))
        }
        ["read", rate, seconds] => {
            reads::read(
                rate.parse().expect("reads in a second"),
                seconds.parse().expect("a number of seconds"),
            );
            true
        }
        ["keep", file] => reads::keep(Path::new(file)),
        ["hammer"] => reads::hammer(),
        _ => panic!("usage: views table ROOT LXCFS | reads LXCFS LXCFS_PID | read RATE SECONDS"),
    };
    if as_wanted { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
