//! The messages between boot and a newborn, a process that boot cloned and that has
//! not executed its program yet. Both directions, and their encoding.
//!
//! One message is one packet of a seqpacket socket. End of file is a message too: the
//! newborn has executed the program, or is dead.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::control::encoding::Message;
use crate::control::message::MAX_PACKET;
use crate::control::packet::{Received, receive_packet, send_packet, write_packet};
use crate::error::{Context, Error, Failure, Result};
use crate::types::PodPid;

/// A message of a newborn to boot.
#[derive(Debug)]
pub(crate) enum NewbornMessage {
    /// Its new user namespace has no ID maps yet.
    Unmapped,
    /// It has loaded a seccomp program, of whose listener this is its descriptor, and waits
    /// until an agent has it.
    Listener(RawFd),
    /// It has loaded a seccomp program, about whose calls boot decides by this listener.
    Watched(OwnedFd),
    /// It waits at its gate.
    AtGate(AtGate),
    /// It has cloned the process that becomes criu.
    Restorer(Restorer),
    /// It could not carry out its plan.
    Failed(Failure),
}

/// The process that becomes criu.
#[derive(Debug)]
pub(crate) struct Restorer {
    /// Its pidfd.
    pub(crate) pidfd: OwnedFd,
    /// The directory that it writes to.
    pub(crate) work: OwnedFd,
}

/// What a container's init hands to boot at its gate.
#[derive(Debug, Default)]
pub(crate) struct AtGate {
    /// The devpts in which execs get their terminals.
    pub(crate) devpts: Option<OwnedFd>,
    /// The master side of the init's own terminal.
    pub(crate) terminal: Option<OwnedFd>,
    /// The mount namespace that it has left, which is destroyed when this is closed.
    pub(crate) mounts: Option<OwnedFd>,
}

const UNMAPPED: u8 = b'U';
const LISTENER: u8 = b'L';
const WATCHED: u8 = b'W';
const AT_GATE: u8 = b'P';
const RESTORER: u8 = b'R';
const FAILED: u8 = b'F';
const GO_ON: u8 = b'G';

impl NewbornMessage {
    /// Sends the message, as the newborn.
    pub(crate) fn send(self, channel: impl AsFd) -> Result<()> {
        let (bytes, descriptors) = self.encode()?;
        let descriptors: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
        send_packet(channel, &bytes, &descriptors).context(|| "send to the sandbox process")
    }

    fn encode(self) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        Ok(match self {
            Self::Unmapped => (vec![UNMAPPED], Vec::new()),
            Self::Listener(fd) => ([&[LISTENER], &fd.to_ne_bytes()[..]].concat(), Vec::new()),
            Self::Watched(listener) => (vec![WATCHED], vec![listener]),
            Self::AtGate(AtGate { devpts, terminal, mounts }) => {
                let all = [devpts, terminal, mounts];
                let has = all.each_ref().map(|one| u8::from(one.is_some()));
                ([[AT_GATE].as_slice(), &has].concat(), all.into_iter().flatten().collect())
            }
            Self::Restorer(Restorer { pidfd, work }) => (vec![RESTORER], vec![pidfd, work]),
            Self::Failed(failure) => ([vec![FAILED], failure.encode()?].concat(), Vec::new()),
        })
    }

    /// Receives a message, as boot. `None` at the end of file. Blocks while there is none.
    pub(crate) fn receive(channel: impl AsFd) -> Result<Option<Self>> {
        let received = receive_packet(channel, MAX_PACKET, 3)
            .context(|| "receive from the container's process")?;
        let Received::Packet { bytes, fds, .. } = received else {
            return Ok(None);
        };
        match bytes.split_first() {
            Some((&UNMAPPED, _)) => Ok(Some(Self::Unmapped)),
            Some((&LISTENER, &[a, b, c, d])) => {
                Ok(Some(Self::Listener(RawFd::from_ne_bytes([a, b, c, d]))))
            }
            Some((&WATCHED, &[])) => match fds.take().pop() {
                Some(listener) => Ok(Some(Self::Watched(listener))),
                None => Err(Error::internal("the container's process sent no listener")),
            },
            Some((&AT_GATE, &[devpts, terminal, mounts])) => {
                let mut sent = fds.take().into_iter();
                let next_if = |has: u8| if has == 0 { None } else { sent.next() };
                let [devpts, terminal, mounts] = [devpts, terminal, mounts].map(next_if);
                Ok(Some(Self::AtGate(AtGate { devpts, terminal, mounts })))
            }
            Some((&RESTORER, &[])) => match <[OwnedFd; 2]>::try_from(fds.take()) {
                Ok([pidfd, work]) => Ok(Some(Self::Restorer(Restorer { pidfd, work }))),
                Err(_) => Err(Error::internal("the container's builder sent no restorer")),
            },
            Some((&FAILED, rest)) => Failure::decode(rest)
                .map(|failure| Some(Self::Failed(failure)))
                .map_err(|e| Error::internal(format!("a process failed without a reason: {e}"))),
            _ => Err(Error::internal("the container's process sent an unknown message")),
        }
    }
}

/// Announces a listener, as the newborn, and waits until an agent has it. The agent already
/// decides about this process's own calls, but for write(2).
pub(crate) fn hand_listener_over(channel: impl AsFd, listener: BorrowedFd<'_>) -> Result<()> {
    let (bytes, _) = NewbornMessage::Listener(listener.as_raw_fd()).encode()?;
    write_packet(&channel, &bytes).context(|| "send to the sandbox process")?;
    wait_to_go_on(channel)
}

/// Lets a newborn go on, as boot, once it has its ID maps or its gate opens.
pub(crate) fn send_go_on(channel: impl AsFd) -> Result<()> {
    send_packet(channel, &[GO_ON], &[]).context(|| "let the container's process go on")
}

/// Names the first process of a container that criu restores, as boot, to the newborn that builds
/// its mounts.
pub(crate) fn send_root_task(channel: impl AsFd, pid: PodPid) -> Result<()> {
    send_packet(channel, &pid.0.to_ne_bytes(), &[]).context(|| "let the container's builder go on")
}

/// Waits until criu has made the container's first process. Returns its ID among those of the pod.
pub(crate) fn wait_for_root_task(channel: impl AsFd) -> Result<PodPid> {
    let gone = || Error::internal("the sandbox process has given this container up");
    match receive_packet(channel, 4, 0).context(|| "wait for the sandbox process")? {
        Received::Packet { bytes, .. } => {
            let pid = <[u8; 4]>::try_from(bytes.as_slice()).map_err(|_| gone())?;
            Ok(PodPid(i32::from_ne_bytes(pid)))
        }
        _ => Err(gone()),
    }
}

/// Waits until boot lets this newborn go on.
pub(crate) fn wait_to_go_on(channel: impl AsFd) -> Result<()> {
    match receive_packet(channel, 1, 0).context(|| "wait for the sandbox process")? {
        Received::Packet { .. } => Ok(()),
        _ => Err(Error::internal("the sandbox process has deleted this container")),
    }
}
