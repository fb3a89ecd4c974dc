//! Profiles: how often, or how long, a stack was seen.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;

use crate::images::Place;
use crate::perf::{Outcome, Recording, Sampled, Seen, Trigger, Wanted, Watched};
use crate::symbols::{Function, Symbols};
use crate::unwind::{Memory, Registers};
use crate::walk::Walker;

/// The largest frequency, which costs every CPU that is busy some percent.
pub const MOST_SAMPLES: u64 = 1000;

/// Who was seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Who {
    /// The index of the container.
    pub container: usize,
    /// The process, as the host numbers it.
    pub pid: i32,
    /// The thread.
    pub tid: i32,
}

/// What was measured of one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// How often it was seen.
    pub count: u64,
    /// Nanoseconds; of a heap profile, bytes.
    pub time: u64,
}

/// A stack, the innermost frame first, and who had it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    who: Who,
    stack: Vec<Place>,
    /// What was waited for.
    detail: Option<Detail>,
}

/// What a thread waited for, as far as it is known when it begins to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Detail {
    /// It would have gone on, but others had the CPU.
    Cpu,
    /// Whatever its stack in the kernel says.
    Stack,
    /// A lock of the program's at this address.
    Lock(u64),
}

/// Gathers stacks.
#[derive(Default)]
pub struct Gathered {
    walker: Walker,
    names: HashMap<i32, String>,
    found: HashMap<Key, Weight>,
}

/// One line of a profile.
#[derive(Clone, Debug)]
pub struct Line {
    /// Who.
    pub who: Who,
    /// The name of the thread.
    pub thread: String,
    /// What was waited for.
    pub detail: Option<String>,
    /// The stack, the innermost first.
    pub stack: Vec<Function>,
    /// What was measured.
    pub weight: Weight,
}

/// A profile whose functions have their names.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The heaviest first.
    pub lines: Vec<Line>,
    /// How the recording went.
    pub outcome: Outcome,
}

/// Samples what containers do on the CPUs.
///
/// # Errors
/// Fails if the kernel counts no events for them.
pub fn cpu(
    containers: &[Watched],
    frequency: u64,
    duration: Duration,
    stop: &AtomicBool,
) -> Result<Profile> {
    let wanted = Wanted { stacks: true, user_stack: true, ..Wanted::default() };
    let trigger = Trigger::Cpu { frequency };
    let mut recording = Recording::open(containers, &[(trigger, wanted)])?;
    let mut gathered = Gathered::default();
    let each = 1_000_000_000 / frequency.max(1);
    let outcome = recording.run(duration, stop, |seen| {
        if let Seen::Sample(sampled) = seen
            && let Some((who, stack)) = gathered.stack(&sampled)
        {
            gathered.add(who, stack, None, Weight { count: 1, time: each });
        }
    })?;
    Ok(gathered.finish(outcome))
}

impl Gathered {
    /// Learns what is to be known of a process, before it ends.
    pub(crate) fn learn(&mut self, pid: i32) {
        self.walker.learn(pid);
        self.names.entry(pid).or_insert_with(|| crate::status::name(pid));
    }

    /// Returns the stack of a process whose registers and memory were copied.
    pub(crate) fn copied(
        &mut self,
        pid: i32,
        registers: Registers,
        memory: &mut impl Memory,
    ) -> Vec<Place> {
        self.walker.copied(pid, registers, memory).user
    }

    /// Adds a stack.
    pub(crate) fn add(
        &mut self,
        who: Who,
        stack: Vec<Place>,
        detail: Option<Detail>,
        weight: Weight,
    ) {
        let tid = who.tid;
        self.names.entry(tid).or_insert_with(|| crate::status::name(tid));
        let sum = self.found.entry(Key { who, stack, detail }).or_default();
        sum.count += weight.count;
        sum.time += weight.time;
    }

    /// Returns who a sample is of, and its stack.
    pub(crate) fn stack(&mut self, sampled: &Sampled<'_>) -> Option<(Who, Vec<Place>)> {
        let sample = sampled.sample;
        let number = |number: Option<u32>| number.and_then(|n| i32::try_from(n).ok());
        let (pid, tid) = (number(sample.pid())?, number(sample.tid())?);
        let who = Who { container: sampled.container, pid, tid };
        let walked = self.walker.sample(pid, sample);
        Some((who, [walked.kernel, walked.user].concat()))
    }

    /// Gives the functions their names.
    pub(crate) fn finish(self, outcome: Outcome) -> Profile {
        let mut symbols = Symbols::default();
        let Self { walker: Walker { images, .. }, names, found } = self;
        let mut lines: Vec<Line> = found
            .into_iter()
            .map(|(Key { who, stack, detail }, weight)| {
                let functions: Vec<Function> =
                    stack.iter().flat_map(|place| symbols.at(&images, *place).to_vec()).collect();
                let detail = detail.map(|detail| crate::waits::text(detail, &functions));
                let thread = names.get(&who.tid).cloned().unwrap_or_default();
                Line { who, thread, detail, stack: functions, weight }
            })
            .collect();
        lines.sort_by(|a, b| {
            let heavier = (b.weight.time, b.weight.count).cmp(&(a.weight.time, a.weight.count));
            heavier.then_with(|| (&a.who, &a.stack).cmp(&(&b.who, &b.stack)))
        });
        Profile { lines, outcome }
    }
}

impl Profile {
    /// Returns the sum of all lines.
    pub fn total(&self) -> Weight {
        self.lines.iter().fold(Weight::default(), |sum, line| Weight {
            count: sum.count + line.weight.count,
            time: sum.time + line.weight.time,
        })
    }
}
