//! The event loop: requests, deaths, words of processes that come up, and the
//! node's word that it shuts down.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;

use super::Boot;
use crate::control::message::{MAX_DESCRIPTORS, Numbered, Request};
use crate::control::packet::{Received, receive_packet};
use crate::error::{Context, Error, Result};

/// A request with its plan in it: two of the kernel's largest argument lists.
const MAX_REQUEST: usize = 8 << 20;

/// Of a signal that kill(2) sent (sigaction(2)).
const SI_USER: i32 = 0;

const CONTROL: u64 = u64::MAX;
const SIGNALS: u64 = u64::MAX - 1;

/// What is listened to.
pub(super) struct Events {
    epoll: OwnedFd,
    signals: SignalFd,
}

impl Events {
    /// Listens to the control channel, and for SIGCHLD and SIGTERM.
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

    /// Listens to one more descriptor.
    pub(super) fn watch(&self, fd: impl AsFd, token: u64) -> Result<()> {
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN).context(|| "epoll_ctl")
    }

    /// Stops listening to one.
    pub(super) fn forget(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Takes what signals came; tells whether the node said that this is the end.
    fn take_signals(&self) -> bool {
        let mut terminated = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            terminated |= is_the_node_s_word(&signal);
        }
        terminated
    }

    fn wait(&self, ready: &mut Vec<epoll::Event>) -> Result<()> {
        ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(ready), None) {
            Err(rustix::io::Errno::INTR) => Ok(()),
            other => other.map(drop).context(|| "epoll_wait"),
        }
    }
}

/// SIGTERM from outside the pod, whose processes have no number in here
/// (signalfd(2), `ssi_pid`). Nobody inside sends such a one: the kernel fills the
/// number in, and takes no other signal with SI_USER from them
/// (rt_sigqueueinfo(2)). It loses the number where the user has too many signals
/// pending, which takes somebody who may signal boot and be its user.
fn is_the_node_s_word(signal: &siginfo) -> bool {
    let number = signal.ssi_signo.cast_signed();
    number == Signal::SIGTERM as i32 && signal.ssi_code == SI_USER && signal.ssi_pid == 0
}

impl Boot {
    /// Serves until the shim is gone, or, when systemd stops the cgroup because
    /// the node shuts down, until the last container has ended by the same
    /// signal. Leaving means death for the whole pod: the kernel kills what is
    /// left in PID 1's namespace.
    pub(super) fn serve(mut self) -> ExitCode {
        let mut ready = Vec::with_capacity(16);
        let mut terminated = false;
        while !(terminated && self.containers.run_nothing()) {
            if let Err(error) = self.events.wait(&mut ready) {
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
                        terminated |= self.events.take_signals();
                        self.reap();
                    }
                    token => self.receive(token),
                }
            }
        }
        ExitCode::SUCCESS
    }

    /// Takes one request off the control channel; false when it is closed.
    fn take_request(&mut self) -> Result<bool> {
        let received = receive_packet(&self.control, MAX_REQUEST, MAX_DESCRIPTORS)
            .context(|| "receive a request")?;
        let (bytes, descriptors) = match received {
            Received::Packet { bytes, fds, .. } => (bytes, fds.take()),
            Received::Closed => return Ok(false),
            Received::WouldBlock => return Ok(true),
        };
        let Numbered { number, request } = postcard::from_bytes(&bytes)
            .map_err(|e| Error::internal(format!("a request is no request: {e}")))?;
        if let Err(error) = self.carry_out(number, request, descriptors) {
            self.reply(number, Err(error));
        }
        self.own_id.close_proc_files()?;
        Ok(true)
    }

    /// One request. An error is the reply; success replies by itself, at once
    /// or when a process has come up.
    fn carry_out(&mut self, number: u64, request: Request, fds: Vec<OwnedFd>) -> Result<()> {
        match request {
            Request::Create { plan, donations, capacity } => {
                log::debug!("{} has {capacity:?}", plan.id);
                self.create(number, *plan, donations, fds)
            }
            Request::Start { container } => self.start(number, &container),
            Request::Exec { container, exec, process, donations } => {
                self.exec(number, container, exec, &process, donations, fds)
            }
            Request::Delete { container } => self.delete(number, &container),
            Request::Update { container, capacity } => {
                self.update(number, container.as_deref(), capacity)
            }
        }
    }
}
