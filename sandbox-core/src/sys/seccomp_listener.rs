//! The supervisor's end of seccomp's user notification: seccomp_unotify(2).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// The flag `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (Linux 5.19): once its call was received, only
/// a signal that kills the caller interrupts it.
pub const SECCOMP_WAIT_KILLABLE: u32 = 1 << 5;

/// A system call as a seccomp program sees it: `struct seccomp_data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Data {
    /// Its number.
    pub number: u32,
    /// The architecture that the number is one of (`AUDIT_ARCH_`).
    pub architecture: u32,
    /// The address of the instruction after the call.
    pub instruction_pointer: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// A system call that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number among those of the listener.
    pub id: u64,
    /// The thread that makes it, in the caller's PID namespace.
    pub thread: i32,
    /// What it calls.
    pub data: Data,
}

/// Receives the next call: `SECCOMP_IOCTL_NOTIF_RECV`. `None` if its caller is gone.
///
/// Does not block on a listener that is readable and that nobody else receives from: the kernel
/// counts what it has announced (`notif->requests`), and a caller that dies takes its call back,
/// but not the count.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<Call>> {
    // SAFETY: all bytes may be zero, as the kernel demands.
    let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes one such structure, which outlives the call.
    let received = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut call)
    };
    match check(received) {
        Ok(_) => Ok(Some(Call {
            id: call.id,
            thread: call.pid.cast_signed(),
            data: Data {
                number: call.data.nr.cast_unsigned(),
                architecture: call.data.arch,
                instruction_pointer: call.data.instruction_pointer,
                arguments: call.data.args,
            },
        })),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a call still waits: `SECCOMP_IOCTL_NOTIF_ID_VALID`. What was read before about its
/// thread was then not about another one.
pub fn waits(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the kernel reads one number, which outlives the call.
    let valid = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID as _, &raw const id)
    };
    valid == 0
}

/// Makes a call fail with an errno, or return 0 for 0.
///
/// # Errors
/// `ENOENT` if its caller is gone.
pub fn refuse(listener: BorrowedFd<'_>, id: u64, errno: u16) -> io::Result<()> {
    answer(listener, libc::seccomp_notif_resp { id, val: 0, error: -i32::from(errno), flags: 0 })
}

/// Lets the kernel carry a call out, as if there were no listener.
///
/// # Errors
/// `ENOENT` if its caller is gone.
pub fn go_on(listener: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    answer(listener, libc::seccomp_notif_resp { id, val: 0, error: 0, flags })
}

/// Makes a call return a value.
///
/// # Errors
/// `ENOENT` if its caller is gone.
pub fn return_value(listener: BorrowedFd<'_>, id: u64, value: u32) -> io::Result<()> {
    let val = value.into();
    answer(listener, libc::seccomp_notif_resp { id, val, error: 0, flags: 0 })
}

