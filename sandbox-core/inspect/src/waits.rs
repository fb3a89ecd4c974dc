//! Profiles of waits: how long threads are off the CPUs, by their stacks and by what they wait for.
//!
//! A thread that gives up its CPU passes the tracepoint `sched_switch`, with its stack, and the
//! kernel says when it runs again (`PERF_RECORD_SWITCH_CPU_WIDE`). Both are events of its cgroup.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

use crate::images::Place;
use crate::perf::{Recording, Sampled, Seen, Trigger, Wanted, Watched};
use crate::profile::{Detail, Gathered, Profile, Weight, Who};
use crate::symbols::Function;
use crate::trace::tracepoint;

/// The functions of the kernel in which a thread waits for a lock of its program.
const LOCKS: [&str; 3] = ["futex_wait", "futex_lock_pi", "futex_wait_requeue_pi"];

/// A wait that has begun.
struct Begun {
    who: Who,
    stack: Vec<Place>,
    detail: Detail,
    at: u64,
}

/// Profiles waits of all kinds.
///
/// # Errors
/// Fails if the kernel counts no events for these containers, or has no tracefs.
pub fn block(containers: &[Watched], duration: Duration, stop: &AtomicBool) -> Result<Profile> {
    take(containers, duration, stop, |_| Detail::Stack)
}

/// Profiles waits for locks of programs, by their addresses.
///
/// # Errors
/// As [`block`].
pub fn mutex(containers: &[Watched], duration: Duration, stop: &AtomicBool) -> Result<Profile> {
    // futex(2) takes the address first, and a thread in a call has its arguments in its registers.
    let lock = |sampled: &Sampled<'_>| {
        let registers = sampled.sample.regs_user().map(|registers| &*registers.regs);
        Detail::Lock(registers.and_then(|values| values.first().copied()).unwrap_or(0))
    };
    let mut profile = take(containers, duration, stop, lock)?;
    profile
        .lines
        .retain(|line| line.detail.as_deref() != Some(CPU) && line.stack.iter().any(is_lock));
    Ok(profile)
}

fn take(
    containers: &[Watched],
    duration: Duration,
    stop: &AtomicBool,
    detail: impl Fn(&Sampled<'_>) -> Detail,
) -> Result<Profile> {
    let (id, state) = tracepoint("sched/sched_switch", "prev_state")
        .context("find the tracepoint sched_switch (CONFIG_TRACING; tracefs)")?;
    let wanted = Wanted { stacks: true, user_stack: true, fields: true, switches: true };
    let mut recording = Recording::open(containers, &[(Trigger::Tracepoint { id }, wanted)])?;
    let mut gathered = Gathered::default();
    let mut waiting: HashMap<i32, Begun> = HashMap::new();
    // Two CPUs' buffers are read one after the other: the end of a wait may come before it.
    let mut ended: HashMap<i32, u64> = HashMap::new();
    let outcome = recording.run(duration, stop, |seen| match seen {
        Seen::Sample(sampled) => {
            let Some((who, stack)) = gathered.stack(&sampled) else { return };
            let at = sampled.sample.time().unwrap_or(0);
            let runnable = sampled.sample.raw().and_then(|raw| state.read(raw)) == Some(0);
            let detail = if runnable { Detail::Cpu } else { detail(&sampled) };
            let begun = Begun { who, stack, detail, at };
            match ended.remove(&begun.who.tid).filter(|end| *end > at) {
                Some(end) => finish(&mut gathered, begun, end),
                None => _ = waiting.insert(begun.who.tid, begun),
            }
        }
        Seen::Runs { tid, time } => match waiting.remove(&tid) {
            Some(begun) if begun.at < time => finish(&mut gathered, begun, time),
            Some(later) => {
                waiting.insert(tid, later);
            }
            None => _ = ended.insert(tid, time),
        },
    })?;
    // Who still waits has waited until now.
    let now = clock_gettime(ClockId::Monotonic);
    let now = u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or(0);
    for (_, begun) in waiting {
        finish(&mut gathered, begun, now);
    }
    Ok(gathered.finish(outcome))
}

fn finish(gathered: &mut Gathered, begun: Begun, end: u64) {
    let Begun { who, stack, detail, at } = begun;
    let weight = Weight { count: 1, time: end.saturating_sub(at) };
    gathered.add(who, stack, Some(detail), weight);
}

/// What is said of a thread that could have run.
const CPU: &str = "a CPU";

/// Returns what a thread waited for, for people.
pub(crate) fn text(detail: Detail, stack: &[Function]) -> String {
    match detail {
        Detail::Cpu => CPU.to_owned(),
        Detail::Lock(address) => format!("the lock at {address:#x}"),
        Detail::Stack => by_stack(stack),
    }
}

/// Returns what the kernel's part of a stack says: the call that a thread is in, or why else it is
/// in the kernel.
fn by_stack(stack: &[Function]) -> String {
    let kernel = stack.iter().filter(|function| function.file == "[kernel]");
    let mut what = "the kernel".to_owned();
    for function in kernel {
        let name = function.name.as_str();
        if let Some(call) = name.strip_prefix("__x64_sys_").or(name.strip_prefix("__ia32_sys_")) {
            return call.to_owned();
        }
        if name.contains("page_fault") {
            what = "a page".to_owned();
        } else if name == "ret_from_fork" {
            what = "its start".to_owned();
        } else if name == "exit_to_user_mode_loop" || name == "do_exit" {
            what = format!("the kernel ({name})");
        }
    }
    what
}

fn is_lock(function: &Function) -> bool {
    function.file == "[kernel]" && LOCKS.iter().any(|lock| function.name.starts_with(lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(names: &[&str]) -> Vec<Function> {
        let function =
            |name: &&str| Function { name: (*name).into(), file: "[kernel]".into(), line: None };
        names.iter().map(function).collect()
    }

    #[test]
    fn the_kernel_s_stack_says_what_is_waited_for() {
        let waits = |names: &[&str]| text(Detail::Stack, &stack(names));
        assert_eq!(waits(&["schedule", "do_nanosleep", "__x64_sys_nanosleep"]), "nanosleep");
        assert_eq!(waits(&["io_schedule", "filemap_fault", "asm_exc_page_fault"]), "a page");
        assert_eq!(waits(&["schedule"]), "the kernel");
        assert_eq!(text(Detail::Cpu, &[]), "a CPU");
        assert_eq!(text(Detail::Lock(0x10), &[]), "the lock at 0x10");
        assert!(stack(&["futex_wait_queue"]).iter().any(is_lock));
        assert!(!stack(&["ep_poll"]).iter().any(is_lock));
    }
}
