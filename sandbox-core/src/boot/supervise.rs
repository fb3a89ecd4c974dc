//! Answers the system calls about which boot is asked: seccomp_unotify(2).
//!
//! boot is the only one that receives from a listener. It answers what would have happened
//! without it: the errno of the container's own program, or, where that allows the call, that
//! the kernel goes on by itself; but for raw sockets (`raw_sockets.rs`), and for what views say
//! (`view_calls.rs`). So no answer depends on the memory of the caller, which may
//! change at any time. One call of one container is answered between two turns of boot's loop,
//! and so many in a second: others wait, so that neither boot's loop nor a CPU is a container's.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::Boot;
use super::listener::Listener;
use super::refusals::{Outcome, Refusal, Rule};
use super::view_calls::{self, Reply};
use super::view_writer::Writer;
use crate::container::filter::Verdict;
use crate::container::join_info::JoinInfo;
use crate::container::view_call::ViewCall;
use crate::control::message::RawSocket;
use crate::error::{Context, Result};
use crate::spec::plan::Watch;
use crate::sys::seccomp_listener::{self, Call, Data, waits};
use crate::types::{PodPid, ProcessId};
use crate::views::files::sysinfo;
use crate::views::fuse::Unanswered;

/// The first token of these events.
pub(super) const FIRST: u64 = 1 << 62;

/// The number of calls that are answered at once, and per second in the long run, for each
/// container.
const AT_ONCE: u32 = 250;
const A_SECOND: u32 = 100;

/// The time for which a call waits for what the container's views are made from.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// The same for raw sockets, with a process of boot's for each.
const SOCKETS_AT_ONCE: u32 = 32;
const SOCKETS_A_SECOND: u32 = 32;

/// `CAP_NET_RAW`
const NET_RAW: u8 = 13;

/// The time after which the calls of a container that has had its share are looked at again.
const PAUSE: Duration = Duration::from_millis(50);

/// The containers with processes about whose calls boot is asked.
#[derive(Default)]
pub(super) struct Supervised {
    /// By their token in the event loop.
    pub(super) containers: HashMap<u64, Container>,
    /// The number of containers that there ever were.
    ever: u64,
    /// The raw sockets that the shim was asked for, by their number.
    pub(super) asked: HashMap<u64, Asked>,
    pub(super) ever_asked: u64,
    /// The children that hand raw sockets in, with the token of the container.
    pub(super) givers: HashMap<PodPid, u64>,
    /// The child that writes into callers' memory, once there was an answer.
    pub(super) writer: Option<Writer>,
    /// The containers that have had their share, and when they are looked at again.
    paused: Vec<u64>,
    resume: Option<Instant>,
}

/// A raw socket that a process waits for.
pub(super) struct Wanted {
    pub(super) listener: Rc<Listener>,
    /// The number of the call.
    pub(super) id: u64,
    pub(super) socket: RawSocket,
    pub(super) close_on_exec: bool,
}

/// The same, once the shim was asked for it.
pub(super) struct Asked {
    /// That of the container.
    pub(super) token: u64,
    pub(super) wanted: Wanted,
}

/// A container with the listeners of its processes.
pub(super) struct Container {
    join_info: Rc<JoinInfo>,
    /// Watches the listeners.
    epoll: OwnedFd,
    listeners: HashMap<u64, Rc<Listener>>,
    /// The number of listeners that it ever had.
    ever: u64,
    share: Share,
    pub(super) sockets: Share,
    /// The raw sockets that are on their way.
    pub(super) at_work: u32,
    views: Share,
    kept: view_calls::Kept,
    /// Until when views answer none of its calls.
    banned: Option<Instant>,
    /// One for which the container has no share yet. Its other calls wait as well.
    held_back: Option<HeldBack>,
}

/// What waits until its container has a share again.
enum HeldBack {
    Socket(Wanted),
    Call(Received),
}

/// What a container's views reply to a call.
enum Looked {
    At(Reply),
    /// What they are made from is on its way.
    Later,
    /// Nothing else than the kernel.
    Kernels,
}

/// A call that was received and not answered yet.
struct Received {
    listener: Rc<Listener>,
    call: Call,
    since: Instant,
}

impl Supervised {
    /// Leaves a container's calls to the kernel for a time.
    pub(super) fn ban(&mut self, container: &Rc<JoinInfo>, time: Duration) {
        let mut known = self.containers.values_mut();
        if let Some(known) = known.find(|known| Rc::ptr_eq(&known.join_info, container)) {
            known.banned = Some(Instant::now() + time);
        }
    }

