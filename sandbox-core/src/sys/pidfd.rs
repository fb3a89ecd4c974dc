//! What a pidfd is good for: the namespaces of its process (`linux/pidfd.h`, Linux 6.11), and
//! signals by any number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use super::check;

/// Opens the mount namespace of a process: `PIDFD_GET_MNT_NAMESPACE`.
pub fn mount_namespace_of(pidfd: impl AsFd) -> io::Result<OwnedFd> {
    namespace_of(pidfd, libc::PIDFD_GET_MNT_NAMESPACE)
}

/// The highest signal number of the kernel.
pub const LAST_SIGNAL: i32 = 64;

/// Sends a signal, or with 0 only asks whether that is possible: pidfd_send_signal(2).
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    let no_info = ptr::null::<u8>();
    // SAFETY: integer arguments, and no siginfo_t.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) })?;
    Ok(())
}

fn namespace_of(pidfd: impl AsFd, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: these requests take no argument, so the kernel neither reads nor
    // writes memory of ours; the descriptor is borrowed from the caller.
    let fd = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), request, 0) };
    check(fd)?;
    // SAFETY: they return a new, close-on-exec descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
