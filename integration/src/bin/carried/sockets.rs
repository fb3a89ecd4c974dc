//! Sockets.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use crate::{Check, Given, Result, same};

/// How long an answer may take that comes over loopback.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

/// A listening socket, on IPv4.
pub fn tcp(given: &Given) -> Result<Check> {
    accepts(SocketAddr::from((Ipv4Addr::UNSPECIFIED, given.port)), Ipv4Addr::LOCALHOST.into())
}

/// A listening socket, on IPv6.
pub fn tcp6(given: &Given) -> Result<Check> {
    accepts(SocketAddr::from((Ipv6Addr::UNSPECIFIED, given.port + 1)), Ipv6Addr::LOCALHOST.into())
}

fn accepts(address: SocketAddr, loopback: std::net::IpAddr) -> Result<Check> {
    let listener = TcpListener::bind(address)?;
    let port = listener.local_addr()?.port();
    Ok(Box::new(move || {
        same("its port", listener.local_addr()?.port(), port)?;
        let near = TcpStream::connect((loopback, port))?;
        let (far, _) = listener.accept()?;
        near.set_read_timeout(PATIENCE)?;
        answer(near, far)
    }))
}

fn answer(mut near: impl Read, mut far: impl Write) -> Result<()> {
    far.write_all(b"hello")?;
    let mut read = [0; 5];
    near.read_exact(&mut read)?;
    same("what arrives", &read, b"hello")
}

/// A socket that is bound, for UDP.
pub fn udp(given: &Given) -> Result<Check> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, given.port))?;
    socket.set_read_timeout(PATIENCE)?;
    let port = given.port;
    Ok(Box::new(move || {
        let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        from.send_to(b"hello", (Ipv4Addr::LOCALHOST, port))?;
        let mut read = [0; 16];
        let length = socket.recv(&mut read)?;
        same("what arrives", &read[..length], b"hello")
    }))
}

/// A connection over TCP. It may be closed by a restore, which the program must then see,
/// rather than wait for ever.
pub fn established(given: &Given) -> Result<Check> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, given.port + 2))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_read_timeout(PATIENCE)?;
    Ok(Box::new(move || {
        let mut read = [0; 5];
        match far.write_all(b"hello").and_then(|()| near.read_exact(&mut read)) {
            Ok(()) => same("what arrives", &read, b"hello"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                Err("it neither carries anything nor is closed".into())
            }
            Err(_) => Ok(()),
        }
    }))
}

/// A listening socket with a path.
pub fn unix_path(_: &Given) -> Result<Check> {
    accepts_unix(&UnixAddr::from_pathname("/tmp/carried.sock")?)
}

/// A listening socket with an abstract name.
pub fn unix_abstract(_: &Given) -> Result<Check> {
    accepts_unix(&UnixAddr::from_abstract_name("carried")?)
}

fn accepts_unix(address: &UnixAddr) -> Result<Check> {
    let (listener, address) = (UnixListener::bind_addr(address)?, address.clone());
    Ok(Box::new(move || {
        let near = UnixStream::connect_addr(&address)?;
        let (far, _) = listener.accept()?;
        near.set_read_timeout(PATIENCE)?;
        answer(near, far)
    }))
}

/// A connection to a listening socket with a path. CRIU does not bring back the name of its
/// peer.
pub fn unix_connected(_: &Given) -> Result<Check> {
    let path = "/tmp/carried-connected.sock";
    let listener = UnixListener::bind(path)?;
    let near = UnixStream::connect(path)?;
    let (far, _) = listener.accept()?;
    near.set_read_timeout(PATIENCE)?;
    Ok(Box::new(move || {
        let _ = listener.local_addr()?;
        answer(&near, &far)
    }))
}

/// A pair of sockets with data under way, one way and the other.
pub fn unix_pair(_: &Given) -> Result<Check> {
    let (mut near, mut far) = UnixStream::pair()?;
    for end in [&near, &far] {
        end.set_read_timeout(PATIENCE)?;
    }
    near.write_all(b"there")?;
    far.write_all(b"back!")?;
    Ok(Box::new(move || {
        answered(&mut far, b"there")?;
        answered(&mut near, b"back!")?;
        near.write_all(b"there")?;
        Ok(far.write_all(b"back!")?)
    }))
}

fn answered(end: &mut (impl Read + Debug), wanted: &[u8]) -> Result<()> {
    let mut read = vec![0; wanted.len()];
    end.read_exact(&mut read)?;
    same("what was under way", read.as_slice(), wanted)
}

/// Messages with ends, under way.
pub fn unix_messages(_: &Given) -> Result<Check> {
    let (near, far) = UnixDatagram::pair()?;
    far.set_read_timeout(PATIENCE)?;
    let messages: [&[u8]; 2] = [b"first", b"the second"];
    let send = move |near: &UnixDatagram| -> Result<()> {
        messages.iter().try_for_each(|message| near.send(message).map(drop))?;
        Ok(())
    };
    send(&near)?;
    Ok(Box::new(move || {
        for message in messages {
            let mut read = [0; 64];
            let length = far.recv(&mut read)?;
            same("a message", &read[..length], message)?;
        }
        send(&near)
    }))
}
