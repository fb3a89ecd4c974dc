//! Records what the kernel samples in the cgroups of containers (perf_event_open(2)).
//!
//! The kernel samples by cgroup, so nothing is done to the processes, and those that start
//! meanwhile are among them. Where containers are in no cgroup that perf events know (a hybrid host
//! whose version 1 has no perf_event), it samples the whole machine, and what is of no container
//! is dropped at once. All ends with the descriptors.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use perf_event::data::{Record, Sample};
use perf_event::events::{Hardware, Software, Tracepoint};
use perf_event::{Builder, SampleFlag, Sampler};
use sandbox_core::cgroup::Cgroup;
use sandbox_core::cpu_set::CpuSet;

/// How often samples are taken from the buffers, and it is looked whether to stop: with many buffers
/// that wakes up less than the kernel would.
const TICK: Duration = Duration::from_millis(50);

/// The same for what the whole machine does, which may be busier than the containers.
const TICK_OF_MACHINE: Duration = Duration::from_millis(10);

/// The most memory of all buffers together.
const MEMORY: usize = 64 << 20;

/// The bytes of a thread's stack that are copied with a sample, to be unwound.
const STACK: u32 = 16 << 10;

/// `PERF_REG_X86_DI`, `BP`, `SP` and `IP` of the kernel's perf_regs.h, in the order of the values.
const REGISTERS: u64 = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;

/// How often a single thread is sampled, in nanoseconds of its time on a CPU, and the buffer for it: one
/// sample is all that is wanted.
const PERIOD_OF_THREAD: u64 = 1_000_000;
const BUFFER_OF_THREAD: usize = 64 << 10;

/// `PERF_RECORD_SWITCH_CPU_WIDE`, and the flag of one who stops running.
const SWITCH: u32 = 15;
const STOPS: u16 = 1 << 13;

/// What makes a sample.
#[derive(Clone, Copy, Debug)]
pub enum Trigger {
    /// So many times in a second of each CPU that a container uses.
    Cpu {
        /// Samples a second.
        frequency: u64,
    },
    /// Each time that the kernel passes a tracepoint.
    Tracepoint {
        /// Its number, from tracefs.
        id: u64,
    },
}

/// What a sample has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// The kernel's stack, and that of the program by frame pointers.
    pub stacks: bool,
    /// A copy of the program's stack and of three registers.
    pub user_stack: bool,
    /// The fields of a tracepoint.
    pub fields: bool,
    /// When a thread begins to run.
    pub switches: bool,
}

/// One container's cgroup.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The directory in the hierarchy with perf_event, if the container is in it.
    pub counted: Option<PathBuf>,
    /// The cgroup, which lists its processes.
    pub cgroup: Arc<Cgroup>,
    /// The host PID of boot, which lives there beside the first container's processes, and longer.
    pub boot: Option<i32>,
}

impl Watched {
    /// Finds the directories of a container's cgroup. `None` if it is in none.
    pub fn of(cgroup: &Cgroup, boot: Option<i32>) -> Option<Self> {
        cgroup.paths().next()?;
        let counted = cgroup.directory("perf_event").map(Path::to_owned);
        let cgroup = Arc::new(Cgroup::open(cgroup.saved().clone()).ok()?);
        Some(Self { counted, cgroup, boot })
    }
}

/// The most records that are taken from one buffer before the next buffer has its turn, and the
/// time is looked at: a busy machine may write them faster than they are taken.
const TURN: usize = 4096;

/// Which container a process is in, where the kernel does not choose.
#[derive(Debug, Default)]
struct Members {
    known: HashMap<i32, Option<usize>>,
    /// Whether it was read in this turn.
    fresh: bool,
    /// When those in no container are forgotten.
    forgets: Option<Instant>,
}

/// How long a process is taken to be in no container after it was found to be in none.
const OUTSIDE: Duration = Duration::from_millis(500);

impl Members {
    /// Reads anew who is in the containers.
    fn refresh(&mut self, watched: &[Watched]) {
        self.known.retain(|_, container| container.is_none());
        for (container, watched) in watched.iter().enumerate() {
            let pids = watched.cgroup.pids().unwrap_or_default();
            self.known.extend(pids.into_iter().map(|pid| (pid.0, Some(container))));
        }
        self.fresh = true;
    }

