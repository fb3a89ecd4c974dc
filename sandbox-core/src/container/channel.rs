//! What boot and a process that comes up say to each other. End of file is a
//! word too: the process has executed the user's program, or is dead.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::control::message::MAX_PACKET;
use crate::control::packet::{Received, receive_packet, send_packet};
use crate::error::{Context, Error, Failure, Result};

/// One end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// What boot hears.
#[derive(Debug)]
pub(crate) enum Word {
    /// Its new user namespace wants its ID maps.
    Unmapped,
    /// It waits at its gate.
    Parked,
    /// It gives up.
    Failed(Failure),
    /// It has executed the user's program, or is dead.
    Gone,
}

const UNMAPPED: u8 = b'U';
const PARKED: u8 = b'P';
const FAILED: u8 = b'F';
const GO: u8 = b'G';

impl Channel {
    /// boot's end and the process's.
    pub(crate) fn pair() -> Result<(Self, Self)> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (boot, process) =
            socketpair(AddressFamily::UNIX, kind, flags, None).context(|| "socketpair")?;
        Ok((Self(boot), Self(process)))
    }

    /// boot: past the point where the process waits.
    pub(crate) fn let_go_on(&self) -> Result<()> {
        send_packet(&self.0, &[GO], &[]).context(|| "tell the container's process to go on")
    }

    /// boot: what is there to hear. Blocks when there is nothing.
    pub(crate) fn listen(&self) -> Result<Word> {
        let received = receive_packet(&self.0, MAX_PACKET, 0)
            .context(|| "hear from the container's process")?;
        let Received::Packet { bytes, .. } = received else {
            return Ok(Word::Gone);
        };
        match bytes.split_first() {
            Some((&UNMAPPED, _)) => Ok(Word::Unmapped),
            Some((&PARKED, _)) => Ok(Word::Parked),
            Some((&FAILED, rest)) => postcard::from_bytes(rest)
                .map(Word::Failed)
                .map_err(|e| Error::internal(format!("a process failed without words: {e}"))),
            _ => Err(Error::internal("the container's process said what is no word")),
        }
    }

    /// Process: wait until boot says go on.
    pub(crate) fn wait(&self) -> Result<()> {
        match receive_packet(&self.0, 1, 0).context(|| "wait for the sandbox process")? {
            Received::Packet { .. } => Ok(()),
            _ => Err(Error::internal("the sandbox process gave this container up")),
        }
    }

    /// Process: in a user namespace that is new. Returns when it has its maps.
    pub(crate) fn have_mapped(&self) -> Result<()> {
        send_packet(&self.0, &[UNMAPPED], &[]).context(|| "ask for ID maps")?;
        self.wait()
    }

    /// Process: at the gate.
    pub(crate) fn park(&self) -> Result<()> {
        send_packet(&self.0, &[PARKED], &[]).context(|| "park at the gate")
    }

    /// Process: gives up.
    pub(crate) fn fail(&self, error: Error) {
        let mut bytes = vec![FAILED];
        if let Ok(failure) = postcard::to_stdvec(&Failure::from(error)) {
            bytes.extend(failure);
            let _ = send_packet(&self.0, &bytes, &[]);
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
