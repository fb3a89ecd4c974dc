//! The load of a container, and `/proc/loadavg`.
//!
//! The kernel looks every five seconds how many threads run or wait for a disk, and lets the
//! averages decay (`kernel/sched/loadavg.c`). Nobody looks here while nobody reads. At a look the
//! steps since the last one are made at once: for the last of them counts what is seen now, for
//! those before how many CPUs the container has kept busy in that time.

use std::io;
use std::time::{Duration, Instant};

use crate::views::host::Host;
use crate::views::kernel_file::nonsense;
use crate::views::sources::{CpuTime, Sources};

/// The bits after the point of the kernel's averages.
const BITS: u32 = 11;
const ONE: u64 = 1 << BITS;
/// What is left of 1 after five seconds, for the averages of 1, 5 and 15 minutes.
const DECAYS: [u64; 3] = [1884, 2014, 2037];
const STEP: Duration = Duration::from_secs(5);

/// The averages, and what they are made of.
#[derive(Debug)]
pub(super) struct Load {
    averages: [u64; 3],
    /// The time up to which steps were made.
    at: Instant,
    /// The CPU time used, in microseconds, and when that was read.
    used: (u64, Instant),
    sample: Option<(Instant, Running)>,
}

/// The threads of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Running {
    /// Those that run or want to.
    pub(super) runnable: u64,
    /// Those that wait for a disk or the like and cannot be disturbed.
    pub(super) blocked: u64,
    /// All.
    pub(super) all: u64,
    /// Those that were looked at.
    looked_at: u64,
}

impl Running {
    /// Returns the number of those that run, as the reader of a file sees it: it ran itself, if
    /// it did not wait for us.
    pub(super) fn runnable_with_reader(self) -> u64 {
        self.runnable.saturating_add(1).min(self.all.max(1))
    }
}

impl Load {
    /// Returns the load of a container that began at this time.
    pub(super) fn since(at: Instant) -> Load {
        Load { averages: [0; 3], at, used: (0, at), sample: None }
    }

    /// Looks at the container's threads, and makes the steps since the last look. `None` if
    /// nothing lists them.
    pub(super) fn look(
        &mut self,
        sources: &Sources,
        host: &Host,
        now: Instant,
    ) -> io::Result<Option<Running>> {
        let Some(running) = self.running(sources, host, now)? else {
            return Ok(None);
        };
        let steps = now.saturating_duration_since(self.at).as_secs() / STEP.as_secs();
        if steps > 0 {
            let used = sources.cpu_time()?;
            self.step(steps, running, now, used.map(CpuTime::sum));
        }
        Ok(Some(running))
    }

    /// Makes steps. Without a CPU time, what is seen now counts for all of them.
    fn step(&mut self, steps: u64, running: Running, now: Instant, used: Option<u64>) {
        let seen = running.runnable.saturating_add(running.blocked).saturating_mul(ONE);
        let (before, since) = self.used;
        let busy = used.map(|used| {
            let ran = u128::from(used.saturating_sub(before)) * u128::from(ONE);
            let passed = now.saturating_duration_since(since).as_micros().max(1);
            u64::try_from(ran / passed).unwrap_or(u64::MAX)
        });
        // All may be in cgroups that the container has made below its own.
        let active = if running.looked_at > 0 { seen } else { busy.unwrap_or(seen) };
        for (average, decay) in self.averages.iter_mut().zip(DECAYS) {
            let before = decayed(*average, power(decay, steps - 1), busy.unwrap_or(active));
            *average = decayed(before, decay, active);
        }
        self.at += STEP * u32::try_from(steps).unwrap_or(u32::MAX);
        self.used = (used.unwrap_or(0), now);
    }

    /// Counts the threads that run by looking at some. A look at `n` threads counts for `n`
    /// milliseconds, so that it takes little of boot's time however often somebody reads.
    fn running(
        &mut self,
        sources: &Sources,
        host: &Host,
        now: Instant,
    ) -> io::Result<Option<Running>> {
        if let Some((at, running)) = self.sample
            && now.saturating_duration_since(at) < Duration::from_millis(running.looked_at)
        {
            return Ok(Some(running));
        }
        let Some(threads) = sources.threads(host)? else {
            return Ok(None);
        };
        let (mut runnable, mut blocked, mut looked_at) = (0, 0, 0);
        for state in threads.some.iter().filter_map(|thread| host.state_of(*thread)) {
            looked_at += 1;
            match state {
                b'R' => runnable += 1,
                b'D' => blocked += 1,
                _ => {}
            }
        }
        let scaled = |count: u64| {
            let all = u128::from(count) * u128::from(threads.all.max(looked_at));
            u64::try_from((all + u128::from(looked_at / 2)) / u128::from(looked_at.max(1)))
                .unwrap_or(u64::MAX)
        };
        let (runnable, blocked) = (scaled(runnable), scaled(blocked));
        let running = Running { runnable, blocked, all: threads.all, looked_at };
        self.sample = Some((now, running));
        Ok(Some(running))
    }

    /// Returns the averages with this many bits after the point.
    pub(super) fn averages(&self, bits: u32) -> [u64; 3] {
        self.averages.map(|average| average << (bits - BITS))
    }
}

/// Returns the average after a time in which so many were active, as `calc_load` of the kernel.
fn decayed(average: u64, decay: u64, active: u64) -> u64 {
    let sum =
        u128::from(average) * u128::from(decay) + u128::from(active) * u128::from(ONE - decay);
    let up = if active >= average { u128::from(ONE - 1) } else { 0 };
    u64::try_from((sum + up) >> BITS).unwrap_or(u64::MAX)
}

