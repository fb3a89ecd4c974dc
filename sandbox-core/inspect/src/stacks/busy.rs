//! Threads that run. Each has an event of the kernel's clock (perf_event_open(2)) for a moment, which
//! takes a sample as soon as the thread is on a CPU.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use perf_event::Sampler;
use perf_event::data::Record;

use super::blocked::Read;
use super::{Found, Looker, Thread};
use crate::perf;

/// The most threads that have an event at a time.
const AT_ONCE: usize = 64;

/// The most threads that are sampled.
const MOST: usize = 1024;

/// How long a thread is given to get a CPU.
const PATIENCE: Duration = Duration::from_millis(250);

/// How often it is looked.
const TICK: Duration = Duration::from_millis(5);

/// A thread with the index of its process.
type Busy = (usize, Box<Thread>);

impl Looker {
    /// Samples threads. Passes `None` on for one that has ended.
    pub(super) fn busy(
        &mut self,
        threads: Vec<Busy>,
        stop: &AtomicBool,
        mut pass_on: impl FnMut(Option<Found>),
    ) {
        let mut left: VecDeque<Busy> = threads.into();
        let mut sampled = 0;
        while !left.is_empty() && !stop.load(Ordering::Relaxed) {
            let some: Vec<Busy> = left.drain(..left.len().min(AT_ONCE)).collect();
            sampled += some.len();
            if sampled > MOST {
                for (index, mut thread) in some {
                    let why = format!("it runs, and so do more than {MOST} others");
                    thread.ends_early = Some(why);
                    pass_on(Some(Found::Thread(index, thread)));
                }
                continue;
            }
            self.sample(some, stop, &mut pass_on);
        }
    }

    fn sample(
        &mut self,
        threads: Vec<Busy>,
        stop: &AtomicBool,
        pass_on: &mut impl FnMut(Option<Found>),
    ) {
        let mut open: Vec<(Busy, Sampler)> = Vec::new();
        for (index, mut thread) in threads {
            pass_on(Some(Found::Begins(index, thread.tid)));
            match perf::of_thread(thread.tid) {
                Ok(sampler) => open.push(((index, thread), sampler)),
                Err(error) => {
                    thread.ends_early = Some(format!("it runs, and cannot be sampled: {error:#}"));
                    pass_on(self.later(index, thread));
                }
            }
        }
        let begun = Instant::now();
        while !open.is_empty() && begun.elapsed() < PATIENCE && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
            let looked = std::mem::take(&mut open);
            for ((index, mut thread), mut sampler) in looked {
                match self.take(&mut thread, &mut sampler) {
                    true => pass_on(Some(Found::Thread(index, thread))),
                    false => open.push(((index, thread), sampler)),
                }
            }
        }
        for ((index, mut thread), _) in open {
            let time = PATIENCE.as_millis();
            let why = format!("it was ready to run, but was on no CPU within {time} ms");
            thread.ends_early = Some(why);
            pass_on(self.later(index, thread));
        }
    }

    /// Takes a sample, if there is one.
    fn take(&mut self, thread: &mut Thread, sampler: &mut Sampler) -> bool {
        while let Some(record) = sampler.next_record() {
            if let Ok(Record::Sample(sample)) = record.parse_record() {
                let walked = self.walker.sample(thread.pid, &sample);
                self.fill(thread, walked);
                return true;
            }
        }
        false
    }

    /// Looks once more at a thread of which no sample was taken: it may wait by now, or have ended.
    fn later(&mut self, index: usize, thread: Box<Thread>) -> Option<Found> {
        Some(Found::Thread(
            index,
            match self.blocked(thread.pid, thread.tid)? {
                Read::Waits(now) => now,
                Read::Runs(_) => thread,
            },
        ))
    }
}