    /// Takes note that a raw socket was handed in or refused.
    pub(super) fn finished(&mut self, token: u64) {
        if let Some(container) = self.containers.get_mut(&token) {
            container.at_work = container.at_work.saturating_sub(1);
        }
    }
}

impl Boot {
    /// Answers the calls of a process, by the listener of its program, as long as a process is
    /// bound by that.
    pub(super) fn supervise(&mut self, process: &ProcessId, fd: OwnedFd) -> Result<()> {
        let container = Rc::clone(&self.containers.get(&process.container)?.join_info);
        let Supervised { containers, ever, .. } = &mut self.supervised;
        let mut known = containers.iter();
        let token = known.find_map(|(t, c)| Rc::ptr_eq(&c.join_info, &container).then_some(*t));
        let token = match token {
            Some(token) => token,
            None => {
                let epoll = epoll::create(epoll::CreateFlags::CLOEXEC);
                let new = Container {
                    join_info: Rc::clone(&container),
                    epoll: epoll.context(|| "epoll_create for seccomp listeners")?,
                    listeners: HashMap::new(),
                    ever: 0,
                    share: Share::new(AT_ONCE, A_SECOND),
                    sockets: Share::new(SOCKETS_AT_ONCE, SOCKETS_A_SECOND),
                    at_work: 0,
                    views: Share::new(view_calls::ANSWERS_AT_ONCE, view_calls::ANSWERS_A_SECOND),
                    kept: view_calls::Kept::default(),
                    banned: None,
                    held_back: None,
                };
                let token = FIRST + *ever;
                *ever += 1;
                self.events.watch(&new.epoll, token)?;
                containers.insert(token, new);
                token
            }
        };
        let Some(known) = containers.get_mut(&token) else { return Ok(()) };
        let number = known.ever;
        known.ever += 1;
        let data = epoll::EventData::new_u64(number);
        epoll::add(&known.epoll, &fd, data, epoll::EventFlags::IN)
            .context(|| "watch a seccomp listener")?;
        if container.filter.has_views() {
            // Linux before 6.6 takes a few microseconds more for each call.
            let _ = seccomp_listener::wake_on_the_same_cpu(fd.as_fd());
        }
        let process = process.clone();
        known.listeners.insert(number, Rc::new(Listener { fd, process, container }));
        Ok(())
    }

    /// Answers one call of a container, if there is one, or forgets a listener whose program
    /// binds no process any more.
    pub(super) fn answer_one(&mut self, token: u64) {
        let Some(container) = self.supervised.containers.get_mut(&token) else { return };
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(1);
        let _ =
            epoll::wait(&container.epoll, spare_capacity(&mut ready), Some(&Timespec::default()));
        let Some(event) = ready.first() else { return };
        let (number, flags) = (event.data.u64(), event.flags);
        let Some(listener) = container.listeners.get(&number).map(Rc::clone) else { return };
        if !flags.contains(epoll::EventFlags::IN) {
            return self.forget_listener(token, number);
        }
        match seccomp_listener::receive(listener.fd.as_fd()) {
            Ok(Some(call)) => {
                self.admit(token, Received { listener, call, since: Instant::now() });
            }
            Ok(None) => {}
            Err(error) => {
                log::error!("{}: receive a system call: {error}", listener.process);
                self.forget_listener(token, number);
            }
        }
    }

    /// Answers a call, or holds it back until the container has a share for it, or boot what its
    /// views are made from. Returns whether it is answered.
    fn admit(&mut self, token: u64, received: Received) -> bool {
        let Received { listener, call, since } = &received;
        let filter = &listener.container.filter;
        let view = ViewCall::of(&call.data).filter(|_| filter.has_views());
        let Some(container) = self.supervised.containers.get_mut(&token) else { return false };
        let has_share = match view {
            Some(view) => container.views.take(view_calls::cost(view, call)),
            None => container.share.take(1),
        };
        if !has_share {
            self.hold_back(token, HeldBack::Call(received));
            return false;
        }
        if let Some(view) = view
            && filter.verdict(&call.data) == Verdict::Allow
        {
            let answered = match self.reply_of_views(token, listener, view, call) {
                Looked::At(reply) if self.write_reply(listener, call, &reply) => true,
                Looked::At(_) | Looked::Later if since.elapsed() < LONGEST_LOOK => false,
                Looked::At(_) | Looked::Later | Looked::Kernels => {
                    // It fails only if the caller is gone.
                    let _ = seccomp_listener::go_on(listener.fd.as_fd(), call.id);
                    true
                }
            };
            if !answered {
                self.hold_back(token, HeldBack::Call(received));
            }
            return answered;
        }
        self.answer(token, listener, call);
        true
    }