    /// Returns the container of a process.
    fn container(&mut self, pid: i32, watched: &[Watched]) -> Option<usize> {
        if let Some(known) = self.known.get(&pid) {
            return *known;
        }
        // It may have been forked since, but not every process of a busy machine is looked for.
        if !self.fresh {
            self.refresh(watched);
        }
        *self.known.entry(pid).or_insert(None)
    }

    /// Lets the containers be read once more. From time to time it forgets who is in none: a number
    /// is given to another process, and who was just forked may be in a container by now.
    fn next_turn(&mut self) {
        self.fresh = false;
        let now = Instant::now();
        if self.forgets.is_none_or(|at| at <= now) {
            self.known.retain(|_, container| container.is_some());
            self.forgets = Some(now + OUTSIDE);
        }
    }
}

/// One sample.
#[derive(Debug)]
pub struct Sampled<'a> {
    /// The index of the container.
    pub container: usize,
    /// The index of the trigger.
    pub trigger: usize,
    /// The sample.
    pub sample: &'a Sample<'a>,
}

/// What a recording passes on.
#[derive(Debug)]
pub enum Seen<'a> {
    /// A sample.
    Sample(Sampled<'a>),
    /// A thread begins to run.
    Runs {
        /// The thread.
        tid: i32,
        /// Nanoseconds of CLOCK_MONOTONIC.
        time: u64,
    },
}

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its time was over.
    Deadline,
    /// It was stopped.
    Stopped,
    /// The containers have no process any more.
    NoProcess,
}

/// What a recording has passed on.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// The number of samples.
    pub samples: u64,
    /// The number of samples that the kernel had no room for.
    pub lost: u64,
    /// How long it took.
    pub took: Duration,
}

/// Running events.
pub struct Recording {
    watched: Vec<Watched>,
    /// By container, if the kernel chooses its processes, and trigger.
    samplers: Vec<(Option<usize>, usize, Sampler)>,
    members: Members,
    tick: Duration,
}

impl Recording {
    /// Opens the events for each container and each CPU. They do not count yet.
    ///
    /// # Errors
    /// The error says what the kernel lacks, and what to set.
    pub fn open(watched: &[Watched], triggers: &[(Trigger, Wanted)]) -> Result<Self> {
        let cpus = cpus()?;
        let counted: Option<Vec<&Path>> =
            watched.iter().map(|watched| watched.counted.as_deref()).collect();
        let (groups, tick, most) = match counted {
            Some(directories) => {
                let groups = directories.into_iter().enumerate().map(|(c, d)| (Some(c), Some(d)));
                (groups.collect(), TICK, 8 << 20)
            }
            None => (vec![(None, None)], tick_of_machine(triggers), MEMORY),
        };
        let buffers = groups.len() * triggers.len() * cpus.len();
        let size = (MEMORY / buffers.max(1)).clamp(32 << 10, most);
        // Each is a power of two.
        let size = 1 << size.ilog2();
        let mut samplers = Vec::with_capacity(buffers);
        for (container, directory) in groups {
            let open = |directory: &Path| {
                File::open(directory)
                    .with_context(|| format!("open the cgroup {}", directory.display()))
            };
            let cgroup = directory.map(open).transpose()?;
            for (trigger, (kind, wanted)) in triggers.iter().enumerate() {
                for cpu in &cpus {
                    let Some(counter) = open_one(cgroup.as_ref(), *cpu, *kind, *wanted, size)?
                    else {
                        continue;
                    };
                    samplers.push((container, trigger, counter));
                }
            }
        }
        if samplers.is_empty() {
            bail!("no CPU counts events: perf_event_open found none of {} online", cpus.len());
        }
        Ok(Self { watched: watched.to_vec(), samplers, members: Members::default(), tick })
    }

