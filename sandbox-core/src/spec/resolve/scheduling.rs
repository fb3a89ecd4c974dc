//! `process.scheduler`, `process.ioPriority` and `process.execCPUAffinity`.

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag as Flag,
    LinuxSchedulerPolicy as Policy, Scheduler as SpecScheduler,
};

use super::check::refuse;
use crate::error::Result;
use crate::sys::process::{MAX_CPU, Scheduler};

/// Resolves the attributes of sched_setattr(2). Refuses those that the policy
/// would ignore.
pub(super) fn scheduler(spec: &SpecScheduler) -> Result<Scheduler> {
    let policy = *spec.policy();
    let number = match policy {
        Policy::SchedOther => 0,
        Policy::SchedFifo => 1,
        Policy::SchedRr => 2,
        Policy::SchedBatch => 3,
        Policy::SchedIdle => 5,
        Policy::SchedDeadline => 6,
        Policy::SchedIso => {
            return refuse("process.scheduler.policy", "SCHED_ISO was never implemented by Linux");
        }
    };
    let nice = nice(policy, spec.nice().unwrap_or(0))?;
    let priority = priority(policy, spec.priority().unwrap_or(0))?;
    let times = [*spec.runtime(), *spec.deadline(), *spec.period()].map(|time| time.unwrap_or(0));
    if policy != Policy::SchedDeadline && times != [0; 3] {
        return refuse(
            "process.scheduler",
            "runtime, deadline and period belong to SCHED_DEADLINE only",
        );
    }
    let flags = flags(spec.flags().as_deref().unwrap_or_default())?;
    let [runtime, deadline, period] = times;
    Ok(Scheduler { policy: number, flags, nice, priority, runtime, deadline, period })
}

fn nice(policy: Policy, nice: i32) -> Result<i32> {
    let used = matches!(policy, Policy::SchedOther | Policy::SchedBatch);
    match nice {
        0 => Ok(0),
        -20..=19 if used => Ok(nice),
        _ if used => refuse("process.scheduler.nice", format!("is {nice}; expected -20 to 19")),
        _ => refuse("process.scheduler.nice", "belongs to SCHED_OTHER and SCHED_BATCH only"),
    }
}

fn priority(policy: Policy, priority: i32) -> Result<u32> {
    let used = matches!(policy, Policy::SchedFifo | Policy::SchedRr);
    match priority {
        0 if !used => Ok(0),
        1..=99 if used => Ok(priority.unsigned_abs()),
        _ if used => {
            refuse("process.scheduler.priority", format!("is {priority}; expected 1 to 99"))
        }
        _ => refuse("process.scheduler.priority", "belongs to SCHED_FIFO and SCHED_RR only"),
    }
}

fn flags(flags: &[Flag]) -> Result<u64> {
    flags.iter().try_fold(0, |all, flag| {
        let bit = match flag {
            Flag::SchedResetOnFork => 0x01,
            Flag::SchedFlagReclaim => 0x02,
            Flag::SchedFlagDLOverrun => 0x04,
            Flag::SchedFlagKeepPolicy => 0x08,
            Flag::SchedFlagKeepParams => 0x10,
            // The spec has no field for the clamp values.
            Flag::SchedFlagUtilClampMin | Flag::SchedFlagUtilClampMax => {
                return refuse("process.scheduler.flags", format!("{flag} is not supported"));
            }
        };
        Ok(all | bit)
    })
}

/// Returns the value of ioprio_set(2): the class above bit 13, the level below.
pub(super) fn io_priority(spec: &LinuxIOPriority) -> Result<u32> {
    let class = match spec.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(spec.priority()) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => refuse(
            "process.ioPriority.priority",
            format!("is {}; expected 0 to 7", spec.priority()),
        ),
    }
}

/// Returns the CPUs of an exec'd process. `initial` is for the time in which a
/// runtime's process still runs outside of the container's cgroup. Our Exec has
/// no such process, so it has no effect.
pub(super) fn cpu_affinity(spec: &ExecCPUAffinity) -> Result<Option<Vec<u32>>> {
    let Some(list) = spec.cpu_affinity_final() else {
        return Ok(None);
    };
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) if first <= last && last <= MAX_CPU => cpus.extend(first..=last),
            _ => {
                return refuse(
                    "process.execCPUAffinity.final",
                    format!("{part:?} is no CPU number or range up to {MAX_CPU}"),
                );
            }
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(Some(cpus))
}
