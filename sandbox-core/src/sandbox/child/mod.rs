//! The clones of the shim, between clone and execve: one becomes boot, one the gofer.
//! Each is a copy of the shim, with the shim's memory and descriptors, and runs nothing
//! but its own file here.

pub(super) mod boot;
pub(super) mod gofer;

use std::ffi::CString;

use super::executable::Executable;
use crate::error::Error;
use crate::sys::process::execute_descriptor;

/// Executes `palisade` with an empty environment. Returns only to say why not.
fn execute(palisade: &Executable, args: &[CString]) -> Error {
    match execute_descriptor(palisade.file(), args, &[]) {
        Err(e) => Error::internal(format!("execveat palisade: {e}")),
        Ok(never) => match never {},
    }
}
