//! Writes what was refused into the pipe of `--user-log-fd`, where the shim reads it. Nothing here
//! waits, and all is bounded: what does not fit into the pipe stays a number.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::thread_status::ThreadStatus;
use crate::control::refusal::{Answer, Caller, Refusal};
use crate::error::{Context, Result};
use crate::types::Call;

/// The calls of a container that are kept apart.
const MOST: usize = 32;

/// The number of new calls that are written at once, and the time after which one more may be.
const AT_ONCE: u32 = 20;
const ONE_MORE: Duration = Duration::from_secs(1);

/// The number of repeats that is written before the container ends.
const REPEATS: u64 = 1000;

/// The longest name of a program (`TASK_COMM_LEN` is 16).
const LONGEST_NAME: usize = 64;

/// The user log, if there is one.
pub(super) struct UserLog {
    pipe: Option<OwnedFd>,
    containers: HashMap<String, Seen>,
}

/// What was refused to one container.
struct Seen {
    calls: Vec<Entry>,
    /// Calls of which only the number is kept.
    others: u64,
    left: u32,
    since: Instant,
}

/// A call that was written.
struct Entry {
    call: Call,
    answer: Answer,
    caller: Caller,
    /// The thread that made it last.
    thread: i32,
    /// How often since it was written.
    times: u64,
}

impl UserLog {
    /// Takes the pipe, which it makes non-blocking: the shim's end stays as it is.
    pub(super) fn new(pipe: Option<OwnedFd>) -> Result<Self> {
        if let Some(pipe) = &pipe {
            rustix::io::ioctl_fionbio(pipe, true).context(|| "make the user log nonblocking")?;
        }
        Ok(Self { pipe, containers: HashMap::new() })
    }

    /// Writes or counts a call of a container's thread, which waits for its answer meanwhile.
    pub(super) fn note(&mut self, container: &str, thread: i32, call: Call, answer: Answer) {
        let Some(pipe) = &self.pipe else { return };
        if !self.containers.contains_key(container) {
            self.containers.insert(container.to_owned(), Seen::new());
        }
        let Some(seen) = self.containers.get_mut(container) else { return };
        let known = |entry: &&mut Entry| {
            entry.thread == thread && entry.answer == answer && entry.call == call
        };
        if let Some(entry) = seen.calls.iter_mut().find(known) {
            return entry.count(container, pipe);
        }
        let caller = caller(thread);
        let same = |entry: &&mut Entry| {
            entry.answer == answer
                && is_like(&entry.call, &call)
                && entry.caller.program == caller.program
        };
        if let Some(entry) = seen.calls.iter_mut().find(same) {
            entry.thread = thread;
            return entry.count(container, pipe);
        }
        if !seen.may_write() {
            return seen.count_other(container, pipe);
        }
        if seen.calls.len() >= MOST {
            let mut oldest = seen.calls.remove(0);
            oldest.write(container, pipe);
            seen.others = seen.others.saturating_add(oldest.times);
        }
        let mut entry = Entry { call, answer, caller, thread, times: 1 };
        entry.write(container, pipe);
        seen.calls.push(entry);
    }

    /// Writes all numbers of a container whose init has ended, and forgets it.
    pub(super) fn ended(&mut self, container: &str) {
        let (Some(pipe), Some(mut seen)) = (&self.pipe, self.containers.remove(container)) else {
            return;
        };
        for entry in &mut seen.calls {
            entry.write(container, pipe);
        }
        seen.write_others(container, pipe);
    }
}

impl Seen {
    fn new() -> Self {
        Self { calls: Vec::new(), others: 0, left: AT_ONCE, since: Instant::now() }
    }

