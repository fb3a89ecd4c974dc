//! The clones of the shim, between clone and execve: one becomes boot, one the
//! gofer. Each is a copy of the shim, with the shim's memory and descriptors,
//! and runs only its own file here.

pub(super) mod boot;
pub(super) mod gofer;
mod inherited;
mod pod_namespaces;

use std::ffi::CString;

use super::executable::Executable;
use crate::error::{Error, Result};
use crate::sys::process::execute_descriptor;

/// Returns the arguments as execve takes them.
fn command_line(args: impl IntoIterator<Item = String>) -> Result<Vec<CString>> {
    let to_c = |arg| CString::new(arg).map_err(|e| Error::internal(format!("argument: {e}")));
    args.into_iter().map(to_c).collect()
}

/// Executes `palisade` with an empty environment. Returns only if that failed,
/// with the error.
fn execute(palisade: &Executable, args: &[CString]) -> Error {
    match execute_descriptor(palisade.file(), args, &[]) {
        Err(e) => Error::internal(format!("execveat palisade: {e}")),
        Ok(never) => match never {},
    }
}
