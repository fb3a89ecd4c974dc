//! The clone of the shim that becomes the gofer.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use super::{command_line, execute};
use crate::control::encoding::Message;
use crate::control::gofer::{GoferAnswer, GoferError};
use crate::control::packet::send_packet;
use crate::error::{Context, Result};
use crate::sandbox::executable::Executable;
use crate::sandbox::printable;
use crate::sys::descriptor::{cloexec_from, donate};
use crate::sys::process::exit_now;

/// Runs the clone from its first step to execve. If a step fails, the clone
/// replies to the shim in the gofer's place.
pub(in crate::sandbox) fn become_gofer(executable: &Executable, socket: &OwnedFd) -> ! {
    let error = match prepare(executable, socket) {
        Ok(args) => execute(executable, &args),
        Err(error) => error,
    };
    let message = printable(error.to_string().as_bytes());
    let answer: GoferAnswer = Err(GoferError { invalid: false, message });
    if let Ok(bytes) = answer.encode() {
        let _ = send_packet(socket, &bytes, &[]);
    }
    exit_now(1)
}

fn prepare(executable: &Executable, socket: &OwnedFd) -> Result<Vec<CString>> {
    // The gofer inherits no descriptor of the shim, whatever flags it was opened with.
    cloexec_from(3).context(|| "close_range")?;
    executable.donate_mount()?;
    let number = donate(socket).context(|| "donate a descriptor")?;
    let args = ["palisade".to_owned(), "gofer".to_owned(), format!("--request-fd={number}")];
    command_line(args)
}