    /// Returns what a container's views reply to a call.
    fn reply_of_views(
        &mut self,
        token: u64,
        listener: &Listener,
        view: ViewCall,
        call: &Call,
    ) -> Looked {
        let now = Instant::now();
        let Some(container) = self.supervised.containers.get_mut(&token) else {
            return Looked::Kernels;
        };
        if container.banned.is_some_and(|until| now < until) {
            return Looked::Kernels;
        }
        if view == ViewCall::Affinity
            && let Some(cpus) = container.kept.cpus(now)
        {
            return view_calls::affinity(call, cpus).map_or(Looked::Kernels, Looked::At);
        }
        let kept = &mut container.kept;
        let looked = self.views.look(&listener.container.id, |sources, host, own| match view {
            ViewCall::Affinity => {
                let cpus = sources.cpus(host)?;
                Ok(view_calls::affinity(call, kept.keep(now, cpus)))
            }
            ViewCall::SystemInfo if sources.has_memory_limit(host)? => {
                let info = sysinfo(sources, host, own)?;
                Ok(Some(view_calls::system_info(call, &info)))
            }
            ViewCall::SystemInfo => Ok(None),
        });
        match looked {
            Ok(reply) => reply.map_or(Looked::Kernels, Looked::At),
            Err(Unanswered::Wait) => {
                self.ask_for_sources();
                Looked::Later
            }
            Err(Unanswered::Errno(error)) => {
                log::debug!("{}: what its views say: {error}", listener.process);
                Looked::Kernels
            }
        }
    }

    /// Looks again at the calls of a container that wait for what its views are made from.
    pub(super) fn answer_waiting(&mut self, container: &str) {
        let Supervised { containers, paused, .. } = &mut self.supervised;
        let waits = |known: &Container| {
            known.join_info.id == container && matches!(known.held_back, Some(HeldBack::Call(_)))
        };
        let of_it = |token: &u64| containers.get(token).is_some_and(waits);
        let tokens: Vec<u64> = paused.iter().copied().filter(of_it).collect();
        paused.retain(|token| !tokens.contains(token));
        for token in tokens {
            self.resume_one(token);
        }
    }

    /// Forgets what was kept of a container's limits, which have changed.
    pub(super) fn limits_changed(&mut self, container: &str) {
        let known = self.supervised.containers.values_mut();
        known.filter(|known| known.join_info.id == container).for_each(|known| {
            known.kept.forget_cpus();
        });
    }

    /// Answers one call as the container's program and the kernel would.
    fn answer(&mut self, token: u64, listener: &Rc<Listener>, call: &Call) {
        let filter = &listener.container.filter;
        let Some(watch) = &filter.watch else { return };
        let (verdict, entry) = (filter.verdict(&call.data), watch.entry_of(&call.data));
        let of_socket = entry.filter(|entry| {
            watch.raw_sockets && verdict == Verdict::Allow && entry.capability == Some(NET_RAW)
        });
        if of_socket.is_some() && self.wants_socket(token, listener, call) {
            return;
        }
        let refusal = match (verdict, entry) {
            _ if !watch.refusals => None,
            (Verdict::Errno(errno), _) => {
                let by = rule(watch, filter.of_profile, &call.data);
                Some((Outcome::Errno(errno), by))
            }
            (Verdict::Allow, Some(entry)) => {
                let by = entry.capability.map_or(Rule::Baseline, Rule::Capability);
                Some((Outcome::KernelDecides, by))
            }
            _ => None,
        };
        if let Some((outcome, by)) = refusal {
            self.note(&Refusal { process: &listener.process, call, outcome, by });
        }
        let fd = listener.fd.as_fd();
        // It fails only if the caller is gone.
        let _ = match verdict {
            Verdict::Allow => seccomp_listener::go_on(fd, call.id),
            Verdict::Errno(errno) => seccomp_listener::refuse(fd, call.id, errno),
            Verdict::Other => {
                log::debug!("{}: asked about {:?}", listener.process, call.data);
                seccomp_listener::refuse(fd, call.id, libc::EPERM as u16)
            }
        };
    }

