//! Starts a program in a child that shares this process's memory until then: posix_spawn(3).
//! A clone copies the tables of all pages, and each page that either writes to afterwards.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use rustix::process::{PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use super::descriptor::cloexec_from;

/// Starts an open file as a child with an empty environment, and returns its pidfd. Besides 0, 1
/// and 2 it gets these descriptors, by their numbers, and no other one, whatever flags that was
/// opened with. Waits until the child has executed the file.
///
/// # Errors
/// If it cannot be executed.
pub fn spawn(
    file: BorrowedFd<'_>,
    args: &[&CStr],
    donated: &[BorrowedFd<'_>],
) -> io::Result<OwnedFd> {
    const NO_ENVIRONMENT: [&CStr; 0] = [];
    cloexec_from(3)?;
    let mut actions = PosixSpawnFileActions::init()?;
    for number in donated.iter().map(AsRawFd::as_raw_fd) {
        // Onto itself, this lets it survive execve.
        actions.add_dup2(number, number)?;
    }
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let attributes = PosixSpawnAttr::init()?;
    let pid = posix_spawn(path.as_c_str(), &actions, &attributes, args, &NO_ENVIRONMENT)?;
    let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::InvalidData)?;
    // Nothing collects the child before it is known by its pidfd.
    let pidfd = pidfd_open(pid, PidfdFlags::empty());
    if pidfd.is_err() {
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
    Ok(pidfd?)
}
