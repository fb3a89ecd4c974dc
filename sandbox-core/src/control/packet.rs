//! Packets of a seqpacket socket (unix(7)), with descriptors.
//!
//! The peer may be hostile: a packet is received whole or not at all, takes no
//! more memory than its announced length, and brings no more descriptors than
//! the receiver asked for. A descriptor is only closed after the receiver has
//! taken it: see [`Unchecked`].
//!
//! | first byte | rest |
//! |---|---|
//! | `INLINE` | the bytes, at most [`MAX_PACKET`] |
//! | `IN_MEMFD` | the first of the bytes, at most [`BEGINNING`]: all are in a sealed memfd, the first descriptor |
//!
//! The byte also distinguishes an empty packet from the end of the channel.
//!
//! A receiver that has no more descriptors gets the packet without some of those that came with
//! it, which are lost. That is no fault of the sender: see [`Arrived::Part`].

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, UCred,
    socketpair,
};
use rustix::process::{Pid, getegid, geteuid};

use crate::control::message::MAX_PACKET;

/// The most descriptors that one packet can carry (`SCM_MAX_FD`).
pub(crate) const SCM_MAX_FD: usize = 253;

const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;

/// The bytes of a packet in a memfd that travel beside that: enough for a number, so that a
/// receiver without room for the memfd can refuse a request.
pub const BEGINNING: usize = 10;

/// The seals that a received memfd must have: with these, neither its size nor
/// its content can change while it is read.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

/// Descriptors that came from a peer. Closing one may block for ever: a socket
/// waits for the data that it has to send, a file for the program that serves
/// its file system. So those that are not taken stay open until this process
/// ends. The receiver must stop receiving from a peer that sends descriptors
/// that were not asked for.
#[derive(Debug, Default)]
pub struct Unchecked(Vec<OwnedFd>);

impl Unchecked {
    /// Returns them for checks.
    pub fn as_slice(&self) -> &[OwnedFd] {
        &self.0
    }

    /// Takes ownership, of descriptors that were asked for; they are closed on
    /// drop.
    pub fn take(mut self) -> Vec<OwnedFd> {
        mem::take(&mut self.0)
    }
}

impl Drop for Unchecked {
    fn drop(&mut self) {
        self.0.drain(..).for_each(mem::forget);
    }
}

/// The result of [`receive_packet`].
#[derive(Debug)]
pub enum Received {
    /// A packet.
    Packet {
        /// Its bytes.
        bytes: Vec<u8>,
        /// Its descriptors, close-on-exec, in the order they were sent.
        fds: Unchecked,
        /// The process that the sender named, as the receiver's PID namespace
        /// numbers it, if the receiver asked for it by [`ask_for_processes`].
        /// The kernel vouches that it is in the sender's PID namespace
        /// (unix(7), `SCM_CREDENTIALS`).
        process: Option<i32>,
    },
    /// The peer has closed the channel, and all that it sent was received.
    Closed,
    /// The socket is non-blocking and has no packet.
    WouldBlock,
}

/// The result of [`receive_packet_or_part`].
#[derive(Debug)]
pub enum Arrived {
    /// All that was sent.
    Whole(Received),
    /// A packet of whose descriptors some are lost, since this process, or the host, has no more.
    Part {
        /// Its bytes, or only the first of them if they were in a memfd that is lost.
        bytes: Vec<u8>,
        /// The first of its descriptors.
        fds: Unchecked,
        /// The process that the sender named, as in [`Received::Packet`].
        process: Option<i32>,
    },
}

/// Makes a channel, close-on-exec at both ends: socketpair(2).
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends one packet (sendmsg(2)). More than [`MAX_PACKET`] bytes travel in a
/// memfd. A full non-blocking socket is [`ErrorKind::WouldBlock`]; a peer that
/// is gone is [`ErrorKind::BrokenPipe`], without a signal.
pub fn send_packet(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_packet_for(None, socket, bytes, fds)
}

/// Sends a packet as [`send_packet`] does, and names another process of the
/// sender's PID namespace, by its number there. That process must not have been
/// collected yet. Takes CAP_SYS_ADMIN in the user namespace that owns the PID
/// namespace.
pub fn send_packet_for(
    process: Option<i32>,
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if bytes.len() <= MAX_PACKET {
        return send(socket.as_fd(), INLINE, bytes, fds, process);
    }
    let memfd = sealed_memfd(bytes)?;
    let mut all = Vec::with_capacity(fds.len() + 1);
    all.push(memfd.as_fd());
    all.extend_from_slice(fds);
    send(socket.as_fd(), IN_MEMFD, &bytes[..BEGINNING], &all, process)
}