    /// Takes the permission to write about one more call, if there is one.
    fn may_write(&mut self) -> bool {
        while self.left < AT_ONCE && self.since.elapsed() >= ONE_MORE {
            self.since += ONE_MORE;
            self.left += 1;
        }
        if self.left == AT_ONCE {
            self.since = Instant::now();
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    fn count_other(&mut self, container: &str, pipe: &OwnedFd) {
        self.others = self.others.saturating_add(1);
        if self.others.is_multiple_of(REPEATS) {
            self.write_others(container, pipe);
        }
    }

    fn write_others(&mut self, container: &str, pipe: &OwnedFd) {
        let record = Refusal {
            container: container.to_owned(),
            caller: Caller::default(),
            call: None,
            answer: Answer::Refused(0),
            times: self.others,
        };
        if self.others > 0 && write(pipe, &record) {
            self.others = 0;
        }
    }
}

impl Entry {
    fn count(&mut self, container: &str, pipe: &OwnedFd) {
        self.times = self.times.saturating_add(1);
        if self.times.is_multiple_of(REPEATS) {
            self.write(container, pipe);
        }
    }

    fn write(&mut self, container: &str, pipe: &OwnedFd) {
        let record = Refusal {
            container: container.to_owned(),
            caller: self.caller.clone(),
            call: Some(self.call),
            answer: self.answer,
            times: self.times,
        };
        if self.times > 0 && write(pipe, &record) {
            self.times = 0;
        }
    }
}

/// Writes a record. Returns whether there was room for it.
fn write(pipe: &OwnedFd, record: &Refusal) -> bool {
    let bytes = record.to_bytes().unwrap_or_default();
    !bytes.is_empty() && rustix::io::write(pipe, &bytes).is_ok_and(|length| length == bytes.len())
}

/// Whether two calls differ at most in arguments that look like pointers.
fn is_like(one: &Call, other: &Call) -> bool {
    let points = |argument: u64| !matches!(argument >> 32, 0 | 0xffff_ffff);
    let same = |(a, b): (&u64, &u64)| a == b || points(*a) && points(*b);
    (one.audit, one.number) == (other.audit, other.number)
        && one.arguments.iter().zip(&other.arguments).all(same)
}

/// Finds out who a thread is; all fields are empty if it is gone.
fn caller(thread: i32) -> Caller {
    let Some(status) = ThreadStatus::of(thread) else { return Caller::default() };
    let words = |field| status.field(field).unwrap_or_default().split_whitespace();
    // The kernel escapes these two.
    let name = status.field("Name").unwrap_or_default().replace("\\n", "\n").replace("\\\\", "\\");
    Caller {
        program: name.chars().take(LONGEST_NAME).collect(),
        // The second is the effective one.
        uid: words("Uid").nth(1).and_then(|id| id.parse().ok()).unwrap_or_default(),
        // The last is that of its own PID namespace.
        pid: words("NSpid").next_back().and_then(|pid| pid.parse().ok()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe_with};

    use super::*;
    use crate::control::refusal::Records;

    const CALL: Call = Call { audit: 1, number: 2, arguments: [0x7fff_1234_5678, 2, 3, 0, 0, 0] };
    const EPERM: Answer = Answer::Refused(1);

    fn log() -> (UserLog, OwnedFd) {
        let (read_end, write_end) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        (UserLog::new(Some(write_end)).unwrap(), read_end)
    }

    fn written(pipe: &OwnedFd) -> Vec<Refusal> {
        let (mut records, mut found, mut buffer) = (Records::default(), Vec::new(), [0; 4096]);
        while let Ok(length @ 1..) = rustix::io::read(pipe, &mut buffer) {
            records.take(&buffer[..length], |record| found.push(record)).unwrap();
        }
        found
    }

    fn own_thread() -> i32 {
        rustix::thread::gettid().as_raw_pid()
    }

    #[test]
    fn a_call_is_written_once_and_then_counted() {
        let (mut log, pipe) = log();
        for i in 0..500 {
            let mut arguments = CALL.arguments;
            arguments[0] += i << 8;
            log.note("c", own_thread(), Call { arguments, ..CALL }, EPERM);
        }
        let first = written(&pipe);
        assert_eq!(first.len(), 1);
        assert_eq!((first[0].times, first[0].call), (1, Some(CALL)));
        let caller = &first[0].caller;
        assert!(caller.pid > 0 && !caller.program.is_empty(), "{caller:?}");
        log.ended("c");
        let rest = written(&pipe);
        assert_eq!((rest.len(), rest[0].times), (1, 499));
        log.ended("c");
        assert!(written(&pipe).is_empty());
    }

    #[test]
    fn calls_without_end_are_a_number() {
        let (mut log, pipe) = log();
        for number in 0..100_000 {
            log.note("c", -1, Call { number, ..CALL }, EPERM);
        }
        log.ended("c");
        let records = written(&pipe);
        assert!(records.len() < 150, "{}", records.len());
        let sum: u64 = records.iter().map(|record| record.times).sum();
        assert_eq!(sum, 100_000);
    }

    #[test]
    fn a_full_pipe_loses_no_number() {
        let (mut log, pipe) = log();
        let room = fcntl_getpipe_size(&pipe).unwrap();
        let filler = log.pipe.as_ref().unwrap().try_clone().unwrap();
        while rustix::io::write(&filler, &vec![0; room]).is_ok() {}
        for _ in 0..10 {
            log.note("c", own_thread(), CALL, EPERM);
        }
        let mut buffer = vec![0; room];
        while rustix::io::read(&pipe, &mut buffer).is_ok() {}
        log.ended("c");
        assert_eq!(written(&pipe)[0].times, 10);
    }
}
