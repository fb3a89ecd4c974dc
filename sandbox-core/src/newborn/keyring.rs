//! The session keyring of a container, which its init makes and its execs join.

use std::ffi::CString;
use std::io;

use crate::error::{Context, Result};
use crate::spec::plan::ProcessPlan;
use crate::sys::process::{join_session_keyring, set_key_permissions};

/// All rights for the processes that have the keyring, as the kernel gives them. Beside
/// those, the owner may view, read and link it, and search for it: without that, an exec
/// would not find it by its name.
const PERMISSIONS: u32 = 0x3f00_0000 | 0x0001_0000 | 0x0002_0000 | 0x0010_0000 | 0x0008_0000;

/// Joins the container's session keyring. The name is runc's.
///
/// Must be called before this process enters a namespace of the container: the keyring then
/// belongs to boot's ID. So it is found in boot's user namespace, where no container can
/// join it or take its name first, and it counts against no quota that a container can use
/// up.
pub(super) fn join(process: &ProcessPlan, container: &str) -> Result<()> {
    if process.no_new_keyring {
        return Ok(());
    }
    let name = CString::new(format!("_ses.{container}")).context(|| "name a session keyring")?;
    let joined = join_session_keyring(&name)
        .and_then(|serial| set_key_permissions(serial, PERMISSIONS))
        .or_else(allow_missing_keyrings);
    joined.context(|| format!("join the session keyring {name:?}"))
}

/// Ignores that the kernel has no keyrings.
fn allow_missing_keyrings(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => Ok(()),
        _ => Err(error),
    }
}
