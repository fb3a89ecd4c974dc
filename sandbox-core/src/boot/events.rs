//! The event loop: it takes requests, exits, messages of newborns, and the signal by which
//! systemd shuts the node down.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::{Boot, logger, restore, supervise};
use crate::control::encoding::Message;
use crate::control::message::{Done, MAX_DESCRIPTORS, Numbered, Request};
use crate::control::packet::{Arrived, Received, no_room, receive_packet_or_part};
use crate::error::{Context, Result};

/// The largest request: a plan's arguments and environment fit, since execve(2) takes at
/// most 6 MiB of them.
const MAX_REQUEST: usize = 8 << 20;

/// The code of a signal that kill(2) sent (sigaction(2)).
const SI_USER: i32 = 0;

const CONTROL: u64 = u64::MAX;
const SIGNALS: u64 = u64::MAX - 1;
pub(super) const VIEWS: u64 = u64::MAX - 2;

/// The descriptors that boot watches.
pub(super) struct Events {
    epoll: OwnedFd,
    signals: SignalFd,
}

impl Events {
    /// Watches the control channel, and SIGCHLD and SIGTERM.
    pub(super) fn new(control: &OwnedFd) -> Result<Self> {
        let mask = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM]);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None).context(|| "sigprocmask")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags).context(|| "signalfd")?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context(|| "epoll_create")?;
        let events = Self { epoll, signals };
        events.watch(control, CONTROL)?;
        events.watch(&events.signals, SIGNALS)?;
        Ok(events)
    }

    /// Watches one more descriptor.
    pub(super) fn watch(&self, fd: impl AsFd, token: u64) -> Result<()> {
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN).context(|| "epoll_ctl")
    }

    /// Stops watching a descriptor.
    pub(super) fn forget(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Takes the signals that have arrived. Returns whether the node shuts down.
    fn take_signals(&self, host_pids: bool) -> bool {
        let mut terminated = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            terminated |= is_node_shutdown(&signal, host_pids);
        }
        terminated
    }

    /// Waits for events, or until the time is over.
    fn wait(&self, ready: &mut Vec<epoll::Event>, time: Option<Duration>) -> Result<()> {
        ready.clear();
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        match epoll::wait(&self.epoll, spare_capacity(ready), time.as_ref()) {
            Err(rustix::io::Errno::INTR) => Ok(()),
            other => other.map(drop).context(|| "epoll_wait"),
        }
    }
}

/// Whether a signal is SIGTERM from outside the pod, whose processes have no PID in here
/// (signalfd(2), `ssi_pid`). A process inside cannot send such a signal: the kernel fills
/// in its PID, and does not accept another signal with SI_USER from it
/// (rt_sigqueueinfo(2)). The kernel loses the PID if the user has too many pending
/// signals. Only a process that may signal boot and become its user can bring that about.
///
/// With the host's PIDs there is no outside. Root in such a pod is the host's root, which
/// may end boot as it may end any process.
fn is_node_shutdown(signal: &siginfo, host_pids: bool) -> bool {
    let number = signal.ssi_signo.cast_signed();
    let outside = signal.ssi_pid == 0 || host_pids;
    number == Signal::SIGTERM as i32 && signal.ssi_code == SI_USER && outside
}

impl Boot {
    /// Serves until the shim is gone. If systemd stops the cgroup because the node shuts
    /// down, serves until the last container has ended by the same signal. boot's exit
    /// ends the whole pod: the kernel kills all processes in its PID namespace.
    pub(super) fn serve(mut self) -> ExitCode {
        // A child that ended before SIGCHLD was watched: that of `root.rs`.
        self.reap();
        let mut ready = Vec::with_capacity(16);
        let mut terminated = false;
        while !(terminated && self.containers.run_nothing()) {
            let time = self.resume_supervising();
            if let Err(error) = self.events.wait(&mut ready, time) {
                log::error!("{error}");
                return ExitCode::FAILURE;
            }
            for event in &ready {
                match event.data.u64() {
                    CONTROL => match self.take_request() {
                        Ok(true) => {}
                        Ok(false) => return ExitCode::SUCCESS,
                        Err(error) => log::error!("{error}"),
                    },
                    SIGNALS => {
                        terminated |= self.events.take_signals(self.host_pids);
                        self.reap();
                    }
                    VIEWS => self.serve_views(),
                    restore::FIRST..=restore::LAST => self.go_on_restoring(event.data.u64()),
                    supervise::FIRST.. => self.answer_one(event.data.u64()),
                    token => self.receive(token),
                }
                logger::belongs_to(0);
            }
        }
        ExitCode::SUCCESS
    }

