//! How namespaces lie below each other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The namespace above a PID or user namespace: `NS_GET_PARENT`,
/// ioctl_nsfs(2). `EPERM` when that is outside of the caller's own.
pub fn parent_namespace(namespace: impl AsFd) -> io::Result<OwnedFd> {
    let number = namespace.as_fd().as_raw_fd();
    // SAFETY: this request takes no argument, so the kernel neither reads nor
    // writes memory of ours; the descriptor is borrowed from the caller.
    let fd = unsafe { libc::ioctl(number, libc::NS_GET_PARENT, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the request returns a new, close-on-exec descriptor that nobody
    // else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