/// `SECCOMP_IOCTL_NOTIF_SET_FLAGS`
const SET_FLAGS: u64 = 0x4008_2104;
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`
const SYNC_WAKE_UP: u64 = 1;

/// Has the kernel wake who receives, and who is answered, on the CPU of the other one, which
/// sleeps next (Linux 6.6).
///
/// # Errors
/// `EINVAL` if the kernel is older.
pub fn wake_on_the_same_cpu(listener: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is a number, which the kernel takes as such.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), SET_FLAGS as _, SYNC_WAKE_UP) }).map(drop)
}

/// Gives the caller a descriptor, which is the result of its call (Linux 5.14):
/// `SECCOMP_IOCTL_NOTIF_ADDFD` with `SECCOMP_ADDFD_FLAG_SEND`. Waits until the caller runs.
///
/// # Errors
/// What the kernel refuses the caller, which still waits, such as `EMFILE`; `ENOENT` or `ESRCH` if it is gone.
pub fn give(
    listener: BorrowedFd<'_>,
    id: u64,
    descriptor: BorrowedFd<'_>,
    close_on_exec: bool,
) -> io::Result<()> {
    let given = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
        srcfd: descriptor.as_raw_fd().cast_unsigned(),
        newfd: 0,
        newfd_flags: if close_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
    };
    // SAFETY: the kernel reads one such structure, which outlives the call.
    let sent = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD as _, &raw const given)
    };
    check(sent).map(drop)
}

fn answer(listener: BorrowedFd<'_>, answer: libc::seccomp_notif_resp) -> io::Result<()> {
    // SAFETY: the kernel reads one such structure, which outlives the call.
    let sent = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw const answer)
    };
    check(sent).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use nix::sched::CloneFlags;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::sys::alarm::interrupt_after;
    use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
    use crate::sys::process::{SECCOMP_NEW_LISTENER, exit_now, load_seccomp, system_call};

    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;

    fn instruction(code: u16, if_true: u8, if_false: u8, operand: u32) -> Vec<u8> {
        let [low, high] = code.to_ne_bytes();
        [&[low, high, if_true, if_false][..], &operand.to_ne_bytes()].concat()
    }

    /// Announces getppid(2).
    fn program() -> Vec<u8> {
        [
            instruction(LOAD, 0, 0, 0),
            instruction(IF_EQUAL, 0, 1, libc::SYS_getppid as u32),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ]
        .concat()
    }

    /// Runs `inside` in a child with the program. Returns the child's pidfd and the listener.
    fn child(inside: impl FnOnce() -> i32) -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
        let (ours, theirs) = crate::control::packet::pair().unwrap();
        let alone = SingleThreaded::in_a_test();
        match clone_into(&alone, CloneFlags::empty(), None).unwrap() {
            Cloned::Child => {
                let loaded = load_seccomp(&program(), SECCOMP_NEW_LISTENER | SECCOMP_WAIT_KILLABLE);
                let Ok(Some(listener)) = loaded else { exit_now(100) };
                let sent = crate::control::packet::send_packet(&theirs, b"x", &[listener.as_fd()]);
                drop(listener);
                exit_now(if sent.is_ok() { inside() } else { 101 })
            }
            Cloned::Parent { pidfd, .. } => {
                drop(theirs);
                let received = crate::control::packet::receive_packet(&ours, 16, 1).unwrap();
                let crate::control::packet::Received::Packet { fds, .. } = received else {
                    panic!("{received:?}")
                };
                (pidfd, fds.take().remove(0))
            }
        }
    }

    fn events(listener: BorrowedFd<'_>, seconds: i64) -> PollFlags {
        let mut ready = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
        poll(&mut ready, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap();
        ready[0].revents()
    }

    fn status(pidfd: &std::os::fd::OwnedFd) -> Option<i32> {
        let id = rustix::process::WaitId::PidFd(pidfd.as_fd());
        let status = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
        status.unwrap().unwrap().exit_status()
    }

    #[test]
    fn a_call_gets_the_errno_or_goes_on_and_the_last_user_ends_the_listener() {
        let (pidfd, listener) = child(|| {
            let refused = system_call(libc::SYS_getppid).map_err(|e| e.raw_os_error());
            let zero = system_call(libc::SYS_getppid).map_err(|e| e.raw_os_error());
            let real = system_call(libc::SYS_getppid).is_ok_and(|parent| parent > 0);
            i32::from(refused != Err(Some(libc::EXDEV)) || zero != Ok(0) || !real)
        });
        for answer in 0..3 {
            assert_eq!(events(listener.as_fd(), 10), PollFlags::IN);
            let call = receive(listener.as_fd()).unwrap().expect("a call");
            assert_eq!(call.data.number, libc::SYS_getppid as u32);
            assert!(waits(listener.as_fd(), call.id) && !waits(listener.as_fd(), call.id + 1));
            match answer {
                0 => refuse(listener.as_fd(), call.id, libc::EXDEV as u16).unwrap(),
                1 => refuse(listener.as_fd(), call.id, 0).unwrap(),
                _ => go_on(listener.as_fd(), call.id).unwrap(),
            }
        }
        assert_eq!(events(listener.as_fd(), 10), PollFlags::HUP);
        assert_eq!(status(&pidfd), Some(0));
    }

    #[test]
    fn a_call_gets_a_descriptor_or_the_error_of_its_table() {
        let (pidfd, listener) = child(|| {
            let Ok(given) = system_call(libc::SYS_getppid) else { return 1 };
            let names = rustix::fs::readlink(format!("/proc/self/fd/{given}"), Vec::new());
            let is_null = names.is_ok_and(|name| name.as_bytes() == b"/dev/null");
            let none =
                crate::sys::process::Rlimit { resource: libc::RLIMIT_NOFILE, soft: 0, hard: 0 };
            if crate::sys::process::set_rlimit(none).is_err() {
                return 2;
            }
            let refused = system_call(libc::SYS_getppid).map_err(|e| e.raw_os_error());
            i32::from(!is_null || refused != Err(Some(libc::EMFILE)))
        });
        let null = std::fs::File::open("/dev/null").unwrap();
        for answer in 0..2 {
            assert_eq!(events(listener.as_fd(), 10), PollFlags::IN);
            let call = receive(listener.as_fd()).unwrap().expect("a call");
            let given = give(listener.as_fd(), call.id, null.as_fd(), true);
            if answer == 1 {
                let errno = given.unwrap_err().raw_os_error().unwrap();
                refuse(listener.as_fd(), call.id, errno as u16).unwrap();
            }
        }
        assert_eq!(status(&pidfd), Some(0));
    }

    /// boot's loop receives whenever the listener is readable, and must never wait there.
    #[test]
    fn a_caller_that_dies_leaves_a_receive_that_does_not_block() {
        for _ in 0..20 {
            let (pidfd, listener) = child(|| system_call(libc::SYS_getppid).is_ok().into());
            assert_eq!(events(listener.as_fd(), 10), PollFlags::IN);
            rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
            status(&pidfd);
            let received = interrupt_after(Duration::from_secs(5), || {
                let begun = std::time::Instant::now();
                let received = receive(listener.as_fd());
                assert!(begun.elapsed() < Duration::from_secs(4), "it blocks");
                received
            });
            assert!(matches!(received, Ok(Ok(None))), "{received:?}");
            assert_eq!(events(listener.as_fd(), 10), PollFlags::HUP);
        }
    }
}
