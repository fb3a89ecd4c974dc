//! Closes descriptors in a child, so that nobody waits for it.
//!
//! The last close of some descriptors takes the kernel long: that of a mount namespace or of a
//! detached mount waits until all CPUs have passed a point (a grace period of RCU: 10 to 28 ms
//! on 16 CPUs), and until the file systems have written what they hold.
//!
//! ```text
//! let_go, let_go_later ──▶ what waits ──close_some──▶ a message in the queue ──▶ the child
//! ```
//! The child shares this process's memory, but has a table of descriptors of its own: that of
//! this process ends with it, however long the child takes. So the descriptors travel in a
//! message. One child runs at a time and takes as many as a message holds. The kernel's queue
//! of late closes (`delayed_fput`), which serves the whole host and which a container can hold
//! up, is not used.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::check;

/// The most descriptors of one message (`SCM_MAX_FD`, unix(7)).
const MAX: usize = 253;

/// What may wait for others before it is due by itself.
const MAX_LATER: usize = 64;

/// The size of a child's stack. A debug build's takes less than a quarter of this.
const STACK: usize = 32 * 1024;

static CLOSER: OnceLock<Closer> = OnceLock::new();

/// What is let go by this process.
struct Closer {
    /// The child receives from here. A low number: the child copies the lower ones of this
    /// process's descriptors.
    queue: OwnedFd,
    sender: OwnedFd,
    due: OwnedFd,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    descriptors: VecDeque<OwnedFd>,
    /// The number of descriptors that were ever let go.
    ever: u64,
    /// The number of those that are closed.
    closed: u64,
}

impl Closer {
    fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (queue, sender) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let due = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { queue, sender, due, waiting: Mutex::default() })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, descriptors: impl IntoIterator<Item = OwnedFd>, due_from: usize) {
        let mut waiting = self.waiting();
        let before = waiting.descriptors.len();
        waiting.descriptors.extend(descriptors);
        let all = waiting.descriptors.len();
        waiting.ever += (all - before) as u64;
        if all > before && all >= due_from {
            // Fails only if it is readable already, by far.
            let _ = rustix::io::write(&self.due, &1u64.to_ne_bytes());
        }
    }
}

/// Begins to collect what is let go, for [`close_some`]. To be called early: of the descriptors
/// with a higher number than those that this opens, no child has a copy for a moment.
pub fn prepare() -> io::Result<()> {
    let _ = CLOSER.set(Closer::new()?);
    Ok(())
}

/// Lets the descriptors be closed soon, by a child. Without [`prepare`], closes them, and waits.
pub fn let_go(descriptors: impl IntoIterator<Item = OwnedFd>) {
    match CLOSER.get() {
        Some(closer) => closer.add(descriptors, 1),
        None => descriptors.into_iter().for_each(drop),
    }
}

/// Lets the descriptors be closed together with the next that are let go: nothing depends on
/// when.
pub fn let_go_later(descriptors: impl IntoIterator<Item = OwnedFd>) {
    match CLOSER.get() {
        Some(closer) => closer.add(descriptors, MAX_LATER),
        None => descriptors.into_iter().for_each(drop),
    }
}

/// Returns a descriptor that is readable once something is to be closed; `None` without
/// [`prepare`].
pub fn due() -> Option<BorrowedFd<'static>> {
    CLOSER.get().map(|closer| closer.due.as_fd())
}

/// Returns how many descriptors were ever let go. The first of them are closed first.
pub fn ever_let_go() -> u64 {
    CLOSER.get().map_or(0, |closer| closer.waiting().ever)
}

/// Returns how many of the descriptors that were let go are closed.
pub fn ever_closed() -> u64 {
    CLOSER.get().map_or(0, |closer| closer.waiting().closed)
}

