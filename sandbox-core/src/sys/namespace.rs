//! Relations of namespaces: ioctl_ns(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sched::CloneFlags;

use super::check;

/// Opens the user namespace that owns another namespace: `NS_GET_USERNS`.
///
/// # Errors
/// `EPERM` if the owner is neither the caller's user namespace nor below it.
pub fn owner(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument, so the kernel neither reads nor writes
    // memory of ours; the descriptor is borrowed from the caller.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS, 0) };
    check(fd)?;
    // SAFETY: the kernel returned a new, close-on-exec descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the PID namespace above another: `NS_GET_PARENT`.
///
/// # Errors
/// `EPERM` if that is above the caller's own.
pub fn parent(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: as above.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_PARENT, 0) };
    check(fd)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns the kind of a namespace, as the flag of clone(2) that makes one: `NS_GET_NSTYPE`.
pub fn kind(namespace: impl AsFd) -> io::Result<CloneFlags> {
    // SAFETY: as above.
    let flag = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_NSTYPE, 0) };
    check(flag)?;
    Ok(CloneFlags::from_bits_retain(flag))
}

/// `_IO(0xb7, 0x3)` of `linux/nsfs.h`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// `_IO(0xb7, 0x2)` of `linux/nsfs.h`.
const NS_GET_PARENT: libc::Ioctl = 0xb702;

/// `_IO(0xb7, 0x1)` of `linux/nsfs.h`.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
