//! A child of boot that writes answers into the memory of callers.
//!
//! ```text
//!   boot: what is the answer? ──▶ the child: is this still the caller's memory? ──▶ writes it,
//!                                                                      and lets the caller go on
//! ```
//! To write there can wait for as long as a container likes: it maps a file of a slow file system
//! there, or one that boot itself serves, which would wait for itself for ever. boot must not
//! wait. So a child does, one for the pod, made at the first answer. If it waits for long, boot
//! ends it, leaves its calls to the kernel, and makes another for the next ones.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use rustix::process::{Signal, pidfd_send_signal};

use super::Boot;
use super::listener::Listener;
use super::view_calls::{self, Kept, Reply};
use crate::control::packet::{Received, pair, receive_packet, send_packet};
use crate::error::{Context, Result};
use crate::sys::clone::{Cloned, clone_into};
use crate::sys::descriptor::close_others;
use crate::sys::process::{die_with_parent, exit_now};
use crate::sys::seccomp_listener::{self, Call, waits};
use crate::types::PodPid;

/// The time after which a writer is taken for stuck.
const LONGEST: Duration = Duration::from_secs(1);

/// The time for which a container whose memory kept a writer waiting is told by the kernel.
pub(super) const BANNED_FOR: Duration = Duration::from_secs(60);

/// The length of what precedes the bytes of a reply.
const HEAD: usize = 24;

/// The most bytes of a reply: a mask of 8192 CPUs.
const MOST: usize = 1024;

/// The child, and what it has to do.
pub(super) struct Writer {
    socket: OwnedFd,
    pidfd: OwnedFd,
    pid: PodPid,
    /// By their thread, which makes one call at a time.
    jobs: HashMap<i32, Job>,
}

/// An answer that the child writes.
struct Job {
    listener: Rc<Listener>,
    id: u64,
    since: Instant,
}

impl Boot {
    /// Has an answer written. Returns whether it is on its way; if not, it can be tried again.
    pub(super) fn write_reply(
        &mut self,
        listener: &Rc<Listener>,
        call: &Call,
        reply: &Reply,
    ) -> bool {
        if self.supervised.writer.is_none() {
            match self.make_writer() {
                Ok(writer) => self.supervised.writer = Some(writer),
                Err(error) => {
                    log::error!("{error}");
                    return false;
                }
            }
        }
        let Some(writer) = &mut self.supervised.writer else { return false };
        let head = [call.thread.to_ne_bytes(), reply.value.to_ne_bytes()];
        let places = [call.id.to_ne_bytes(), reply.address.to_ne_bytes()];
        let mut bytes = head.concat();
        bytes.extend(places.concat());
        bytes.extend(&reply.bytes);
        if send_packet(&writer.socket, &bytes, &[listener.fd.as_fd()]).is_err() {
            return false;
        }
        let job = Job { listener: Rc::clone(listener), id: call.id, since: Instant::now() };
        writer.jobs.insert(call.thread, job);
        self.look_after_writer();
        true
    }

    fn make_writer(&self) -> Result<Writer> {
        let (socket, theirs) =
            pair().context(|| "make a channel to a process that writes answers")?;
        rustix::io::ioctl_fionbio(&socket, true).context(|| "ioctl FIONBIO")?;
        match clone_into(&self.alone, CloneFlags::empty(), None)
            .context(|| "clone a process that writes answers")?
        {
            Cloned::Parent { pid, pidfd } => {
                Ok(Writer { socket, pidfd, pid: PodPid(pid), jobs: HashMap::new() })
            }
            Cloned::Child => {
                if close_others(&[theirs.as_fd()]).is_ok() && die_with_parent().is_ok() {
                    serve(theirs.as_fd());
                }
                exit_now(0)
            }
        }
    }

    /// Ends a writer that waits for too long. Returns whether it has anything to do.
    pub(super) fn check_writer(&mut self) -> bool {
        let Some(writer) = &mut self.supervised.writer else { return false };
        writer.jobs.retain(|_, job| waits(job.listener.fd.as_fd(), job.id));
        let oldest = writer.jobs.values().min_by_key(|job| job.since);
        let Some(oldest) = oldest else { return false };
        if oldest.since.elapsed() < LONGEST {
            return true;
        }
        log::warn!(
            "{}: its memory cannot be written; the kernel tells it",
            oldest.listener.process
        );
        let container = Rc::clone(&oldest.listener.container);
        self.supervised.ban(&container, BANNED_FOR);
        self.let_writer_go();
        false
    }

    /// Takes note of the end of a child.
    pub(super) fn writer_ended(&mut self, child: PodPid) {
        if self.supervised.writer.as_ref().is_some_and(|writer| writer.pid == child) {
            self.let_writer_go();
        }
    }

    /// Ends the writer, and leaves its calls to the kernel.
    fn let_writer_go(&mut self) {
        let Some(writer) = self.supervised.writer.take() else { return };
        // It may be dead already.
        let _ = pidfd_send_signal(&writer.pidfd, Signal::KILL);
        for job in writer.jobs.values() {
            // It fails if it is answered, or its caller gone.
            let _ = seccomp_listener::go_on(job.listener.fd.as_fd(), job.id);
        }
    }
}

/// Writes what boot sends, until boot is gone.
fn serve(socket: BorrowedFd<'_>) {
    let mut kept = Kept::default();
    while let Ok(Received::Packet { bytes, fds, .. }) = receive_packet(socket, HEAD + MOST, 1) {
        let listener = fds.take();
        let (Some(listener), Some((call, reply))) = (listener.first(), decode(&bytes)) else {
            return;
        };
        view_calls::give(listener.as_fd(), call, &reply, &mut kept);
    }
}

/// Returns the thread and the number of a call, and its reply.
fn decode(bytes: &[u8]) -> Option<((i32, u64), Reply)> {
    let (thread, rest) = bytes.split_first_chunk()?;
    let (value, rest) = rest.split_first_chunk()?;
    let (id, rest) = rest.split_first_chunk()?;
    let (address, rest) = rest.split_first_chunk()?;
    let (value, address) = (u32::from_ne_bytes(*value), u64::from_ne_bytes(*address));
    let call = (i32::from_ne_bytes(*thread), u64::from_ne_bytes(*id));
    Some((call, Reply { bytes: rest.to_vec(), address, value }))
}
