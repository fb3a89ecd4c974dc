//! `/proc/stat`

use std::fmt::Write;
use std::io;
use std::time::{Duration, Instant};

use super::OwnState;
use super::load::last_pid;
use super::times::Spent;
use crate::views::host::Host;
use crate::views::sources::Sources;

/// The microseconds of a tick, `USER_HZ`.
const TICK: u64 = 10_000;

/// The number of processes that were made in the pod, as far as that shows.
///
/// The kernel counts them for the whole machine only. Process IDs of the pod's PID namespace are
/// assigned in order, so the last one says how many there were, and begins again at the lowest
/// when it has reached `pid_max`.
#[derive(Debug, Default)]
pub(super) struct Forks {
    last: u64,
    counted: u64,
}

impl Forks {
    pub(super) fn look(&mut self, last: u64) -> u64 {
        let new = last.checked_sub(self.last).unwrap_or(last);
        self.counted = self.counted.saturating_add(new);
        self.last = last;
        self.counted
    }
}

/// Returns the text of `/proc/stat`. Interrupts, context switches and the like are the
/// machine's.
pub(super) fn text(
    sources: &Sources,
    host: &mut Host,
    own: &mut OwnState,
    uptime: Duration,
) -> io::Result<String> {
    let told = sources.cpus(host)?.told;
    let mut text = String::new();
    match sources.cpu_time()? {
        Some(used) => {
            own.times.look(&told, used, uptime);
            line(&mut text, "cpu ", own.times.all);
            for cpu in told.iter() {
                line(&mut text, &format!("cpu{cpu}"), own.times.of(cpu));
            }
        }
        None => {
            for kernels in host.machine()?.cpus.split_inclusive('\n') {
                let number = kernels.split(' ').next().and_then(|name| name.get(3..));
                let number: Option<u32> = number.and_then(|number| number.parse().ok());
                if number.is_none_or(|cpu| told.contains(cpu)) {
                    text.push_str(kernels);
                }
            }
        }
    }
    let running = own.load.look(sources, host, Instant::now())?;
    let forks = own.forks.look(last_pid(host)?);
    for kernels in host.machine()?.lines.split_inclusive('\n') {
        let name = kernels.split(' ').next().unwrap_or_default();
        let own = match (name, running) {
            ("processes", _) => forks,
            ("procs_running", Some(running)) => running.runnable_with_reader(),
            ("procs_blocked", Some(running)) => running.blocked,
            _ => {
                text.push_str(kernels);
                continue;
            }
        };
        let _ = writeln!(text, "{name} {own}");
    }
    Ok(text)
}

/// Writes user, nice, system and idle time, and six kinds that a cgroup does not count apart:
/// iowait, irq, softirq, steal, guest and guest_nice.
fn line(text: &mut String, name: &str, spent: Spent) {
    let [user, nice, system, idle] =
        [spent.user, spent.nice, spent.system, spent.idle].map(|micros| micros / TICK);
    let _ = writeln!(text, "{name} {user} {nice} {system} {idle} 0 0 0 0 0 0");
}