    /// Receives one request from the control channel. Returns false once it is closed.
    fn take_request(&mut self) -> Result<bool> {
        let arrived = receive_packet_or_part(&self.control, MAX_REQUEST, MAX_DESCRIPTORS)
            .context(|| "receive a request")?;
        let (bytes, descriptors) = match arrived {
            Arrived::Whole(Received::Packet { bytes, fds, .. }) => (bytes, fds.take()),
            Arrived::Whole(Received::Closed) => return Ok(false),
            Arrived::Whole(Received::WouldBlock) => return Ok(true),
            Arrived::Part { bytes, fds, .. } => {
                drop(fds.take());
                self.refuse(&bytes);
                return Ok(true);
            }
        };
        let Numbered { number, request } = Numbered::decode(&bytes)?;
        logger::belongs_to(number);
        log::debug!("{}", request.name());
        if let Err(error) = self.carry_out(number, request, descriptors) {
            self.reply(number, Err(error));
        }
        self.own_id.close_proc_files()?;
        Ok(true)
    }

    /// Refuses a request whose descriptors boot has no room for. The bytes may be the first of it
    /// only: then it is a Create or an Exec.
    fn refuse(&mut self, bytes: &[u8]) {
        let request = Numbered::decode(bytes).map(|numbered| numbered.request);
        match request {
            Ok(Request::RawSocket { of, .. }) => {
                self.raw_socket(of, Some(libc::ENOBUFS as u16), Vec::new());
            }
            Ok(Request::ViewSources { container, complete, .. }) => {
                if complete {
                    self.resume_views(&container);
                }
            }
            _ => {
                let Some(number) = Numbered::number_of(bytes) else { return };
                let refused = Err(no_room()).context(|| "take the descriptors of a request");
                self.reply(number, refused);
            }
        }
    }

    /// Carries out one request. The caller replies with an error; success replies by itself,
    /// at once or once a process is at its gate or runs.
    fn carry_out(&mut self, number: u64, request: Request, fds: Vec<OwnedFd>) -> Result<()> {
        match request {
            Request::Create { plan, donations, capacity } => {
                log::debug!("{} has {capacity:?}", plan.id);
                self.create(number, *plan, donations, fds, capacity.limited)
            }
            Request::Start { container } => self.start(number, &container),
            Request::Restore { plan, donations, capacity, saved } => {
                log::debug!("{} has {capacity:?}", plan.id);
                self.restore(number, plan, (donations, fds), capacity.limited, &saved)
            }
            Request::Exec { container, exec, process, donations } => {
                self.exec(number, container, exec, &process, donations, fds)
            }
            Request::ListenerHandedOver { of, refused } => {
                self.listener_handed_over(of, refused)?;
                self.reply(number, Ok(Done::Ok));
                Ok(())
            }
            Request::RawSocket { of, refused } => {
                self.raw_socket(of, refused, fds);
                Ok(())
            }
            Request::ViewSources { container, opened, complete } => {
                self.collect_view_sources(&container, opened, fds);
                if complete {
                    self.resume_views(&container);
                }
                Ok(())
            }
            Request::Delete { container } => self.delete(number, &container),
            Request::Update { container, capacity } => {
                self.update(number, container.as_deref(), capacity)
            }
            Request::Kill { process } => self.kill(number, &process),
            Request::SetLogLevel { level } => {
                self.set_log_level(number, level);
                Ok(())
            }
            Request::HeapProfile { every } => self.heap_profile(number, every, fds),
        }
    }
}