/// Writes one packet without descriptors by write(2) alone, for a process whose seccomp
/// program may hold up other calls.
pub(crate) fn write_packet(socket: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let packet = [&[INLINE], bytes].concat();
    Ok(rustix::io::retry_on_intr(|| rustix::io::write(&socket, &packet)).map(drop)?)
}

/// Makes the kernel add to each packet the process that its sender named:
/// `SO_PASSCRED`.
pub fn ask_for_processes(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_passcred(socket, true)?)
}

fn send(
    socket: BorrowedFd<'_>,
    tag: u8,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    process: Option<i32>,
) -> io::Result<()> {
    if fds.len() > SCM_MAX_FD {
        let message = format!("{} descriptors in one packet, at most {SCM_MAX_FD} fit", fds.len());
        return Err(io::Error::new(ErrorKind::InvalidInput, message));
    }
    let room = rustix::cmsg_space!(ScmRights(fds.len()), ScmCredentials(1));
    let mut space = vec![MaybeUninit::uninit(); room];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Some(pid) = process.and_then(Pid::from_raw) {
        let credentials = UCred { pid, uid: geteuid(), gid: getegid() };
        ancillary.push(SendAncillaryMessage::ScmCredentials(credentials));
    }
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let parts = [IoSlice::new(std::slice::from_ref(&tag)), IoSlice::new(bytes)];
    loop {
        // A packet is sent whole or not at all, so the count adds nothing.
        match rustix::net::sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => continue,
            result => return Ok(result.map(drop)?),
        }
    }
}

/// Receives one packet (recvmsg(2)), of at most `max_bytes` (in a memfd too)
/// and `max_fds`. After an error, stop receiving: the peer breaks the rules of
/// the channel, or this process has no room for the descriptors (`EMFILE`).
pub fn receive_packet(socket: impl AsFd, max_bytes: usize, max_fds: usize) -> io::Result<Received> {
    match receive_packet_or_part(socket, max_bytes, max_fds)? {
        Arrived::Whole(received) => Ok(received),
        Arrived::Part { fds, .. } => {
            // Closed without a check: who cannot trust its peer takes the part.
            drop(fds.take());
            Err(no_room())
        }
    }
}

/// Returns the error of a process that has no room for the descriptors of a packet.
pub fn no_room() -> io::Error {
    rustix::io::Errno::MFILE.into()
}

/// Receives one packet as [`receive_packet`] does, also if there is no room for its descriptors.
pub fn receive_packet_or_part(
    socket: impl AsFd,
    max_bytes: usize,
    max_fds: usize,
) -> io::Result<Arrived> {
    let socket = socket.as_fd();
    let length = match waiting(socket) {
        Ok(0) => return Ok(Arrived::Whole(Received::Closed)),
        Ok(length) => length - 1,
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            return Ok(Arrived::Whole(Received::WouldBlock));
        }
        // The peer closed the channel before it had read all our packets.
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {
            return Ok(Arrived::Whole(Received::Closed));
        }
        Err(e) => return Err(e),
    };
    if length > max_bytes.min(MAX_PACKET) {
        return Err(broken(format!("a packet of {length} bytes, at most {max_bytes} expected")));
    }
    let mut tag = 0;
    let mut bytes = vec![0; length];
    let Packet { mut fds, process, is_whole } = receive(socket, &mut tag, &mut bytes)?;
    let count = fds.0.len();
    match tag {
        INLINE | IN_MEMFD if !is_whole => return Ok(Arrived::Part { bytes, fds, process }),
        INLINE if count > max_fds => {
            return Err(broken(format!("{count} descriptors, at most {max_fds} expected")));
        }
        INLINE => {}
        IN_MEMFD if length <= BEGINNING && (1..=max_fds + 1).contains(&count) => {
            bytes = read_sealed(&fds.0[0], max_bytes)?;
            drop(fds.0.remove(0));
        }
        _ => {
            return Err(broken(format!(
                "a packet that begins with the byte {tag}, with {count} descriptors"
            )));
        }
    }
    Ok(Arrived::Whole(Received::Packet { bytes, fds, process }))
}

/// Returns the size of the next packet, tag included; zero if there will be
/// none. Takes no descriptor out: only a real receive installs those.
fn waiting(socket: BorrowedFd<'_>) -> io::Result<usize> {
    loop {
        let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
        match rustix::net::recv(socket, [0_u8; 0].as_mut_slice(), flags) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
            Ok((_, length)) => return Ok(length),
        }
    }
}

