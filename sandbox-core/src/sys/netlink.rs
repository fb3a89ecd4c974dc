//! Requests to the kernel's routing family: netlink(7), rtnetlink(7).

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// Length of a `struct nlmsghdr`, and of a `struct rtattr`.
const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

/// The largest answer that the kernel puts into one packet is half of this.
const BUFFER: usize = 64 * 1024;

/// A socket in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A message under construction: a fixed part, and attributes.
#[derive(Clone, Debug)]
pub struct Body(Vec<u8>);

impl Body {
    /// Begins with the fixed part, such as a `struct ifinfomsg`.
    pub fn new(fixed: &[u8]) -> Self {
        let mut bytes = fixed.to_vec();
        pad(&mut bytes);
        Self(bytes)
    }

    /// Adds an attribute. `value` is shorter than 64 KiB.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        pad(&mut self.0);
        self
    }
}

/// Fills up to a multiple of four bytes.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

impl Netlink {
    /// Opens a socket in the network namespace that this thread is in.
    pub fn open() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        // Protocol 0 is the routing family.
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes a change, and waits until it is made.
    pub fn change(&mut self, kind: u16, flags: u16, body: &Body) -> io::Result<()> {
        self.ask(kind, flags | NLM_F_ACK, body, |_, _| ())
    }

    /// Asks for a list. `each` takes the type and the content of each message.
    pub fn list(&mut self, kind: u16, body: &Body, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.ask(kind, NLM_F_DUMP, body, each)
    }

    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &Body,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.0.len());
        message.extend(((HEADER + body.0.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(&body.0);
        send(&self.socket, &message, SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (received, length) = recv(&self.socket, buffer.as_mut_slice(), RecvFlags::TRUNC)?;
            if length > received {
                return Err(Errno::MSGSIZE.into());
            }
            for (header, content) in messages(&buffer[..received]) {
                match header.kind {
                    _ if header.sequence != self.sequence => {}
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return outcome(content),
                    _ => each(header.kind, content),
                }
            }
        }
    }
}

struct Header {
    kind: u16,
    sequence: u32,
}

/// Returns the error that a message of the type `NLMSG_ERROR` carries: zero is none.
fn outcome(content: &[u8]) -> io::Result<()> {
    match content.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(Errno::BADMSG.into()),
    }
}

/// Splits a packet into its messages.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let message = rest.get(..length)?;
        let content = message.get(HEADER..)?;
        let header = Header {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            sequence: u32::from_ne_bytes(*message[8..].first_chunk()?),
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, content))
    })
}

/// Returns the attributes that follow a fixed part of this length, as type and value.
pub fn attributes(content: &[u8], fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = content.get(fixed.next_multiple_of(4)..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let attribute = rest.get(..length)?;
        let value = attribute.get(ATTRIBUTE_HEADER..)?;
        let kind = u16::from_ne_bytes([attribute[2], attribute[3]]);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
const NLM_F_DUMP: u16 = libc::NLM_F_DUMP as u16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_lists_the_loopback_interface() {
        let mut names = Vec::new();
        let mut socket = Netlink::open().unwrap();
        // struct ifinfomsg.
        let body = Body::new(&[0; 16]);
        socket
            .list(libc::RTM_GETLINK, &body, |kind, content| {
                assert_eq!(kind, libc::RTM_NEWLINK);
                let name = attributes(content, 16).find(|(kind, _)| *kind == libc::IFLA_IFNAME);
                names.push(name.expect("each has a name").1.to_vec());
            })
            .unwrap();
        assert!(names.contains(&b"lo\0".to_vec()), "{names:?}");
    }

    #[test]
    fn an_error_of_the_kernel_is_returned() {
        let body = Body::new(&[0; 16]).with(libc::IFLA_IFNAME, b"no-such-device\0");
        let error = Netlink::open().unwrap().change(libc::RTM_NEWLINK, 0, &body).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn what_is_cut_short_ends_a_list() {
        let body = Body::new(&[1, 2, 3]).with(7, b"abc").with(8, b"");
        assert_eq!(body.0.len(), 4 + 8 + 4);
        let all: Vec<_> = attributes(&body.0, 3).collect();
        assert_eq!(all, [(7, b"abc".as_slice()), (8, b"".as_slice())]);
        for length in 0..body.0.len() {
            assert!(attributes(&body.0[..length], 3).count() < 2);
            assert_eq!(messages(&body.0[..length]).count(), 0);
        }
        assert_eq!(attributes(&[0; 64], 0).count(), 0);
    }
}