    /// Lets the events count, and passes samples on until the time is over, until it is told to
    /// stop, or until the containers have no process any more.
    ///
    /// # Errors
    /// Fails if an event cannot be begun or waited for.
    pub fn run(
        &mut self,
        duration: Duration,
        stop: &AtomicBool,
        mut pass_on: impl FnMut(Seen<'_>),
    ) -> Result<Outcome> {
        let begun = Instant::now();
        for (_, _, sampler) in &mut self.samplers {
            sampler.as_counter_mut().enable().context("PERF_EVENT_IOC_ENABLE")?;
        }
        let (mut samples, mut lost) = (0, 0);
        let end = loop {
            let left = duration.saturating_sub(begun.elapsed());
            let end = if stop.load(Ordering::Relaxed) {
                Some(End::Stopped)
            } else if left.is_zero() {
                Some(End::Deadline)
            } else if !self.has_processes() {
                Some(End::NoProcess)
            } else {
                std::thread::sleep(left.min(self.tick));
                None
            };
            if end.is_some() {
                for (_, _, sampler) in &mut self.samplers {
                    sampler.as_counter_mut().disable().context("PERF_EVENT_IOC_DISABLE")?;
                }
            }
            self.members.next_turn();
            for (container, trigger, sampler) in &mut self.samplers {
                let (container, trigger) = (*container, *trigger);
                // Nothing is added to them at the end.
                let most = if end.is_some() { usize::MAX } else { TURN };
                for _ in 0..most {
                    let Some(record) = sampler.next_record() else { break };
                    if let Some((pid, tid, time)) = begins_to_run(&record) {
                        if container
                            .or_else(|| self.members.container(pid, &self.watched))
                            .is_some()
                        {
                            pass_on(Seen::Runs { tid, time });
                        }
                        continue;
                    }
                    // One that cannot be parsed is of a kind that was not asked for.
                    match record.parse_record() {
                        Ok(Record::Sample(sample)) => {
                            let pid = sample.pid().and_then(|pid| i32::try_from(pid).ok());
                            let found = || self.members.container(pid?, &self.watched);
                            let Some(container) = container.or_else(found) else { continue };
                            samples += 1;
                            pass_on(Seen::Sample(Sampled { container, trigger, sample: &sample }));
                        }
                        Ok(Record::Lost(record)) => lost += record.lost,
                        _ => {}
                    }
                }
            }
            if let Some(end) = end {
                break end;
            }
        };
        Ok(Outcome { end, samples, lost, took: begun.elapsed() })
    }

    fn has_processes(&self) -> bool {
        self.watched.iter().any(populated)
    }
}

fn tick_of_machine(triggers: &[(Trigger, Wanted)]) -> Duration {
    // How often samples of CPU time come is bounded, how often a tracepoint is passed is not.
    let passed = triggers.iter().any(|(trigger, _)| matches!(trigger, Trigger::Tracepoint { .. }));
    if passed { TICK_OF_MACHINE } else { TICK }
}

/// Reads a record of a thread that begins to run: who, and when.
fn begins_to_run(record: &perf_event::Record<'_>) -> Option<(i32, i32, u64)> {
    if record.ty() != SWITCH || record.misc() & STOPS != 0 {
        return None;
    }
    // Who ran before (8 bytes), then the fields of a sample: process, thread, time.
    let data = record.to_contiguous();
    let number = |at: usize| {
        let bytes = data.get(at..at + 4)?.try_into().ok()?;
        i32::try_from(u32::from_ne_bytes(bytes)).ok()
    };
    let time = u64::from_ne_bytes(data.get(16..24)?.try_into().ok()?);
    Some((number(8)?, number(12)?, time))
}

/// Whether a container has a process.
fn populated(watched: &Watched) -> bool {
    let pids = watched.cgroup.pids().unwrap_or_default();
    pids.iter().any(|pid| Some(pid.0) != watched.boot)
}

/// Opens the event of one CPU. `None` if the CPU went offline.
fn open_one(
    cgroup: Option<&File>,
    cpu: usize,
    trigger: Trigger,
    wanted: Wanted,
    size: usize,
) -> Result<Option<Sampler>> {
    let counter = match trigger {
        // Machines without hardware counters, as most virtual ones, have the clock.
        Trigger::Cpu { frequency } => {
            let mut hardware = Builder::new(Hardware::CPU_CYCLES);
            match build(hardware.sample_frequency(frequency), cgroup, cpu, wanted) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
                    let mut clock = Builder::new(Software::CPU_CLOCK);
                    build(clock.sample_frequency(frequency), cgroup, cpu, wanted)
                }
                other => other,
            }
        }
        Trigger::Tracepoint { id } => {
            let mut tracepoint = Builder::new(Tracepoint::with_id(id));
            build(tracepoint.sample_period(1), cgroup, cpu, wanted)
        }
    };
    let counter = match counter {
        Ok(counter) => counter,
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        Err(e) => return Err(refused(e)),
    };
    match counter.sampled(size) {
        Ok(sampler) => Ok(Some(sampler)),
        Err(e) => Err(e)
            .context("mmap of a perf event's buffer (kernel.perf_event_mlock_kb may be too low)"),
    }
}