/// What comes with the bytes of a packet.
struct Packet {
    fds: Unchecked,
    process: Option<i32>,
    /// Whether there was room for all descriptors.
    is_whole: bool,
}

fn receive(socket: BorrowedFd<'_>, tag: &mut u8, bytes: &mut [u8]) -> io::Result<Packet> {
    // Room for all that can come: the kernel would close the others, in this process.
    let room = rustix::cmsg_space!(ScmRights(SCM_MAX_FD), ScmCredentials(1));
    let mut space = vec![MaybeUninit::uninit(); room];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let expected = bytes.len() + 1;
    let mut parts = [IoSliceMut::new(std::slice::from_mut(tag)), IoSliceMut::new(bytes)];
    let message = loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(socket, &mut parts, &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => continue,
            result => break result?,
        }
    };
    // Drained before any check: dropping a message closes its descriptors.
    let (mut fds, mut process) = (Unchecked::default(), None);
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(some) => fds.0.extend(some),
            RecvAncillaryMessage::ScmCredentials(sender) => process = Some(sender.pid.as_raw_pid()),
            _ => {}
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC) || message.bytes != expected {
        return Err(broken("a packet that does not fit its announced size".to_owned()));
    }
    // There is room for all in the buffer: the kernel could not open one.
    let is_whole = !message.flags.intersects(ReturnFlags::CTRUNC);
    Ok(Packet { fds, process, is_whole })
}

/// Makes a memfd that holds `bytes` and can never change again
/// (memfd_create(2)).
pub fn sealed_memfd(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = File::from(rustix::fs::memfd_create("palisade", flags)?);
    memfd.write_all_at(bytes, 0)?;
    rustix::fs::fcntl_add_seals(&memfd, SEALS)?;
    Ok(memfd.into())
}

/// Reads a memfd that the peer claims to have sealed ([`sealed_memfd`]). Asking
/// for the seals also proves that it is memory, so that reading it cannot
/// block.
fn read_sealed(memfd: &OwnedFd, max_bytes: usize) -> io::Result<Vec<u8>> {
    let seals = rustix::fs::fcntl_get_seals(memfd)
        .map_err(|e| broken(format!("a descriptor in place of a memfd (F_GET_SEALS: {e})")))?;
    if !seals.contains(SEALS) {
        return Err(broken(format!("a memfd that is not sealed: {seals:?}")));
    }
    let length = usize::try_from(rustix::fs::fstat(memfd)?.st_size).unwrap_or(usize::MAX);
    if length > max_bytes {
        return Err(broken(format!("a memfd of {length} bytes, at most {max_bytes} expected")));
    }
    let mut bytes = vec![0; length];
    match rustix::io::pread(memfd, &mut bytes, 0)? {
        read if read == length => Ok(bytes),
        read => Err(broken(format!("{read} of the {length} bytes of a memfd"))),
    }
}