    fn forget_listener(&mut self, token: u64, number: u64) {
        let Supervised { containers, paused, .. } = &mut self.supervised;
        let Some(container) = containers.get_mut(&token) else { return };
        if let Some(listener) = container.listeners.remove(&number) {
            // A newborn has a copy until it executes its program, so that closing it is not enough.
            let _ = epoll::delete(&container.epoll, &listener.fd);
        }
        if container.listeners.is_empty() {
            self.events.forget(&container.epoll);
            containers.remove(&token);
            paused.retain(|one| *one != token);
        }
    }

    /// Lets a raw socket wait until the container has a share again.
    pub(super) fn hold_socket_back(&mut self, token: u64, wanted: Wanted) {
        self.hold_back(token, HeldBack::Socket(wanted));
    }

    fn hold_back(&mut self, token: u64, held_back: HeldBack) {
        if let Some(container) = self.supervised.containers.get_mut(&token) {
            container.held_back = Some(held_back);
            self.pause_supervising(token);
        }
    }

    fn pause_supervising(&mut self, token: u64) {
        let Some(container) = self.supervised.containers.get(&token) else { return };
        self.events.forget(&container.epoll);
        self.supervised.paused.push(token);
        self.supervised.resume.get_or_insert_with(|| Instant::now() + PAUSE);
    }

    /// Looks at the containers again that had their share, once it is time. Returns the time
    /// until then, if there are any.
    pub(super) fn resume_supervising(&mut self) -> Option<Duration> {
        let resume = self.supervised.resume?;
        let left = resume.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        self.supervised.resume = None;
        for token in std::mem::take(&mut self.supervised.paused) {
            self.resume_one(token);
        }
        if self.check_writer() {
            self.look_after_writer();
        }
        self.supervised.resume.map(|_| PAUSE)
    }

    /// Sees to it that boot looks at its writer before long.
    pub(super) fn look_after_writer(&mut self) {
        self.supervised.resume.get_or_insert_with(|| Instant::now() + PAUSE);
    }

    /// Takes calls of a container again, once that which was held back is on its way.
    fn resume_one(&mut self, token: u64) {
        let container = self.supervised.containers.get_mut(&token);
        match container.and_then(|container| container.held_back.take()) {
            Some(HeldBack::Socket(wanted)) if waits(wanted.listener.fd.as_fd(), wanted.id) => {
                if let Some(wanted) = self.ask_for_socket(token, wanted) {
                    return self.hold_socket_back(token, wanted);
                }
            }
            Some(HeldBack::Call(received))
                if waits(received.listener.fd.as_fd(), received.call.id) =>
            {
                self.admit(token, received);
            }
            _ => {}
        }
        let container = self.supervised.containers.get(&token);
        if let Some(container) = container.filter(|container| container.held_back.is_none())
            && let Err(error) = self.events.watch(&container.epoll, token)
        {
            log::error!("container {}: {error}", container.join_info.id);
        }
    }
}

/// Returns what refuses a call.
fn rule(watch: &Watch, of_profile: bool, data: &Data) -> Rule {
    let by_baseline = matches!(Verdict::of(&watch.baseline, data), Verdict::Errno(_));
    if by_baseline || !of_profile { Rule::Baseline } else { Rule::Profile }
}

/// What is left of a container's share.
pub(super) struct Share {
    left: u32,
    since: Instant,
    at_once: u32,
    a_second: u32,
}

impl Share {
    fn new(at_once: u32, a_second: u32) -> Self {
        Self { left: at_once, since: Instant::now(), at_once, a_second }
    }

    /// Takes so many calls, if one is left.
    pub(super) fn take(&mut self, calls: u32) -> bool {
        if self.left == 0 {
            self.refill(Instant::now());
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(calls);
        some
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        let back = (passed * f64::from(self.a_second)).min(self.at_once.into());
        if back >= 1.0 {
            self.left = back as u32;
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_used_up_and_comes_back() {
        let mut share = Share::new(AT_ONCE, A_SECOND);
        assert!((0..AT_ONCE).all(|_| share.take(1)));
        assert!(!share.take(1));
        let begun = share.since;
        share.refill(begun);
        assert_eq!(share.left, 0);
        share.refill(begun + Duration::from_millis(50));
        assert_eq!(share.left, 5);
        share.left = 0;
        share.refill(begun + Duration::from_secs(1000));
        assert_eq!(share.left, AT_ONCE);
    }
}