/// Opens an event that samples one thread, wherever it runs. It ends with what is returned.
pub(crate) fn of_thread(tid: i32) -> Result<Sampler> {
    let wanted = Wanted { stacks: true, user_stack: true, ..Wanted::default() };
    let mut clock = Builder::new(Software::CPU_CLOCK);
    select(&mut clock, wanted);
    clock.observe_pid(tid).any_cpu().sample_period(PERIOD_OF_THREAD).include_kernel();
    let mut counter = clock.build().map_err(refused)?;
    counter.enable().context("PERF_EVENT_IOC_ENABLE")?;
    counter.sampled(BUFFER_OF_THREAD).context("mmap of a perf event's buffer")
}

/// Sets what a sample has.
fn select(builder: &mut Builder<'_>, wanted: Wanted) {
    let mut fields = SampleFlag::TID | SampleFlag::TIME | SampleFlag::CPU | SampleFlag::PERIOD;
    if wanted.stacks {
        fields |= SampleFlag::CALLCHAIN;
    }
    if wanted.user_stack {
        fields |= SampleFlag::REGS_USER | SampleFlag::STACK_USER;
        builder.sample_regs_user(REGISTERS).sample_stack_user(STACK);
    }
    if wanted.fields {
        fields |= SampleFlag::RAW;
    }
    builder.sample(fields);
}

fn build<'a>(
    builder: &mut Builder<'a>,
    cgroup: Option<&'a File>,
    cpu: usize,
    wanted: Wanted,
) -> std::io::Result<perf_event::Counter> {
    select(builder, wanted);
    builder.context_switch(wanted.switches).sample_id_all(true);
    match cgroup {
        Some(cgroup) => builder.observe_cgroup(cgroup),
        None => builder.any_pid().exclude_idle(true),
    };
    builder.one_cpu(cpu).include_kernel().clockid(perf_event::Clock::MONOTONIC).build()
}

/// Returns the error with what to do about it.
fn refused(error: std::io::Error) -> anyhow::Error {
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    let paranoid = paranoid.unwrap_or_default();
    let why = match (error.kind(), paranoid.trim()) {
        (_, "") => "this kernel has no perf events (CONFIG_PERF_EVENTS)".to_owned(),
        (ErrorKind::PermissionDenied, level) => format!(
            "CAP_PERFMON or CAP_SYS_ADMIN is missing, or the kernel is locked down \
             (/sys/kernel/security/lockdown); sysctl kernel.perf_event_paranoid is {level}"
        ),
        _ if error.raw_os_error() == Some(libc::EMFILE) => {
            "too many open files: raise this command's limit (ulimit -n)".to_owned()
        }
        _ => "perf events by cgroup may be missing (CONFIG_CGROUP_PERF)".to_owned(),
    };
    anyhow::Error::new(error).context(format!("perf_event_open: {why}"))
}

/// Returns the CPUs that are online.
fn cpus() -> Result<Vec<usize>> {
    let path = "/sys/devices/system/cpu/online";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let set =
        CpuSet::parse(&text).with_context(|| format!("{path}: {text:?} is no list of CPUs"))?;
    Ok(set.iter().map(|cpu| cpu as usize).collect())
}
