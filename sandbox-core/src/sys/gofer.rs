//! What the gofer asks of the kernel beyond mounts.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The PID namespace of a process: `PIDFD_GET_PID_NAMESPACE`, Linux 6.11
/// (pidfd in ioctl form, `linux/pidfd.h`).
pub fn pid_namespace_of(pidfd: impl AsFd) -> io::Result<OwnedFd> {
    let number = pidfd.as_fd().as_raw_fd();
    // SAFETY: this request takes no argument, so the kernel neither reads nor
    // writes memory of ours; the descriptor is borrowed from the caller.
    let fd = unsafe { libc::ioctl(number, libc::PIDFD_GET_PID_NAMESPACE, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the request returns a new, close-on-exec descriptor that nobody
    // else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
