//! One container that lives for long: whether it costs more in the end than at first.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use integration::host;
use integration::sandbox::{sandboxes_of, shim_above};

use crate::api::Api;
use crate::containers::Container;

/// How often each is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Execs.
    pub execs: u32,
    /// Updates of the limits.
    pub updates: u32,
    /// Pauses, each with its resume.
    pub pauses: u32,
    /// Bytes of output, in MiB.
    pub output: u32,
}

impl Times {
    /// As many as an hour of a busy cluster's pod.
    pub const MANY: Self = Self { execs: 10_000, updates: 1_000, pauses: 1_000, output: 1024 };
}

/// What the processes of one kind use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usage {
    /// KiB of memory, a page shared by N processes counting as the N-th part.
    memory: u64,
    descriptors: usize,
}

/// Lives, and prints what it used and took before and after. Returns whether that is level.
pub fn live(api: &Api<'_>, times: Times) -> bool {
    let mut container = Container::new(api, "long");
    let script = "trap : USR1; echo ready; while :; do sleep 1000 & wait; done";
    let Some(stdio) = container.create(&["sh", "-c", script], |_| ()) else { return false };
    if !container.start() {
        return false;
    }
    let init = container.life.init.load(Ordering::SeqCst);
    let Some(shim) = shim_above(init).map(|shim| shim.pid) else { return false };
    // What is made once, at the first of each, is there from then on.
    let tenth = times.execs.div_ceil(10);
    let mut chance = fastrand::Rng::with_seed(0);
    let first = container.take(tenth, &mut chance);
    container.is_paused();
    container.is_updated(&mut chance);
    let before = usage(shim);
    for _ in 0..times.updates {
        container.is_updated(&mut chance);
    }
    for _ in 0..times.pauses {
        container.is_paused();
    }
    for _ in 0..times.output.div_ceil(64) {
        container.floods(64);
    }
    let _ = container.take(times.execs.saturating_sub(2 * tenth), &mut chance);
    let last = container.take(tenth, &mut chance);
    let after = usage(shim);
    println!(
        "one container, {} execs, {} updates, {} pauses, {} MiB of output:",
        times.execs, times.updates, times.pauses, times.output
    );
    println!(
        "| process | KiB before | after | descriptors before | after |\n|---|---|---|---|---|"
    );
    let mut level = true;
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        println!(
            "| {name} | {} | {} | {} | {} |",
            before.memory, after.memory, before.descriptors, after.descriptors
        );
        // An allocator keeps some pages more or less.
        level &= after.descriptors <= before.descriptors + 2;
        level &= after.memory <= before.memory + before.memory / 4 + 128;
    }
    println!("an exec, 99 of 100: {first:?} at first, {last:?} in the end");
    drop(stdio);
    container.is_deleted();
    api.world.end(&container.life);
    level
}

/// Returns what the shim and boot use.
fn usage(shim: i32) -> Vec<(&'static str, Usage)> {
    let boot = sandboxes_of(shim).into_iter().next();
    let of = |pid: i32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let memory = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Usage { memory: memory.unwrap_or(0), descriptors: host::descriptors(pid).len() }
    };
    let boot = boot.map(|boot| ("boot", of(boot.pid)));
    [Some(("shim", of(shim))), boot].into_iter().flatten().collect()
}

impl Container<'_> {
    /// Runs execs, and returns the time that all but one in a hundred took at most.
    fn take(&mut self, number: u32, chance: &mut fastrand::Rng) -> Duration {
        let mut times: Vec<Duration> = (0..number)
            .map(|_| {
                let begun = Instant::now();
                self.exec(chance);
                begun.elapsed()
            })
            .collect();
        times.sort();
        let at = times.len().saturating_sub(1) * 99 / 100;
        times.get(at).copied().unwrap_or_default()
    }

    /// An exec prints some MiB.
    fn floods(&mut self, mebibytes: u32) {
        let bytes = mebibytes as usize * 1024 * 1024;
        let script = format!("head -c {bytes} /dev/zero");
        self.exec_with(&script, 0, |output| output.len() == bytes);
    }
}
