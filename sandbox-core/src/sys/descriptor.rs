//! Descriptors that a process is given by number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};

use super::check;

/// Takes a descriptor that this process was given at its start, with a number from a
/// flag, and makes it close-on-exec.
///
/// # Errors
/// `EBADF` if no such descriptor is open.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl F_GETFD only looks the number up; a wrong one is EBADF.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: the number is open, was announced for this process alone, and
    // main.rs adopts each announced number once before anything else opens one.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Lets a descriptor survive the next execve and returns its number. For a child between
/// clone and execve.
pub fn donate(fd: impl AsFd) -> io::Result<RawFd> {
    let fd = fd.as_fd();
    let flags = fcntl_getfd(fd)?;
    fcntl_setfd(fd, flags.difference(FdFlags::CLOEXEC))?;
    Ok(fd.as_raw_fd())
}

/// Makes every descriptor from `first` on close-on-exec: close_range(2).
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing, so no owner loses its descriptor.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// Closes every descriptor but these: close_range(2). For a child that owns no other and ends
/// without dropping any of its parent's.
pub fn close_others(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 0;
    // No descriptor has the last number.
    for kept in kept.into_iter().chain([u32::MAX]) {
        if first < kept {
            // SAFETY: the caller's owners of the others never use or drop them.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, kept - 1, 0) })?;
        }
        first = kept.saturating_add(1);
    }
    Ok(())
}

/// The first number that is beyond those at which [`keep_at`] puts descriptors.
pub const BEYOND: RawFd = 16;

/// Copies a descriptor to a number that is beyond those places.
pub fn beyond(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(fd, BEYOND)?)
}

/// Puts copies of descriptors at these places below [`BEYOND`], where they survive execve, and
/// closes every descriptor but those, `others`, which are beyond, and the standard streams. For a
/// child that uses none of its parent's afterwards.
pub fn keep_at(kept: &[(BorrowedFd<'_>, RawFd)], others: &[BorrowedFd<'_>]) -> io::Result<()> {
    // Beyond all places, so that no copy overwrites what is still to be copied.
    let copies: Vec<(RawFd, RawFd)> = kept
        .iter()
        .map(|(fd, place)| Ok((fcntl_dupfd_cloexec(fd, BEYOND)?.into_raw_fd(), *place)))
        .collect::<io::Result<_>>()?;
    for (copy, place) in &copies {
        // SAFETY: the caller's owner of what is there never uses or drops it.
        check(unsafe { libc::dup2(*copy, *place) })?;
    }
    // SAFETY: these numbers were opened just now, and stay open until the end of this function.
    let placed = kept.iter().map(|(_, place)| unsafe { BorrowedFd::borrow_raw(*place) });
    let streams = [stdin(), stdout(), stderr()];
    let kept: Vec<_> = streams.into_iter().chain(placed).chain(others.iter().copied()).collect();
    close_others(&kept)
}

/// Closes this process's copy of a descriptor: close_range(2). For a child that never uses or
/// drops the owner, which is its parent's.
pub fn close_copy(fd: BorrowedFd<'_>) -> io::Result<()> {
    let number = fd.as_raw_fd();
    // SAFETY: the caller's copy of the owner never uses or drops it.
    check(unsafe { libc::syscall(libc::SYS_close_range, number, number, 0) }).map(drop)
}

/// Makes 0, 1 and 2 `/dev/null`.
pub fn detach_stdio() -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    (0..=2).try_for_each(|place| install_stdio(&null, place))
}

/// Makes 0, 1 or 2 a copy of `fd` that survives execve: dup2(2).
///
/// # Errors
/// `EINVAL` for any other place.
pub fn install_stdio(fd: impl AsFd, place: RawFd) -> io::Result<()> {
    let fd = fd.as_fd();
    match place {
        // dup2 onto itself leaves close-on-exec as it was.
        _ if fd.as_raw_fd() == place => fcntl_setfd(fd, FdFlags::empty())?,
        0 => dup2_stdin(fd)?,
        1 => dup2_stdout(fd)?,
        2 => dup2_stderr(fd)?,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sched::CloneFlags;

    use super::*;
    use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
    use crate::sys::process::exit_now;

    #[test]
    fn a_child_keeps_these_descriptors() {
        let (a, b) = rustix::pipe::pipe().unwrap();
        let pidfd =
            match clone_into(&SingleThreaded::in_a_test(), CloneFlags::empty(), None).unwrap() {
                Cloned::Child => {
                    let closed = close_others(&[b.as_fd(), a.as_fd(), a.as_fd()]);
                    let open = |number: &RawFd| fcntl_getfd(borrowed(*number)).is_ok();
                    let left: Vec<RawFd> = (0..1000).filter(open).collect();
                    let mut kept = [a.as_raw_fd(), b.as_raw_fd()];
                    kept.sort_unstable();
                    exit_now(i32::from(closed.is_err() || left != kept))
                }
                Cloned::Parent { pidfd, .. } => pidfd,
            };
        let id = rustix::process::WaitId::PidFd(pidfd.as_fd());
        let ended = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
        assert_eq!(ended.unwrap().unwrap().exit_status(), Some(0));
    }

    fn borrowed(number: RawFd) -> BorrowedFd<'static> {
        // SAFETY: only asked whether it is open.
        unsafe { BorrowedFd::borrow_raw(number) }
    }
}
