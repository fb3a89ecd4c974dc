//! Opens raw sockets for containers that are granted CAP_NET_RAW in a network of the host's,
//! where that has no power. `boot/raw_sockets.rs` asks, and hands them in.

use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Uid, fchown};

use super::Visit;
use crate::control::message::RawSocket;
use crate::sys::network::open_socket;

/// The most raw sockets of one network: those of the pod, however it came by them. The kernel
/// accounts their memory to who opens them, which is the shim.
const MOST: usize = 1024;

/// The time between two counts, which take some milliseconds in a full network.
const PAUSE: Duration = Duration::from_secs(1);

/// The files in which the kernel lists raw sockets, with a line for each below a heading.
const LISTS: [&str; 3] = ["packet", "raw", "raw6"];

/// Opens raw sockets in one network.
#[derive(Debug, Default)]
pub struct RawSockets {
    /// The most that there can be now.
    at_most: usize,
    /// When they were counted. A network that is full is counted again after a while.
    counted: Option<Instant>,
    /// Families that the kernel lacks. It looks for a module each time.
    missing: Vec<i32>,
}

impl RawSockets {
    /// Opens a socket in the network of a process, given by its pidfd, for a user of the host.
    ///
    /// # Errors
    /// `EPERM` in the caller's own network; `ENOBUFS` if there are too many.
    pub fn open(
        &mut self,
        process: BorrowedFd<'_>,
        user: (u32, u32),
        socket: RawSocket,
    ) -> io::Result<OwnedFd> {
        let [family, kind, protocol] = socket.arguments();
        if self.missing.contains(&family) {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        }
        let visit = Visit::to(process)?;
        let here = fs::metadata("/proc/thread-self/ns/net").map(identity)?;
        if identity(File::from(visit.home.try_clone()?).metadata()?) == here {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        if self.at_most >= MOST && self.counted.is_none_or(|then| then.elapsed() >= PAUSE) {
            self.at_most = count()?;
            self.counted = Some(Instant::now());
        }
        if self.at_most >= MOST {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        let opened = open_socket(family, kind, protocol);
        match &opened {
            Ok(_) => self.at_most += 1,
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => self.missing.push(family),
            Err(_) => {}
        }
        let opened = opened?;
        let (uid, gid) = (Uid::from_raw(user.0), Gid::from_raw(user.1));
        fchown(&opened, Some(uid), Some(gid))?;
        Ok(opened)
    }
}

/// Counts the raw sockets of the network that this thread is in.
fn count() -> io::Result<usize> {
    let mut count = 0;
    for list in LISTS {
        let lines = match File::open(format!("/proc/thread-self/net/{list}")) {
            Ok(file) => BufReader::new(file).lines().take(MOST + 1).count(),
            // The kernel lacks the family.
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(e),
        };
        count += lines.saturating_sub(1);
    }
    Ok(count)
}

fn identity(namespace: Metadata) -> (u64, u64) {
    (namespace.dev(), namespace.ino())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;
    use std::os::fd::AsFd;

    use nix::sched::CloneFlags;
    use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

    use super::*;
    use crate::control::message::RawFamily;
    use crate::sys::child::KillOnDrop;
    use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
    use crate::sys::process::{exit_now, rlimit_of, set_rlimit};

    const ICMP: RawSocket =
        RawSocket { family: RawFamily::Ipv4(NonZeroU8::MIN), nonblocking: false };

    /// Returns a process in a network of its own, which belongs to the host.
    fn another_network() -> (KillOnDrop, OwnedFd) {
        let alone = SingleThreaded::in_a_test();
        match clone_into(&alone, CloneFlags::CLONE_NEWNET, None).unwrap() {
            Cloned::Child => {
                std::thread::sleep(std::time::Duration::from_secs(100));
                exit_now(0)
            }
            Cloned::Parent { pidfd, .. } => {
                let copy = pidfd.try_clone().unwrap();
                (KillOnDrop::new(pidfd), copy)
            }
        }
    }

    #[test]
    fn no_socket_is_opened_in_the_network_of_the_shim() {
        let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let mut sockets = RawSockets::default();
        let refused = sockets.open(own.as_fd(), (1000, 1000), ICMP).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        let init = pidfd_open(Pid::INIT, PidfdFlags::empty()).unwrap();
        assert!(sockets.open(init.as_fd(), (1000, 1000), ICMP).is_err());
        let (_process, there) = another_network();
        let opened = sockets.open(there.as_fd(), (1000, 1001), ICMP).unwrap();
        let owner = rustix::fs::fstat(&opened).unwrap();
        assert_eq!((owner.st_uid, owner.st_gid), (1000, 1001));
    }

    #[test]
    fn a_network_has_so_many_raw_sockets() {
        let limit = rlimit_of(0, libc::RLIMIT_NOFILE).unwrap();
        set_rlimit(crate::sys::process::Rlimit { soft: limit.hard, ..limit }).unwrap();
        let (_process, there) = another_network();
        let mut sockets = RawSockets::default();
        let mut open = || sockets.open(there.as_fd(), (0, 0), ICMP);
        let mut opened: Vec<_> = (0..MOST).map(|_| open().unwrap()).collect();
        assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
        // What is closed makes room.
        opened.truncate(MOST - 3);
        std::thread::sleep(PAUSE);
        opened.extend((0..3).map(|_| open().unwrap()));
        assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
    }
}
