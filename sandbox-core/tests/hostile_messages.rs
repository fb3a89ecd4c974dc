//! Decodes messages as the shim does, from a boot that was taken over: any
//! bytes are a message or an error, never a panic, and decoding takes no more
//! memory than the packet has bytes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;
use sandbox_core::control::message::{Done, RawSocket, Upward};
use sandbox_core::control::refusal::{Answer, Caller, MAX_RECORD, Records, Refusal};
use sandbox_core::error::{Failure, FailureKind};
use sandbox_core::types::{Call, ProcessId};

/// An allocator that counts the bytes that this thread asks for.
struct Counting;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does all the work; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ASKED.try_with(|asked| asked.set(asked.get().saturating_add(layout.size())));
        // SAFETY: the caller keeps GlobalAlloc's contract, which is System's as well.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps GlobalAlloc's contract, which is System's as well.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Decodes as `Sandbox::receive` does. Returns the bytes of memory that it took
/// as well.
fn decode(bytes: &[u8]) -> (Option<Upward>, usize) {
    let before = ASKED.get();
    let message = postcard::from_bytes(bytes).ok();
    (message, ASKED.get() - before)
}

fn outcome() -> impl Strategy<Value = Result<Done, Failure>> {
    let process =
        any::<(bool, bool)>().prop_map(|(terminal, mounts)| Done::Process { terminal, mounts });
    let done = prop_oneof![Just(Done::Ok), process];
    let kind = prop_oneof![
        Just(FailureKind::Invalid),
        Just(FailureKind::NotFound),
        Just(FailureKind::Exists),
        Just(FailureKind::State),
        Just(FailureKind::Internal),
        Just(FailureKind::NoDescriptors)
    ];
    let failure = (kind, ".{0,300}").prop_map(|(kind, message)| Failure { kind, message });
    prop_oneof![done.prop_map(Ok), failure.prop_map(Err)]
}

fn message() -> impl Strategy<Value = Upward> {
    let reply =
        (any::<u64>(), outcome()).prop_map(|(number, outcome)| Upward::Reply { number, outcome });
    let exited = (".{0,300}", proptest::option::of(".{0,300}"), any::<u32>()).prop_map(
        |(container, exec, status)| Upward::Exited {
            process: ProcessId { container, exec },
            status,
        },
    );
    let socket = |(family, protocol): (usize, u8)| {
        let family = [libc::AF_PACKET, libc::AF_INET, libc::AF_INET6][family] as u64;
        RawSocket::of([family, libc::SOCK_RAW as u64, protocol.max(1).into(), 0, 0, 0])
            .expect("a raw socket")
    };
    let socket = (0..3_usize, any::<u8>()).prop_map(socket);
    let raw_socket = (any::<u64>(), ".{0,300}", socket)
        .prop_map(|(of, container, socket)| Upward::RawSocket { of, container, socket });
    let views = ".{0,300}".prop_map(|container| Upward::ViewSources { container });
    prop_oneof![reply, exited, raw_socket, views]
}

fn record(program: &str) -> Refusal {
    Refusal {
        container: "c".into(),
        caller: Caller { pid: 1, uid: 1, program: program.into() },
        call: Some(Call { audit: 1, number: 2, arguments: [u64::MAX; 6] }),
        answer: Answer::Watched,
        times: 1,
    }
}

/// A change that a fuzzer would make. The place is taken modulo the length.
#[derive(Clone, Debug)]
enum Change {
    Set(usize, u8),
    Insert(usize, Vec<u8>),
    Cut(usize),
    /// A wrong length, of up to 2^64 - 1, as postcard writes it.
    Length(usize, u64),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (any::<usize>(), proptest::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        any::<usize>().prop_map(Change::Cut),
        (any::<usize>(), any::<u64>()).prop_map(|(at, length)| Change::Length(at, length)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, change: Change) {
    let places = bytes.len() + 1;
    match change {
        Change::Set(at, byte) if !bytes.is_empty() => bytes[at % (places - 1)] = byte,
        Change::Set(..) => {}
        Change::Insert(at, new) => drop(bytes.splice(at % places..at % places, new)),
        Change::Cut(at) => bytes.truncate(at % places),
        Change::Length(at, length) => {
            let length = postcard::to_stdvec(&length).unwrap();
            let at = at % places;
            let end = (at + 1).min(bytes.len());
            drop(bytes.splice(at..end, length));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn an_encoded_message_is_decoded(message in message()) {
        let bytes = postcard::to_stdvec(&message).unwrap();
        prop_assert_eq!(decode(&bytes).0, Some(message));
    }

    /// The user log, cut in two anywhere.
    #[test]
    fn any_bytes_are_records_or_none(
        programs in proptest::collection::vec(".{0,100}", 0..20),
        changes in proptest::collection::vec(change(), 0..6),
        cut in any::<usize>()
    ) {
        let mut bytes: Vec<u8> =
            programs.iter().flat_map(|program| record(program).to_bytes().unwrap()).collect();
        let changed = !changes.is_empty();
        for change in changes {
            mutate(&mut bytes, change);
        }
        let (mut records, mut found) = (Records::default(), 0);
        let (one, two) = bytes.split_at(cut % (bytes.len() + 1));
        let before = ASKED.get();
        let taken = records.take(one, |_| found += 1).and_then(|()| records.take(two, |_| found += 1));
        // The buffer grows by doubling, up to a record's length.
        let asked = ASKED.get() - before;
        prop_assert!(asked <= 2 * bytes.len() + 4 * MAX_RECORD, "{} for {}", asked, bytes.len());
        prop_assert!(changed || (taken.is_ok() && found == programs.len()));
    }

    #[test]
    fn any_bytes_are_decoded_without_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000)
    ) {
        let (_, asked) = decode(&bytes);
        prop_assert!(asked <= bytes.len(), "{} bytes for {}", asked, bytes.len());
    }

    #[test]
    fn a_changed_message_is_decoded_without_harm(
        message in message(),
        changes in proptest::collection::vec(change(), 1..6)
    ) {
        let mut bytes = postcard::to_stdvec(&message).unwrap();
        for change in changes {
            mutate(&mut bytes, change);
        }
        let (decoded, asked) = decode(&bytes);
        prop_assert!(asked <= bytes.len(), "{} bytes for {}", asked, bytes.len());
        // The shim can encode any message that it decodes.
        if let Some(message) = decoded {
            prop_assert!(postcard::to_stdvec(&message).unwrap().len() <= bytes.len());
        }
    }
}
