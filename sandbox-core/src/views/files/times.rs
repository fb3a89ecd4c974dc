//! The time that a container's CPUs have spent, and `/proc/uptime`.
//!
//! A cgroup knows how long its threads have run in all, not on which CPU. That is spread evenly
//! over the CPUs that the container is told it has; the rest of their time was idle. What is
//! counted once stays: no number becomes smaller when the container gets more or fewer CPUs.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::cpu_set::CpuSet;
use crate::views::host::Host;
use crate::views::sources::{CpuTime, Sources};

/// The time that one CPU or all have spent, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) user: u64,
    pub(super) nice: u64,
    pub(super) system: u64,
    pub(super) idle: u64,
}

impl Spent {
    fn each(&mut self) -> [&mut u64; 4] {
        [&mut self.user, &mut self.nice, &mut self.system, &mut self.idle]
    }
}

/// What was counted until the last look.
#[derive(Debug, Default)]
pub(super) struct Times {
    used: CpuTime,
    uptime: u64,
    /// The time that the container has used beyond what its CPUs had, since a cgroup's times
    /// come in ticks. It was idle for that much less.
    ahead: u64,
    /// The time of all CPUs that the container was ever told of.
    pub(super) all: Spent,
    cpus: BTreeMap<u32, Spent>,
}

impl Times {
    /// Counts what has come since the last look.
    pub(super) fn look(&mut self, told: &CpuSet, used: CpuTime, uptime: Duration) {
        let uptime = u64::try_from(uptime.as_micros()).unwrap_or(u64::MAX).max(self.uptime);
        let ran = CpuTime {
            user: used.user.saturating_sub(self.used.user),
            nice: used.nice.saturating_sub(self.used.nice),
            system: used.system.saturating_sub(self.used.system),
        };
        let passed = uptime - self.uptime;
        let had = passed.saturating_mul(told.count().into());
        let busy = ran.user.saturating_add(ran.nice).saturating_add(ran.system);
        let busy = busy.saturating_add(self.ahead);
        // A container can run on more CPUs than it is told, but not for ever.
        self.ahead = busy.saturating_sub(had).min(1_000_000);
        let spent = Spent {
            user: ran.user,
            nice: ran.nice,
            system: ran.system,
            idle: had.saturating_sub(busy),
        };
        self.spread(told, spent);
        self.uptime = uptime;
        self.used = CpuTime {
            user: used.user.max(self.used.user),
            nice: used.nice.max(self.used.nice),
            system: used.system.max(self.used.system),
        };
    }

    fn spread(&mut self, told: &CpuSet, mut spent: Spent) {
        for (sum, new) in self.all.each().into_iter().zip(spent.each()) {
            *sum = sum.saturating_add(*new);
        }
        // Each takes its part of what is left, so that nothing gets lost by rounding.
        let mut left = u64::from(told.count());
        for cpu in told.iter() {
            let own = self.cpus.entry(cpu).or_default();
            for (sum, rest) in own.each().into_iter().zip(spent.each()) {
                let part = *rest / left.max(1);
                *sum = sum.saturating_add(part);
                *rest -= part;
            }
            left = left.saturating_sub(1);
        }
    }

    /// Returns what one CPU has spent while the container was told of it.
    pub(super) fn of(&self, cpu: u32) -> Spent {
        self.cpus.get(&cpu).copied().unwrap_or_default()
    }
}

/// Returns the text of `/proc/uptime`: the time since the start, and the sum of all CPUs' idle
/// times.
pub(super) fn uptime_text(
    sources: &Sources,
    host: &mut Host,
    times: &mut Times,
    uptime: Duration,
) -> io::Result<String> {
    let Some(used) = sources.cpu_time()? else {
        return host.read("uptime");
    };
    times.look(&sources.cpus(host)?.told, used, uptime);
    let (up, idle) = (uptime.as_millis() / 10, u128::from(times.all.idle / 10_000));
    Ok(format!("{}.{:02} {}.{:02}\n", up / 100, up % 100, idle / 100, idle % 100))
}
