//! The version of the running kernel.

use std::ffi::CStr;

/// A kernel's version: major and minor.
pub type Version = (u32, u32);

/// Returns the running kernel's version; `None` if its release contains none.
pub fn version() -> Option<Version> {
    version_in(rustix::system::uname().release())
}

/// Reads the version in a release such as `6.18.0-rc1`: uname(2).
pub fn version_in(release: &CStr) -> Option<Version> {
    let release = release.to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