/// Starts a child that closes some of what was let go, the first first. `None` if there is
/// nothing.
///
/// # Errors
/// There could be no child. The descriptors were closed here.
pub fn close_some() -> io::Result<Option<Closing>> {
    let Some(closer) = CLOSER.get() else { return Ok(None) };
    let _ = rustix::io::read(&closer.due, &mut [0; 8]);
    let some: Vec<OwnedFd> = {
        let mut waiting = closer.waiting();
        let count = waiting.descriptors.len().min(MAX);
        waiting.descriptors.drain(..count).collect()
    };
    if some.is_empty() {
        return Ok(None);
    }
    let count = some.len() as u64;
    let child = send(&closer.sender, &some).and_then(|()| {
        // None of these is the last: the message has them.
        drop(some);
        Child::start(closer.queue.as_fd())
    });
    child.map(|child| Some(Closing { child, count })).inspect_err(|_| {
        drop(receive(closer.queue.as_fd(), &mut space()));
        closer.waiting().closed += count;
    })
}

/// Starts children for all that is left, and does not wait for them: this process ends.
pub fn close_rest() {
    while let Ok(Some(closing)) = close_some() {
        // The stack is the child's until it ends.
        let _ = ManuallyDrop::new(closing);
    }
}

/// A child that closes descriptors.
#[derive(Debug)]
pub struct Closing {
    child: Child,
    count: u64,
}

impl AsFd for Closing {
    /// Returns a descriptor that is readable once the child has closed them all.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }
}

impl Closing {
    /// Collects the child, and waits for it. Returns how many descriptors it has closed.
    pub fn finish(self) -> u64 {
        drop(self.child);
        if let Some(closer) = CLOSER.get() {
            // Only if the child was killed before it could receive them.
            drop(receive(closer.queue.as_fd(), &mut space()));
            closer.waiting().closed += self.count;
        }
        self.count
    }
}

/// A child of its own stack, in this process's memory.
#[derive(Debug)]
struct Child {
    pidfd: OwnedFd,
    /// Its alignment is that of a stack.
    _stack: Box<[MaybeUninit<u128>]>,
}

impl Drop for Child {
    /// Waits for its end: until then the stack is its own.
    fn drop(&mut self) {
        let id = || WaitId::PidFd(self.pidfd.as_fd());
        while let Err(Errno::INTR) = waitid(id(), WaitIdOptions::EXITED) {}
    }
}

impl Child {
    fn start(queue: BorrowedFd<'_>) -> io::Result<Self> {
        let mut stack = Box::new_uninit_slice(STACK / size_of::<u128>());
        let mut pidfd: RawFd = -1;
        let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD;
        let signals = AllBlocked::begin()?;
        // SAFETY: `close_received` uses its argument, which is a number, and its stack, which
        // grows down from its end and which `Child` keeps until the child has ended. It neither
        // allocates nor takes a lock nor touches what belongs to this thread, such as errno.
        // No handler runs in it, since all signals are blocked.
        let pid = unsafe {
            libc::clone(
                close_received,
                stack.as_mut_ptr_range().end.cast(),
                flags,
                queue.as_raw_fd() as usize as *mut libc::c_void,
                &raw mut pidfd,
            )
        };
        let pid = check(pid);
        drop(signals);
        pid?;
        // SAFETY: the kernel stored a new descriptor there that nothing else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Self { pidfd, _stack: stack })
    }
}

/// The child: receives the descriptors, and ends, which closes them.
extern "C" fn close_received(queue: *mut libc::c_void) -> libc::c_int {
    let queue = queue as usize as RawFd;
    // First a table of its own, without what this process has opened after the queue: some of
    // that comes from boot, and to close even a copy of it could block for ever.
    if close_range(queue.wrapping_add(1), RawFd::MAX, CLOSE_RANGE_UNSHARE) < 0 {
        return 1;
    }
    // The log's other end waits for its last writer.
    if queue > 0 {
        close_range(0, queue.wrapping_sub(1), 0);
    }
    let mut space = space();
    // SAFETY: the child's table has it, as this process's had when the child was made.
    let received = receive(unsafe { BorrowedFd::borrow_raw(queue) }, &mut space);
    // A failed close would set this process's errno.
    std::mem::forget(received);
    0
}

