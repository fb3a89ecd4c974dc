//! Any request at all, at a boot that serves and has given up what it does not need. It ends at
//! none of them, and replies to the next one that means something.
//!
//! Without `PALISADE_FUZZ_SECONDS`, which `ci/fuzz` sets, a few hundred that are always the same.

use std::fs;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox_core::control::encoding::Message;
use sandbox_core::control::message::{
    Donations, LogLevel, MAX_DESCRIPTORS, MAX_PACKET, Numbered, Request, Upward,
};
use sandbox_core::control::packet::{Received, receive_packet, send_packet};
use sandbox_core::spec::{self, ProcessDefaults};

use crate::{CAPACITY, Fixture, Pod, pipe, process};

/// So many for one boot: what they leave behind would add up.
const REQUESTS: u64 = 150;

/// The time that boot has for one.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// The number of the first request that means something, far from those of the others.
const OURS: u64 = 1 << 40;

pub fn any_request_leaves_a_confined_boot_up() {
    let variable = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = variable("PALISADE_FUZZ_SECONDS").map(Duration::from_secs);
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let seed =
        variable("PALISADE_FUZZ_SEED").unwrap_or_else(|| seconds.map_or(1, |_| clock() as u64));
    let mut random = Random(seed | 1);
    let began = Instant::now();
    let mut rounds = 0;
    while rounds < 2 || seconds.is_some_and(|seconds| began.elapsed() < seconds) {
        one_boot(&mut random, seed, rounds);
        rounds += 1;
    }
    eprintln!("{} requests to {rounds} boots", REQUESTS * rounds);
}

fn one_boot(random: &mut Random, seed: u64, round: u64) {
    let mut world = Fixture::new("any", &["busybox", "sleep", "1000"], |_| {});
    let pod = world.start();
    let (_output, stdout) = pipe();
    pod.create(stdout.as_fd()).unwrap();
    pod.call(Request::Start { container: pod.container() }, &[]).unwrap();
    is_confined(&pod);
    let honest = honest(&pod);
    let open = |path: &str| fs::File::open(path).unwrap();
    // None of which blocks who reads it.
    let files = [open("/dev/null"), open("/"), open("/proc/self/ns/net"), open("/proc/self/maps")];
    let of_sandbox = [stdout.as_fd(), pod.sandbox.pidfd()];
    let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).chain(of_sandbox).collect();
    for number in 0..REQUESTS {
        let bytes = changed(random, &honest);
        let most = if random.below(4) == 0 { MAX_DESCRIPTORS + 3 } else { 8 };
        let count = random.below(most);
        let with: Vec<_> =
            (0..count).map(|_| descriptors[random.below(descriptors.len())]).collect();
        let place =
            || format!("PALISADE_FUZZ_SEED={seed}, boot {round}, request {number}: {bytes:02x?}");
        send(&pod, random, &bytes, &with);
        if let Err(why) = answers(&pod, OURS + number) {
            panic!("{}: {why}{}", place(), pod.sandbox.describe_end());
        }
    }
}

/// Whether this is boot as it serves: with ten capabilities, and none that a program could gain.
fn is_confined(pod: &Pod) {
    let status = fs::read_to_string(format!("/proc/{}/status", pod.sandbox.pid().0)).unwrap();
    for (set, count) in [("CapPrm:", 10), ("CapEff:", 10), ("CapInh:", 0), ("CapBnd:", 10)] {
        let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
        let held = u64::from_str_radix(line.trim(), 16).unwrap();
        assert!(held.count_ones() <= count, "{set} {held:x}");
    }
}

