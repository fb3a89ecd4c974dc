//! Records what the threads of a pod do, as a trace that Perfetto opens: on CPUs, in system calls,
//! in page faults and at disks.
//!
//! | file | content |
//! |---|---|
//! | `tracefs.rs` | a buffer of the kernel's tracer, of our own and only for the pod's threads |
//! | `ring.rs` | the records in the pages of that buffer |
//! | `format.rs` | where the fields of a record are |
//! | `timeline.rs` | makes slices and moments of records |
//! | `threads.rs` | knows the threads, their processes and containers |
//! | `perfetto.rs` | the messages of Perfetto's that are written |
//!
//! The kernel writes records into a buffer of fixed size, and counts those for which there was no
//! room. We read it many times a second and write at once, so our own memory does not grow with
//! the trace. Nothing of it is there before and after: the buffer is removed, and the file system
//! of the tracer is mounted nowhere.

mod format;
mod perfetto;
mod ring;
mod threads;
mod timeline;
mod tracefs;

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::Result;
use sandbox_core::cgroup::Cgroup;
use serde::Serialize;

use perfetto::Writer;
use ring::Record;
use threads::Threads;
use timeline::Timeline;
use tracefs::Buffer;

pub(crate) use tracefs::tracepoint;

/// What is recorded.
#[derive(Debug)]
pub struct Wanted {
    /// The name of the whole: the pod's.
    pub name: String,
    /// The containers.
    pub containers: Vec<Traced>,
    /// The host PID of boot.
    pub boot: Option<i32>,
    /// Whether what boot does is recorded too. It makes the processes of execs.
    pub with_boot: bool,
    /// How long.
    pub duration: Duration,
    /// The size at which the file ends.
    pub limit: u64,
}

/// A container whose threads are recorded.
#[derive(Debug)]
pub struct Traced {
    /// What it is called in the trace.
    pub name: String,
    /// The cgroup that its processes are in.
    pub cgroup: Cgroup,
}

/// What happened to a container, as its shim reports it.
#[derive(Clone, Debug)]
pub struct Event {
    /// Since the start of the machine ([`now`]).
    pub at: u64,
    /// One or two words.
    pub name: String,
    /// All that is known.
    pub detail: String,
}

/// Why a trace ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The time was over.
    Time,
    /// The file has the size that it may have.
    Full,
    /// Somebody stopped it.
    Stopped,
    /// No process is left.
    PodEnded,
}

/// What was recorded.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Recorded {
    /// Why it ended.
    pub ended: Ended,
    /// The number of records.
    pub records: u64,
    /// The number of records for which there was no room in the kernel's buffer.
    pub lost: u64,
    /// The size of the file.
    pub bytes: u64,
    /// The time from the first to the last moment, in seconds.
    pub seconds: f64,
    /// The number of threads.
    pub threads: usize,
}

/// The time between two looks at the buffers.
const PAUSE: Duration = Duration::from_millis(20);
/// The time between two looks for processes that came by another way than a fork.
const NEWCOMERS: Duration = Duration::from_millis(200);

/// Returns the time since the start of the machine in nanoseconds, as traces count it.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Records into a file, until one of [`Ended`].
///
/// # Errors
/// The error says what the kernel refuses, and what to do. What was recorded until then is written.
pub fn record(
    wanted: &Wanted,
    file: File,
    stop: &AtomicBool,
    events: &Receiver<Event>,
) -> Result<Recorded> {
    let mut threads = Threads::find(wanted)?;
    let began = now();
    let mut buffer = Buffer::begin(&threads.ids())?;
    let begun = Instant::now();
    let mut timeline = Timeline::new(Writer::new(file), wanted, buffer.formats());
    timeline.describe(&mut threads)?;
    timeline.begin(&wanted.name, &threads, began)?;
    let mut looked = Instant::now();
    let mut kept: Vec<Record> = Vec::new();
    let ended = loop {
        std::thread::sleep(PAUSE);
        // Records from here on can be in a buffer while an earlier one of another CPU is not read.
        let until = now();
        buffer.read(&mut kept)?;
        hand_over(&mut kept, until, &mut timeline, &mut threads)?;
        for event in events.try_iter() {
            timeline.happened(&event)?;
        }
        if looked.elapsed() > NEWCOMERS {
            let newcomers = threads.look_again(wanted);
            buffer.add(&newcomers)?;
            timeline.describe(&mut threads)?;
            looked = Instant::now();
        }
        let reasons = [
            (stop.load(Ordering::Relaxed), Ended::Stopped),
            (begun.elapsed() >= wanted.duration, Ended::Time),
            (timeline.written() >= wanted.limit, Ended::Full),
            (threads.all_ended(), Ended::PodEnded),
        ];
        if let Some((_, reason)) = reasons.into_iter().find(|(holds, _)| *holds) {
            break reason;
        }
    };
    buffer.stop()?;
    let seconds = begun.elapsed().as_secs_f64();
    if ended != Ended::Full {
        buffer.read(&mut kept)?;
        hand_over(&mut kept, u64::MAX, &mut timeline, &mut threads)?;
        for event in events.try_iter() {
            timeline.happened(&event)?;
        }
    }
    let lost = buffer.lost();
    let (records, bytes) = timeline.finish(lost, now())?;
    Ok(Recorded { ended, records, lost, bytes, seconds, threads: threads.count() })
}

/// Hands the records before a moment to the timeline, in the order of time.
fn hand_over(
    kept: &mut Vec<Record>,
    until: u64,
    timeline: &mut Timeline,
    threads: &mut Threads,
) -> Result<()> {
    kept.sort_by_key(|record| record.time);
    let end = kept.partition_point(|record| record.time < until);
    timeline.take(kept.drain(..end), threads)
}
