//! One packet from a boot that was taken over, as the shim receives it: whatever
//! the bytes, it is a message or an error, never a panic, and what is decoded is
//! no larger than the packet. No descriptors travel beside it: the shim leaves
//! those that it did not ask for open.

#![no_main]

use std::cell::LazyCell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use sandbox_core::control::encoding::Message;
use sandbox_core::control::message::{
    Done, MAX_DESCRIPTORS, MAX_PACKET, RawFamily, RawSocket, Upward,
};
use sandbox_core::control::packet::{self, Received, receive_packet};
use sandbox_core::error::{Failure, FailureKind};
use sandbox_core::sandbox::Unchecked;
use sandbox_core::types::ProcessId;

thread_local! {
    /// boot's end of the control channel, and the shim's.
    static CHANNEL: LazyCell<(OwnedFd, OwnedFd)> = const { LazyCell::new(|| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("socketpair")
    }) };
}

fuzz_target!(init: write_seeds(), |packet: &[u8]| {
    if let Some(message) = receive(packet) {
        let bytes = message.encode().expect("encode a message");
        assert!(bytes.len() < packet.len(), "{} bytes of {}", bytes.len(), packet.len());
        assert_eq!(Upward::decode(&bytes).expect("decode a message"), message);
        let takes = matches!(
            message,
            Upward::Reply { outcome: Ok(Done::Process { .. }), .. } | Upward::Listener { .. }
        );
        let checked = Unchecked::new(message, packet::Unchecked::default(), None).check();
        assert_eq!(checked.is_err(), takes, "a message is taken without its descriptors");
    }
});

/// An empty packet is the end of the channel, which would stay there.
fn receive(packet: &[u8]) -> Option<Upward> {
    if packet.is_empty() {
        return None;
    }
    CHANNEL.with(|channel| {
        let (boot, shim) = &**channel;
        rustix::net::send(boot, packet, SendFlags::NOSIGNAL).ok()?;
        match receive_packet(shim, MAX_PACKET, MAX_DESCRIPTORS) {
            Ok(Received::Packet { bytes, .. }) => Upward::decode(&bytes).ok(),
            Ok(_) => None,
            Err(_) => {
                // One that is too long is refused before it is taken out.
                let _ = rustix::net::recv(shim, [0_u8; 1].as_mut_slice(), RecvFlags::empty());
                None
            }
        }
    })
}

/// Puts honest messages into the corpus: the first argument that is a folder.
fn write_seeds() {
    let Some(corpus) = std::env::args().skip(1).map(PathBuf::from).find(|path| path.is_dir())
    else {
        return;
    };
    let failure = Failure { kind: FailureKind::State, message: "no such process".into() };
    let outcomes = [Ok(Done::Ok), Ok(Done::Process { terminal: true, mounts: true }), Err(failure)]
        .into_iter();
    let replies = outcomes.map(|outcome| Upward::Reply { number: 7, outcome });
    let exits = [ProcessId::init("3f2a"), ProcessId::exec("3f2a", "e1")]
        .map(|process| Upward::Exited { process, status: 137 });
    let listener = [Upward::Listener { of: 7 }];
    let family = RawFamily::Packet { headers: true, protocol: 3 };
    let socket = RawSocket { family, nonblocking: true };
    let raw = [Upward::RawSocket { of: 7, container: "3f2a".into(), socket }];
    let views = [Upward::ViewSources { container: "3f2a".into() }];
    let all = replies.chain(exits).chain(listener).chain(raw).chain(views);
    for (index, message) in all.enumerate() {
        // A packet whose bytes are in it begins with a zero.
        let mut packet = vec![0];
        packet.extend(message.encode().expect("encode a message"));
        std::fs::write(corpus.join(format!("seed-{index}")), packet).expect("write a seed");
    }
}