/// Sends the descriptors in one message.
fn send(sender: &OwnedFd, descriptors: &[OwnedFd]) -> io::Result<()> {
    let all: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = space();
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&all));
    sendmsg(sender, &[IoSlice::new(b"-")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a message, if there is one. Dropping the result closes its descriptors.
fn receive<'a>(queue: BorrowedFd<'_>, space: &'a mut Space) -> RecvAncillaryBuffer<'a> {
    let mut ancillary = RecvAncillaryBuffer::new(space);
    let (mut byte, flags) = ([0], RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC);
    let _ = recvmsg(queue, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags);
    ancillary
}

/// The space for the descriptors of a message.
type Space = [MaybeUninit<u8>; rustix::cmsg_space!(ScmRights(MAX))];

fn space() -> Space {
    [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))]
}

/// Calls close_range(2) without the C library, which would write to this process's errno.
fn close_range(first: RawFd, last: RawFd, flags: u32) -> isize {
    let result: isize;
    // SAFETY: integer arguments. The callers own all descriptors that they close.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_close_range as isize => result,
            in("rdi") first as isize,
            in("rsi") last as isize,
            in("rdx") flags as usize,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") libc::SYS_close_range as usize,
            inlateout("x0") first as isize => result,
            in("x1") last as isize,
            in("x2") flags as usize,
            options(nostack),
        );
    }
    result
}

const CLOSE_RANGE_UNSHARE: u32 = 1 << 1;

/// A time in which no signal is delivered to this thread.
struct AllBlocked(SigSet);

impl AllBlocked {
    fn begin() -> io::Result<Self> {
        Ok(Self(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?))
    }
}

impl Drop for AllBlocked {
    fn drop(&mut self) {
        // Cannot fail with a mask that was in force.
        let _ = self.0.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each test is a process of its own, by nextest; under `cargo test` they share the closer.
    static ALONE: Mutex<()> = Mutex::new(());

    fn begin() -> MutexGuard<'static, ()> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = prepare();
        alone
    }

    fn pipes(count: usize) -> (Vec<OwnedFd>, Vec<OwnedFd>) {
        (0..count)
            .map(|_| rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap())
            .unzip()
    }

    fn is_closed(reader: &OwnedFd) -> bool {
        rustix::io::ioctl_fionbio(reader, true).unwrap();
        rustix::io::read(reader, &mut [0]) == Ok(0)
    }

    #[test]
    fn a_child_closes_what_is_let_go_the_first_first() {
        let _alone = begin();
        let (readers, writers) = pipes(300);
        let_go(writers);
        assert!(readers.iter().all(|reader| !is_closed(reader)));
        let first = close_some().unwrap().expect("there is something");
        assert_eq!(first.finish(), MAX as u64);
        let closed = readers.iter().filter(|reader| is_closed(reader)).count();
        assert_eq!(closed, MAX);
        assert!(readers[..MAX].iter().all(is_closed));
        assert_eq!(close_some().unwrap().expect("there is more").finish(), 47);
        assert!(readers.iter().all(is_closed));
        assert!(close_some().unwrap().is_none());
    }

    #[test]
    fn a_child_that_is_killed_leaves_nothing_open() {
        let _alone = begin();
        for _ in 0..50 {
            let (readers, writers) = pipes(2);
            let_go(writers);
            let closing = close_some().unwrap().expect("there is something");
            let kill = rustix::process::Signal::KILL;
            rustix::process::pidfd_send_signal(&closing, kill).unwrap();
            closing.finish();
            assert!(readers.iter().all(is_closed));
        }
        assert_eq!(ever_let_go(), ever_closed());
    }

    #[test]
    fn what_may_wait_goes_with_the_next() {
        let _alone = begin();
        let (readers, mut writers) = pipes(2);
        let next = writers.pop();
        let ready = || {
            let due = due().unwrap();
            let mut due = [rustix::event::PollFd::new(&due, rustix::event::PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut due, Some(&now)) == Ok(1)
        };
        let before = ever_let_go();
        let_go_later(writers);
        assert!(!ready());
        let_go(next);
        assert!(ready());
        assert_eq!(ever_let_go() - before, 2);
        assert_eq!(close_some().unwrap().expect("there is something").finish(), 2);
        assert!(!ready() && readers.iter().all(is_closed));
    }

    #[test]
    fn what_somebody_else_holds_stays_open() {
        let _alone = begin();
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let_go([writer.try_clone().unwrap()]);
        close_some().unwrap().expect("there is something").finish();
        rustix::io::write(&writer, b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0]), Ok(1));
    }
}
