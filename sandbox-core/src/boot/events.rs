//! The event loop: requests, deaths, and words of processes that come up.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;

use super::Boot;
use crate::control::message::{MAX_DESCRIPTORS, Numbered, Request};
use crate::control::packet::{Received, receive_packet};
use crate::error::{Context, Error, Result};

/// A request with its plan in it: two of the kernel's largest argument lists.
const MAX_REQUEST: usize = 8 << 20;

const CONTROL: u64 = u64::MAX;
const CHILDREN: u64 = u64::MAX - 1;

/// What is listened to.
pub(super) struct Events {
    epoll: OwnedFd,
    children: SignalFd,
}

impl Events {
    /// Listens to the control channel and for SIGCHLD.
    pub(super) fn new(control: &OwnedFd) -> Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None).context(|| "sigprocmask")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let children = SignalFd::with_flags(&mask, flags).context(|| "signalfd")?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context(|| "epoll_create")?;
        let events = Self { epoll, children };
        events.watch(control, CONTROL)?;
        events.watch(&events.children, CHILDREN)?;
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

    fn wait(&self, ready: &mut Vec<epoll::Event>) -> Result<()> {
        ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(ready), None) {
            Err(rustix::io::Errno::INTR) => Ok(()),
            other => other.map(drop).context(|| "epoll_wait"),
        }
    }
}

impl Boot {
    /// Serves until the shim is gone. Leaving means death for the whole pod:
    /// the kernel kills what is left in PID 1's namespace.
    pub(super) fn serve(mut self) -> ExitCode {
        let mut ready = Vec::with_capacity(16);
        loop {
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
                    CHILDREN => {
                        while let Ok(Some(_)) = self.events.children.read_signal() {}
                        self.reap();
                    }
                    token => self.hear(token),
                }
            }
        }
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
            Request::Create { plan, donations, limits } => {
                log::debug!("{} has {limits:?}", plan.id);
                self.create(number, *plan, donations, fds)
            }
            Request::Start { container } => self.start(number, &container),
            Request::Exec { container, exec, process, donations } => {
                self.exec(number, container, exec, &process, donations, fds)
            }
            Request::Delete { container } => self.delete(number, &container),
            Request::Resources { container, limits } => {
                self.resources(number, container.as_deref(), limits)
            }
        }
    }
}