/// Requests that mean something, or did before another one.
fn honest(pod: &Pod) -> Vec<Vec<u8>> {
    let container = pod.container();
    let exec = |args: &[&str], donations: Donations| {
        let process = spec::load_process(process(args).to_string().as_bytes()).unwrap();
        let plan = spec::plan_process(&process, &ProcessDefaults::of(&pod.plan)).unwrap();
        let (container, process) = (container.clone(), Box::new(plan));
        Request::Exec { container, exec: "e".into(), process, donations }
    };
    let none = Donations::default();
    let all = Donations { stdin: true, stdout: true, stderr: true, cgroup_procs: 2, ..none };
    let mut other = pod.plan.container.clone();
    other.id = "other".into();
    let mut pause = other.clone();
    pause.process = None;
    let create = |plan: &_, donations| Request::Create {
        plan: Box::new(Clone::clone(plan)),
        donations,
        capacity: CAPACITY,
    };
    let requests = [
        exec(&["busybox", "true"], none),
        exec(&["busybox", "sh", "-c", "echo $0; exit 3"], all),
        exec(&["busybox", "sleep", "1000"], Donations { cgroup_directory: true, ..none }),
        create(&pod.plan.container, none),
        create(&other, all),
        create(&pause, Donations { seccomp: Some(0), init_procs: true, ..none }),
        Request::Start { container: container.clone() },
        Request::Start { container: "other".into() },
        Request::ListenerHandedOver { of: OURS, refused: None },
        Request::ListenerHandedOver { of: 3, refused: Some("no agent".into()) },
        Request::Update { container: Some(container.clone()), capacity: CAPACITY },
        Request::SetLogLevel { level: LogLevel::Trace },
        Request::HeapProfile { every: NonZeroU32::new(4096) },
        Request::HeapProfile { every: None },
        Request::Delete { container },
        Request::Delete { container: "other".into() },
    ];
    let numbered = requests.into_iter().map(|request| Numbered { number: 1, request });
    numbered.map(|numbered| numbered.encode().unwrap()).collect()
}

/// Returns a request with up to eight changes of those that a fuzzer makes.
fn changed(random: &mut Random, honest: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = honest[random.below(honest.len())].clone();
    for _ in 0..random.below(9) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes[at] = random.next() as u8,
            3 => bytes.truncate(at),
            // A length or a number of up to 2^64 - 1, as postcard writes it.
            4 => drop(bytes.splice(at..at, vec![0xff; random.below(10)])),
            5 => {
                let other = &honest[random.below(honest.len())];
                let from = random.below(other.len());
                drop(bytes.splice(at.., other[from..].iter().copied()));
            }
            _ => {
                let again = bytes[at..bytes.len().min(at + random.below(200))].to_vec();
                drop(bytes.splice(at..at, again));
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
    bytes
}

/// Sends a packet: in a memfd if it is long, and now and then one whose first byte is as wild.
fn send(pod: &Pod, random: &mut Random, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let control = pod.sandbox.control();
    if random.below(20) == 0 {
        rustix::net::send(control, bytes, rustix::net::SendFlags::NOSIGNAL).unwrap();
    } else {
        send_packet(control, bytes, descriptors).unwrap();
    }
}

/// Waits until boot replies to an honest request, whatever it sends before.
fn answers(pod: &Pod, number: u64) -> Result<(), String> {
    let honest = Request::Update { container: None, capacity: CAPACITY };
    let bytes = Numbered { number, request: honest }.encode().map_err(|e| e.to_string())?;
    send_packet(pod.sandbox.control(), &bytes, &[]).map_err(|e| e.to_string())?;
    loop {
        let received = receive_packet(pod.sandbox.control(), MAX_PACKET, MAX_DESCRIPTORS);
        match received.map_err(|e| e.to_string())? {
            Received::Packet { bytes, fds, .. } => {
                drop(fds.take());
                let message = Upward::decode(&bytes).map_err(|e| e.to_string())?;
                if matches!(message, Upward::Reply { number: of, .. } if of == number) {
                    return Ok(());
                }
            }
            Received::WouldBlock => {
                let control = pod.sandbox.control();
                if poll(&mut [PollFd::new(&control, PollFlags::IN)], Some(&PATIENCE)) != Ok(1) {
                    let boot = format!("/proc/{}", pod.sandbox.pid().0);
                    let stack = fs::read_to_string(format!("{boot}/stack")).unwrap_or_default();
                    return Err(format!("boot does not reply, and is here:\n{stack}"));
                }
            }
            Received::Closed => return Err("boot has ended".into()),
        }
    }
}

/// Numbers that look random: xorshift, by Marsaglia.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end.max(1)
    }
}
