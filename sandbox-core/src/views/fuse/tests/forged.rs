//! Requests that no kernel sends, through a socket in the device's place.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::super::nodes::Node;
use super::super::places::Place;
use super::super::{Served, Server};
use super::served::Texts;
use crate::views::File;

/// A server, and the end of the socket where the kernel would be.
fn served() -> (Server, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (kernel, device) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let mut server = Server::new(device, (0, 0)).unwrap();
    server.add_container(1);
    (server, kernel)
}

fn request(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + body.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), opcode.to_ne_bytes()].concat();
    bytes.extend([unique.to_ne_bytes(), node.to_ne_bytes(), [0; 8], [0; 8]].concat());
    bytes.extend(body);
    bytes
}

/// Sends a request and returns the replies: the number, the error and the body of each.
fn ask(
    server: &mut Server,
    kernel: &OwnedFd,
    texts: &mut Texts,
    request: &[u8],
) -> Vec<(u64, i32, Vec<u8>)> {
    send(kernel, request, SendFlags::empty()).unwrap();
    assert_eq!(server.serve_some(texts).unwrap(), Served::Open);
    let mut replies = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    while let Ok((_, length)) = recv(kernel, &mut buffer[..], RecvFlags::empty()) {
        let reply = &buffer[..length];
        let number = |range: std::ops::Range<usize>| <[u8; 4]>::try_from(&reply[range]).unwrap();
        assert_eq!(u32::from_ne_bytes(number(0..4)) as usize, length);
        let unique = u64::from_ne_bytes(reply[8..16].try_into().unwrap());
        replies.push((unique, i32::from_ne_bytes(number(4..8)), reply[16..].to_vec()));
    }
    replies
}

/// Any number, and more often one that is a node.
fn nodes() -> impl Strategy<Value = u64> {
    let places = (0..64_u64).prop_map(|place| (1 << 8) | place);
    let passed = (0..64_u64).prop_map(|count| (1 << 63) | count);
    prop_oneof![Just(1), places, passed, any::<u64>()]
}

/// Any body, and more often one that a request can have.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let names = prop::sample::select(vec![
        "1",
        "cpu",
        "node",
        "stat",
        "online",
        "cpu0",
        "cpu1",
        "topology",
        "node0",
        "meminfo",
        "..",
        ".",
        "vulnerabilities",
        "power",
        "possible",
        "core_id",
        "\u{fffd}",
        "cpu99999999999",
    ]);
    let names = names.prop_map(|name| format!("{name}\0").into_bytes());
    let numbers = (any::<u64>(), prop_oneof![0..5000_u64, any::<u64>()], any::<u32>());
    let reads = numbers.prop_map(|(handle, offset, size)| {
        let mut body = [handle.to_ne_bytes(), offset.to_ne_bytes()].concat();
        body.extend(size.to_ne_bytes());
        body.extend([2, 0, 0, 0].repeat(5));
        body
    });
    prop_oneof![names, reads, prop::collection::vec(any::<u8>(), 0..200)]
}

/// Requests that the kernel wants no reply to: FORGET, INTERRUPT and BATCH_FORGET.
const SILENT: [u32; 3] = [2, 36, 42];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn whatever_is_asked_is_answered_once(
        requests in prop::collection::vec((0..56_u32, nodes(), bodies()), 1..60),
    ) {
        let (mut server, kernel) = served();
        let mut texts = Texts::new();
        // The version that any kernel of today has is agreed on; others end the server.
        for (at, (opcode, node, body)) in requests.into_iter().filter(|one| one.0 != 26).enumerate() {
            let unique = at as u64 + 1;
            let request = request(opcode, unique, node, &body);
            let replies = ask(&mut server, &kernel, &mut texts, &request);
            let well_formed = super::super::protocol::parse(&request).is_ok();
            if SILENT.contains(&opcode) && well_formed {
                prop_assert_eq!(replies, []);
                continue;
            }
            prop_assert_eq!(replies.len(), 1, "{} {:?}", opcode, body);
            let (of, error, body) = &replies[0];
            prop_assert!(*of == unique && (-200..=0).contains(error), "{of} {error}");
            prop_assert!(*error == 0 || body.is_empty());
        }
    }

    #[test]
    fn what_waits_is_answered_once_as_well(
        requests in prop::collection::vec((0..56_u32, nodes(), bodies()), 1..100),
        interrupted in prop::collection::btree_set(1..100_u64, 0..20),
    ) {
        let (mut server, kernel) = served();
        let mut texts = Texts::new();
        texts.cpus = Err(super::super::Unanswered::Wait);
        texts.wait(1, File::Stat);
        texts.wait(1, File::CpuOnline);
        let mut open = BTreeSet::new();
        let close = |replies: Vec<(u64, i32, Vec<u8>)>, open: &mut BTreeSet<u64>| {
            replies.iter().all(|(unique, ..)| open.remove(unique))
        };
        for (at, (opcode, node, body)) in requests.into_iter().filter(|one| one.0 != 26).enumerate() {
            let unique = at as u64 + 1;
            let request = request(opcode, unique, node, &body);
            if !(SILENT.contains(&opcode) && super::super::protocol::parse(&request).is_ok()) {
                open.insert(unique);
            }
            let replies = ask(&mut server, &kernel, &mut texts, &request);
            prop_assert!(close(replies, &mut open));
        }
        for unique in interrupted {
            let request = request(36, unique | 1 << 40, 0, &unique.to_ne_bytes());
            let replies = ask(&mut server, &kernel, &mut texts, &request);
            prop_assert!(replies.iter().all(|reply| reply.1 == -libc::EINTR));
            prop_assert!(close(replies, &mut open));
        }
        prop_assert_eq!(open.len(), server.count_waiting(1));
        server.remove_container(1);
        let replies = ask(&mut server, &kernel, &mut texts, &request(17, 1 << 50, 1, &[]));
        prop_assert_eq!(replies.len(), open.len() + 1);
    }
}

#[test]
fn a_kernel_that_is_too_old_is_refused() {
    let (mut server, kernel) = served();
    let mut init = [7_u32, 30, 0, 0].map(u32::to_ne_bytes).concat();
    send(&kernel, &request(26, 1, 0, &init), SendFlags::empty()).unwrap();
    let error = server.serve_some(&mut Texts::new()).unwrap_err();
    assert!(error.to_string().contains("version 7.30"), "{error}");
    init[4..8].copy_from_slice(&31_u32.to_ne_bytes());
    let replies = ask(&mut server, &kernel, &mut Texts::new(), &request(26, 2, 0, &init));
    assert_eq!((replies[1].0, replies[1].1, replies[1].2.len()), (2, 0, 64));
    assert_eq!(replies[0].1, -libc::EPROTO);
}

#[test]
fn a_flood_leaves_the_tables_small() {
    let (mut server, kernel) = served();
    let mut texts = Texts::new();
    texts.say(1, File::Cpuinfo, vec![b'x'; 100_000]);
    let cpuinfo = Node::Place(1, Place::File(File::Cpuinfo)).number();
    for unique in 1..3000_u64 {
        ask(&mut server, &kernel, &mut texts, &request(14, unique, cpuinfo, &[0; 8]));
        let mut body = [unique.to_ne_bytes(), 0_u64.to_ne_bytes()].concat();
        body.extend([100_u32, 2, 0, 0, 0, 0].map(u32::to_ne_bytes).concat());
        let replies = ask(&mut server, &kernel, &mut texts, &request(15, unique, cpuinfo, &body));
        assert_eq!(replies[0].2.len(), 100);
    }
    assert!(server.files.kept() <= 512 * 1024);
}