fn broken(message: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::process::{Rlimit, rlimit_of, set_rlimit};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn packet(received: io::Result<Received>) -> (Vec<u8>, Vec<OwnedFd>) {
        match received.unwrap() {
            Received::Packet { bytes, fds, .. } => (bytes, fds.take()),
            other => panic!("{other:?}"),
        }
    }

    fn error(received: io::Result<Received>) -> String {
        received.unwrap_err().to_string()
    }

    #[test]
    fn packets_keep_their_bounds_and_their_descriptors() {
        let (a, b) = pair();
        let null = File::open("/dev/null").unwrap();
        send_packet(&a, b"one", &[null.as_fd(), null.as_fd()]).unwrap();
        send_packet(&a, b"", &[]).unwrap();
        let (bytes, fds) = packet(receive_packet(&b, 3, 2));
        assert_eq!((bytes.as_slice(), fds.len()), (b"one".as_slice(), 2));
        assert!(rustix::io::fcntl_getfd(&fds[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(packet(receive_packet(&b, 3, 2)).0, b"");
        assert!(matches!(receive_packet(&b, 3, 2), Ok(Received::WouldBlock)));
        drop(a);
        assert!(matches!(receive_packet(&b, 3, 2), Ok(Received::Closed)));
    }

    #[test]
    fn a_large_packet_travels_in_a_memfd() {
        let (a, b) = pair();
        let null = File::open("/dev/null").unwrap();
        let long = vec![7; MAX_PACKET + 1];
        send_packet(&a, &long, &[null.as_fd()]).unwrap();
        let (bytes, fds) = packet(receive_packet(&b, long.len(), 1));
        assert_eq!((bytes, fds.len()), (long.clone(), 1));
        send_packet(&a, &long, &[]).unwrap();
        assert!(error(receive_packet(&b, long.len() - 1, 1)).contains("at most 65536"));
        send_packet(&a, &long[1..], &[]).unwrap();
        assert_eq!(packet(receive_packet(&b, MAX_PACKET, 0)).0.len(), MAX_PACKET);
    }

    #[test]
    fn a_packet_that_breaks_the_rules_is_an_error() {
        let (a, b) = pair();
        let null = File::open("/dev/null").unwrap();
        send_packet(&a, b"too long", &[]).unwrap();
        assert!(error(receive_packet(&b, 4, 0)).contains("8 bytes, at most 4"));
        receive_packet(&b, 8, 0).unwrap();
        for count in 2..20 {
            let many = vec![null.as_fd(); count];
            send_packet(&a, b"x", &many).unwrap();
            assert!(error(receive_packet(&b, 4, 1)).contains("descriptors"));
        }
        send(a.as_fd(), 9, b"", &[], None).unwrap();
        assert!(error(receive_packet(&b, 4, 0)).contains("the byte 9"));
        send(a.as_fd(), IN_MEMFD, b"", &[], None).unwrap();
        assert!(error(receive_packet(&b, 4, 0)).contains("the byte 1"));
    }

    #[test]
    fn only_a_sealed_memfd_is_read() {
        let (a, b) = pair();
        let null = File::open("/dev/null").unwrap();
        send(a.as_fd(), IN_MEMFD, b"", &[null.as_fd()], None).unwrap();
        assert!(error(receive_packet(&b, 4, 0)).contains("in place of a memfd"));
        let open = rustix::fs::memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
        send(a.as_fd(), IN_MEMFD, b"", &[open.as_fd()], None).unwrap();
        assert!(error(receive_packet(&b, 4, 0)).contains("not sealed"));
    }

    /// That is no fault of the sender, and the next packet comes whole.
    #[test]
    fn a_receiver_without_descriptors_gets_the_bytes() {
        let (a, b) = pair();
        let null = File::open("/dev/null").unwrap();
        let long: Vec<u8> = (0..=255).cycle().take(MAX_PACKET + 1).collect();
        send_packet(&a, b"two", &[null.as_fd(); 2]).unwrap();
        send_packet(&a, &long, &[null.as_fd()]).unwrap();
        send_packet(&a, b"one", &[null.as_fd()]).unwrap();
        send_packet(&a, b"none", &[]).unwrap();
        let next = rustix::io::dup(&null).unwrap().as_raw_fd().unsigned_abs();
        let limit = rlimit_of(0, libc::RLIMIT_NOFILE).unwrap();
        // There is room for one, and then for none.
        set_rlimit(Rlimit { soft: u64::from(next) + 1, ..limit }).unwrap();
        let part = || match receive_packet_or_part(&b, long.len(), 2).unwrap() {
            Arrived::Part { bytes, fds, .. } => (bytes, fds.take()),
            Arrived::Whole(other) => panic!("{other:?}"),
        };
        let (bytes, first) = part();
        assert_eq!((bytes.as_slice(), first.len()), (b"two".as_slice(), 1));
        let (bytes, none) = part();
        assert_eq!((bytes.as_slice(), none.len()), (&long[..BEGINNING], 0));
        let refused = receive_packet(&b, 3, 1).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMFILE));
        assert_eq!(packet(receive_packet(&b, 4, 1)).0, b"none");
        set_rlimit(limit).unwrap();
    }

    /// The shim must close no descriptor that it did not ask for.
    #[test]
    fn descriptors_of_a_wrong_packet_stay_open() {
        let (a, b) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        for wrong in [9, IN_MEMFD] {
            send(a.as_fd(), wrong, b"", &[writer.as_fd()], None).unwrap();
            receive_packet(&b, 4, 3).unwrap_err();
        }
        send_packet(&a, b"x", &[writer.as_fd(); 4]).unwrap();
        receive_packet(&b, 4, 3).unwrap_err();
        send_packet(&a, b"x", &[writer.as_fd()]).unwrap();
        drop(receive_packet(&b, 4, 3).unwrap());
        drop(writer);
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0]), Err(rustix::io::Errno::AGAIN));
    }
}
