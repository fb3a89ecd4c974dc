//! Opens the namespaces of a process by its pidfd (`linux/pidfd.h`, Linux 6.11).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::check;

/// Opens the PID namespace of a process: `PIDFD_GET_PID_NAMESPACE`.
pub fn pid_namespace_of(pidfd: impl AsFd) -> io::Result<OwnedFd> {
    namespace_of(pidfd, libc::PIDFD_GET_PID_NAMESPACE)
}

/// Opens the mount namespace of a process: `PIDFD_GET_MNT_NAMESPACE`.
pub fn mount_namespace_of(pidfd: impl AsFd) -> io::Result<OwnedFd> {
    namespace_of(pidfd, libc::PIDFD_GET_MNT_NAMESPACE)
}

fn namespace_of(pidfd: impl AsFd, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: these requests take no argument, so the kernel neither reads nor
    // writes memory of ours; the descriptor is borrowed from the caller.
    let fd = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), request, 0) };
    check(fd)?;
    // SAFETY: they return a new, close-on-exec descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
