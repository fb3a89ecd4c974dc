//! The number of files that this process may have open: getrlimit(2), `RLIMIT_NOFILE`.

use std::io;
use std::sync::OnceLock;

use super::process::{Rlimit, rlimit_of, set_rlimit};

/// The limits that this process was started with, once it has raised the soft one.
static INHERITED: OnceLock<Rlimit> = OnceLock::new();

/// Returns the soft limit and the hard one.
fn own() -> io::Result<Rlimit> {
    rlimit_of(0, libc::RLIMIT_NOFILE)
}

/// Returns how many files this process may have open now: its soft limit.
pub fn limit() -> io::Result<u64> {
    Ok(own()?.soft)
}

/// Raises the soft limit to the hard one. What this process starts for others gets
/// [`inherited`].
pub fn raise_limit() -> io::Result<()> {
    let limit = own()?;
    INHERITED.get_or_init(|| limit);
    set_rlimit(Rlimit { soft: limit.hard, ..limit })
}

/// Returns the limits that this process was started with, whatever was done to them since.
pub fn inherited() -> io::Result<Rlimit> {
    INHERITED.get().map_or_else(own, |inherited| Ok(*inherited))
}

/// Sets the soft limit of this process, which becomes a program of somebody else's, as far as
/// its hard one allows.
pub fn limit_to(soft: u64) -> io::Result<()> {
    let limit = own()?;
    set_rlimit(Rlimit { soft: soft.min(limit.hard), ..limit })
}

/// The time in which this process has the soft limit that it was started with, so that a
/// program that it starts gets that.
#[derive(Debug)]
pub struct AsInherited(Rlimit);

impl AsInherited {
    /// Begins it. Files that are open stay open.
    pub fn begin() -> io::Result<Self> {
        let limit = own()?;
        set_rlimit(Rlimit { soft: inherited()?.soft.min(limit.hard), ..limit })?;
        Ok(Self(limit))
    }
}

impl Drop for AsInherited {
    fn drop(&mut self) {
        // It had this limit before.
        let _ = set_rlimit(self.0);
    }
}
