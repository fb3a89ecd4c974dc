//! Has raw sockets made for processes that have CAP_NET_RAW in a network of the host's, where
//! that has no power.
//!
//! ```text
//!   the caller waits ──▶ may it? ──▶ the shim opens the socket ──▶ a child hands it in
//!                          └ no: the kernel decides
//! ```
//! Who may have one is what the kernel would ask as well: a thread in the user namespace and in
//! the network of its container, with CAP_NET_RAW in its effective set. About any other the
//! kernel decides. A thread changes these of its own alone, and this one waits.
//!
//! To hand a descriptor in waits until the caller runs, which a container can put off for ever,
//! and the last close of such a socket waits for the kernel (a grace period of RCU): so a child
//! of boot does both, of which a container has few at a time.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::sched::CloneFlags;

use super::Boot;
use super::listener::Listener;
use super::supervise::{Asked, Wanted};
use super::thread_status::ThreadStatus;
use crate::container::home::Home;
use crate::control::message::{RawSocket, Upward};
use crate::sys::clone::{Cloned, clone_into};
use crate::sys::descriptor::close_others;
use crate::sys::process::exit_now;
use crate::sys::seccomp_listener::{self, Call};
use crate::types::PodPid;

/// The number of raw sockets that a container and that a pod can wait for at a time.
const AT_A_TIME: u32 = 4;
const AT_A_TIME_OF_POD: usize = 32;

/// The bit of CAP_NET_RAW.
const NET_RAW: u64 = 1 << 13;

/// Whether the caller could make raw sockets if the network were the pod's own.
fn may_have(listener: &Listener, call: &Call) -> bool {
    let home = listener.container.home();
    home.is_some()
        && Home::of(PodPid(call.thread)) == home
        && effective(call.thread).is_some_and(|set| set & NET_RAW != 0)
        // All this was about the caller, and not about a later thread of its number.
        && seccomp_listener::waits(listener.fd.as_fd(), call.id)
}

/// Returns a thread's effective capabilities: proc_pid_status(5).
fn effective(thread: i32) -> Option<u64> {
    u64::from_str_radix(ThreadStatus::of(thread)?.field("CapEff")?, 16).ok()
}

impl Boot {
    /// Has a raw socket made, now or once the container has a share again. Returns whether the
    /// caller gets one; if not, the kernel decides.
    pub(super) fn wants_socket(
        &mut self,
        token: u64,
        listener: &Rc<Listener>,
        call: &Call,
    ) -> bool {
        let Some(socket) = RawSocket::of(call.data.arguments) else { return false };
        if !may_have(listener, call) {
            return false;
        }
        let close_on_exec = call.data.arguments[1] as i32 & libc::SOCK_CLOEXEC != 0;
        let listener = Rc::clone(listener);
        let wanted = Wanted { listener, id: call.id, socket, close_on_exec };
        if let Some(wanted) = self.ask_for_socket(token, wanted) {
            self.hold_socket_back(token, wanted);
        }
        true
    }

    /// Asks the shim for a socket. Gives the wish back if the container has had its share.
    pub(super) fn ask_for_socket(&mut self, token: u64, wanted: Wanted) -> Option<Wanted> {
        let supervised = &mut self.supervised;
        let all = supervised.asked.len() + supervised.givers.len();
        let container = supervised.containers.get_mut(&token)?;
        if all >= AT_A_TIME_OF_POD || container.at_work >= AT_A_TIME || !container.sockets.take(1) {
            return Some(wanted);
        }
        container.at_work += 1;
        let of = supervised.ever_asked;
        supervised.ever_asked += 1;
        let container = wanted.listener.process.container.clone();
        let message = Upward::RawSocket { of, container, socket: wanted.socket };
        supervised.asked.insert(of, Asked { token, wanted });
        self.send(&message);
        None
    }

    /// Hands a socket in that the shim has opened, or passes its error on.
    pub(super) fn raw_socket(&mut self, of: u64, refused: Option<u16>, descriptors: Vec<OwnedFd>) {
        let Some(Asked { token, wanted }) = self.supervised.asked.remove(&of) else {
            return log::error!("no process waits for this raw socket");
        };
        let refused = match (refused, descriptors.into_iter().next()) {
            (None, Some(socket)) => match self.give(&wanted, socket) {
                Ok(child) => {
                    self.supervised.givers.insert(child, token);
                    return;
                }
                Err(error) => {
                    log::error!("clone a process that hands a socket in: {error}");
                    libc::EAGAIN as u16
                }
            },
            (errno, _) => errno.unwrap_or(libc::EPERM as u16),
        };
        self.supervised.finished(token);
        // It fails only if the caller is gone.
        let _ = seccomp_listener::refuse(wanted.listener.fd.as_fd(), wanted.id, refused);
    }

    /// Clones a child that hands a socket in, and ends.
    fn give(&self, wanted: &Wanted, socket: OwnedFd) -> std::io::Result<PodPid> {
        let listener = wanted.listener.fd.as_fd();
        match clone_into(&self.alone, CloneFlags::empty(), None)? {
            Cloned::Parent { pid, .. } => Ok(PodPid(pid)),
            Cloned::Child => {
                // It may live long, and must hold nothing else up.
                let closed = close_others(&[listener, socket.as_fd()]);
                let given = closed.and_then(|()| {
                    seccomp_listener::give(
                        listener,
                        wanted.id,
                        socket.as_fd(),
                        wanted.close_on_exec,
                    )
                });
                if let Err(error) = given {
                    let errno = error.raw_os_error().and_then(|errno| errno.try_into().ok());
                    let errno = errno.unwrap_or(libc::EPERM as u16);
                    let _ = seccomp_listener::refuse(listener, wanted.id, errno);
                }
                exit_now(0)
            }
        }
    }

    /// Takes note of the end of a child that has handed a socket in.
    pub(super) fn gave(&mut self, child: PodPid) {
        if let Some(token) = self.supervised.givers.remove(&child) {
            self.supervised.finished(token);
        }
    }
}
