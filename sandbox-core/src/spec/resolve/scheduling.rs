//! `process.scheduler`, `process.ioPriority`, `process.execCPUAffinity` and
//! `linux.memoryPolicy`.

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy,
    LinuxSchedulerFlag as Flag, LinuxSchedulerPolicy as Policy, MemoryPolicyFlagType as ModeFlag,
    MemoryPolicyModeType as Mode, Scheduler as SpecScheduler,
};

use super::check::refuse;
use crate::error::Result;
use crate::spec::plan::CpuAffinity;
use crate::sys::process::{MAX_CPU, MAX_NODE, MemoryPolicy, Scheduler};

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

/// Resolves the CPUs of an exec'd process. An absent list leaves them alone.
///
/// The kernel refuses a list without a CPU that the process may have. For `initial` that can
/// be the fault of the sandbox's cpuset, which the container need not share; so a CPU that
/// the machine lacks is refused here.
pub(super) fn cpu_affinity(spec: &ExecCPUAffinity) -> Result<CpuAffinity> {
    let cpus = |name: &str, list: &Option<String>| -> Result<Option<Vec<u32>>> {
        let list = list.as_deref().filter(|list| !list.is_empty());
        let field = || format!("process.execCPUAffinity.{name}");
        list.map(|list| numbers(field, "CPU", MAX_CPU, list)).transpose()
    };
    let initial = cpus("initial", spec.initial())?;
    if let (Some(wanted), Some(online)) = (&initial, online_cpus())
        && !wanted.iter().any(|cpu| online.contains(cpu))
    {
        return refuse("process.execCPUAffinity.initial", "this machine has none of these CPUs");
    }
    Ok(CpuAffinity { initial, last: cpus("final", spec.cpu_affinity_final())? })
}

fn online_cpus() -> Option<Vec<u32>> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    numbers(String::new, "CPU", MAX_CPU, list.trim()).ok()
}

/// Resolves `linux.memoryPolicy`. Which nodes there are, the kernel knows.
pub(super) fn memory_policy(spec: &LinuxMemoryPolicy) -> Result<MemoryPolicy> {
    let (mode, nodes) = match spec.mode() {
        Mode::MpolDefault => (0, Nodes::None),
        Mode::MpolPreferred => (1, Nodes::Any),
        Mode::MpolBind => (2, Nodes::Some),
        Mode::MpolInterleave => (3, Nodes::Some),
        Mode::MpolLocal => (4, Nodes::None),
        Mode::MpolPreferredMany => (5, Nodes::Some),
        Mode::MpolWeightedInterleave => (6, Nodes::Some),
    };
    let flags = spec.flags().iter().flatten().fold(0, |all, flag| {
        all | match flag {
            ModeFlag::MpolFStaticNodes => 1 << 15,
            ModeFlag::MpolFRelativeNodes => 1 << 14,
            ModeFlag::MpolFNumaBalancing => 1 << 13,
        }
    });
    let list = spec.nodes().as_deref().filter(|list| !list.is_empty());
    let field = "linux.memoryPolicy.nodes";
    match (nodes, list) {
        (Nodes::None, Some(_)) => {
            return refuse(field, format!("{} takes none", spec.mode()));
        }
        (Nodes::Some, None) => {
            return refuse(field, format!("{} takes at least one", spec.mode()));
        }
        _ => {}
    }
    let list = list.map(|list| numbers(|| field.into(), "node", MAX_NODE, list)).transpose()?;
    Ok(MemoryPolicy { mode: mode | flags, nodes: list.unwrap_or_default() })
}

/// The number of nodes that a mode takes.
#[derive(Clone, Copy)]
enum Nodes {
    None,
    Some,
    Any,
}

/// Returns the numbers of a list such as `0-3,7`, ascending. As in runc, blanks and more
/// commas do no harm.
fn numbers(field: impl Fn() -> String, what: &str, highest: u32, list: &str) -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) if first <= last && last <= highest => {
                numbers.extend(first..=last);
            }
            _ => {
                return refuse(
                    field(),
                    format!("{part:?} is no {what} number or range up to {highest}"),
                );
            }
        }
    }
    if numbers.is_empty() {
        return refuse(field(), format!("{list:?} holds no {what} number"));
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}