/// Returns `decay` to the power of `steps`, as `fixed_power_int` of the kernel.
fn power(mut decay: u64, mut steps: u64) -> u64 {
    let mut result = ONE;
    let round = |product: u64| (product + (ONE >> 1)) >> BITS;
    while steps > 0 {
        if steps & 1 == 1 {
            result = round(result * decay);
        }
        steps >>= 1;
        decay = round(decay * decay);
    }
    result
}

/// Returns the text of `/proc/loadavg`.
pub(super) fn text(
    sources: &Sources,
    host: &mut Host,
    load: &mut Load,
    now: Instant,
) -> io::Result<String> {
    let Some(running) = load.look(sources, host, now)? else {
        return host.read("loadavg");
    };
    let [one, five, fifteen] = load.averages(BITS).map(|average| {
        let rounded = average.saturating_add(ONE / 200);
        format!("{}.{:02}", rounded >> BITS, ((rounded & (ONE - 1)) * 100) >> BITS)
    });
    let (runnable, all) = (running.runnable_with_reader(), running.all);
    Ok(format!("{one} {five} {fifteen} {runnable}/{all} {}\n", last_pid(host)?))
}

/// Returns what the kernel's `loadavg` says of the machine: the averages with this many bits
/// after the point, and the number of threads.
pub(super) fn of_machine(host: &mut Host, bits: u32) -> io::Result<([u64; 3], u64)> {
    let text = host.read("loadavg")?;
    let wrong = || nonsense(format!("loadavg: expected averages and threads, found {text:?}"));
    let mut fields = text.split_ascii_whitespace();
    let mut averages = [0; 3];
    for average in &mut averages {
        let (whole, hundredths) =
            fields.next().and_then(|f| f.split_once('.')).ok_or_else(wrong)?;
        let number = |digits: &str| digits.parse::<u32>().map(u64::from).map_err(|_| wrong());
        *average = (number(whole)? << bits) + (number(hundredths)? << bits) / 100;
    }
    let threads = fields.next().and_then(|field| field.split_once('/')?.1.parse().ok());
    Ok((averages, threads.ok_or_else(wrong)?))
}

/// Returns the last process ID that the kernel has assigned in boot's PID namespace, the last
/// field of its `loadavg`.
pub(super) fn last_pid(host: &mut Host) -> io::Result<u64> {
    let text = host.read("loadavg")?;
    let last = text.split_ascii_whitespace().last().and_then(|last| last.parse().ok());
    last.ok_or_else(|| nonsense(format!("loadavg: expected a process ID at the end of {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(runnable: u64) -> Running {
        Running { runnable, blocked: 0, all: 10, looked_at: 10 }
    }

    /// Makes steps at the end of the time that they take.
    fn step(load: &mut Load, steps: u64, running: Running, used: Option<u64>) {
        let now = load.at + STEP * u32::try_from(steps).unwrap();
        load.step(steps, running, now, used);
    }

    #[test]
    fn one_step_is_the_kernels() {
        let mut load = Load::since(Instant::now());
        step(&mut load, 1, running(2), None);
        // calc_load: (0 * EXP + 2 * 2048 * (2048 - EXP) + 2047) / 2048.
        assert_eq!(load.averages, [328, 68, 22]);
        assert_eq!(load.averages(16), [328 << 5, 68 << 5, 22 << 5]);
    }

    #[test]
    fn many_steps_at_once_are_as_many_steps() {
        for (runnable, steps) in [(3, 7), (1, 60), (8, 500), (0, 13)] {
            let begin = [1000, 2000, 3000];
            let now = Instant::now();
            let (mut at_once, mut singly) = (Load::since(now), Load::since(now));
            (at_once.averages, singly.averages) = (begin, begin);
            step(&mut at_once, steps, running(runnable), None);
            (0..steps).for_each(|_| step(&mut singly, 1, running(runnable), None));
            assert_eq!(at_once.at, singly.at);
            for (a, b) in at_once.averages.iter().zip(singly.averages) {
                // Each single step rounds up towards the number that is active.
                assert!(a.abs_diff(b) <= 190, "{runnable} for {steps}: {a}, singly {b}");
            }
        }
    }

    #[test]
    fn a_busy_container_that_rests_just_now_has_its_load() {
        let mut load = Load::since(Instant::now());
        // Two CPUs for an hour.
        step(&mut load, 720, running(0), Some(2 * 3_600_000_000));
        let [one, _, fifteen] = load.averages;
        assert!((1880 * 2..=1890 * 2).contains(&one), "{one}");
        assert!((1950 * 2..=2040 * 2).contains(&fifteen), "{fifteen}");
    }

    #[test]
    fn threads_below_the_container_s_cgroup_count_by_the_time_that_they_use() {
        let mut load = Load::since(Instant::now());
        let below = Running { looked_at: 0, ..running(0) };
        step(&mut load, 1, below, Some(10_000_000));
        assert_eq!(load.averages, [328, 68, 22]);
    }

    #[test]
    fn the_reader_runs_and_is_one_of_all() {
        assert_eq!(running(0).runnable_with_reader(), 1);
        assert_eq!(running(10).runnable_with_reader(), 10);
        assert_eq!(Running::default().runnable_with_reader(), 1);
    }

    #[test]
    fn no_number_is_too_large() {
        let mut load = Load::since(Instant::now());
        load.averages = [u64::MAX; 3];
        let all = Running { runnable: u64::MAX, ..running(0) };
        load.step(u64::MAX, all, Instant::now(), Some(u64::MAX));
        assert_eq!(all.runnable_with_reader(), 10);
        assert_eq!(power(2037, u64::MAX), 0);
    }
}
