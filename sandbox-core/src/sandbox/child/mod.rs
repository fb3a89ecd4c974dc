//! The clones of the shim, between clone and execve: one becomes boot, one the
//! gofer. Each is a copy of the shim, with the shim's memory and descriptors,
//! and runs only its own file here.

pub(super) mod boot;
pub(super) mod gofer;

use std::ffi::CString;

use super::executable::Executable;
use crate::error::Error;
use crate::sys::process::execute_descriptor;

/// Executes `palisade` with an empty environment. Returns only if that failed,
/// with the error.
fn execute(palisade: &Executable, args: &[CString]) -> Error {
    match execute_descriptor(palisade.file(), args, &[]) {
        Err(e) => Error::internal(format!("execveat palisade: {e}")),
        Ok(never) => match never {},
    }
}
