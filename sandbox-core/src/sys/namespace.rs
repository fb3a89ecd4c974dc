//! Relations of namespaces: ioctl_ns(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sched::CloneFlags;

use super::check;

/// A time namespace, which nix has no name for.
pub const NEW_TIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

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

/// Returns the user who made a user namespace, and has all capabilities over it from the one
/// above: `NS_GET_OWNER_UID`.
pub fn maker(user_namespace: impl AsFd) -> io::Result<u32> {
    let mut uid: libc::uid_t = 0;
    let fd = user_namespace.as_fd().as_raw_fd();
    // SAFETY: the kernel writes a uid_t, which outlives the call; the descriptor is borrowed from
    // the caller.
    check(unsafe { libc::ioctl(fd, NS_GET_OWNER_UID, &raw mut uid) })?;
    Ok(uid)
}

/// Opens the PID or user namespace above another: `NS_GET_PARENT`.
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

/// Returns the PID that a thread of another PID namespace has in the caller's:
/// `NS_GET_PID_FROM_PIDNS` (Linux 6.11).
///
/// # Errors
/// `ESRCH` if there is no such thread, or the caller's namespace is not above it; `ENOTTY` if the
/// kernel does not know the question.
pub fn pid_of_namespace(namespace: impl AsFd, pid: i32) -> io::Result<i32> {
    // SAFETY: the argument is a number, which the kernel takes as such.
    let own = unsafe {
        libc::ioctl(
            namespace.as_fd().as_raw_fd(),
            NS_GET_PID_FROM_PIDNS as _,
            libc::c_long::from(pid),
        )
    };
    check(own)?;
    Ok(own)
}

/// `NS_GET_PID_FROM_PIDNS` of `linux/nsfs.h`
const NS_GET_PID_FROM_PIDNS: u64 = 0x8004_b706;

/// Returns the kind of a namespace, as the flag of clone(2) that makes one: `NS_GET_NSTYPE`.
pub fn kind(namespace: impl AsFd) -> io::Result<CloneFlags> {
    // SAFETY: as above.
    let flag = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_NSTYPE, 0) };
    check(flag)?;
    Ok(CloneFlags::from_bits_retain(flag))
}

/// `_IO(0xb7, 0x3)` of `linux/nsfs.h`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// `_IO(0xb7, 0x4)` of `linux/nsfs.h`.
const NS_GET_OWNER_UID: libc::Ioctl = 0xb704;

/// `_IO(0xb7, 0x2)` of `linux/nsfs.h`.
const NS_GET_PARENT: libc::Ioctl = 0xb702;

/// `_IO(0xb7, 0x1)` of `linux/nsfs.h`.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
