//! Uninterruptible waits of the runtimes' processes, as the kernel's tracer sees
//! them: when, how long, and in which function.
//!
//! The tracer's instance is the caller's own, and takes only events of the
//! caller's descendants, so that it neither disturbs nor is disturbed by another
//! use of the tracer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::gettid;

/// The start of the instances' names, before the owner's process ID.
const PREFIX: &str = "palisade-trace-";

/// What was tried, and why it failed.
type Result<T> = std::result::Result<T, String>;

/// Memory for events, of all CPUs together, and the least and the most of one.
const BUFFER_KIB: usize = 64 << 10;
const CPU_BUFFER_KIB: (usize, usize) = (1 << 10, 16 << 10);

/// The functions of every wait, which explain none.
const COMMON: [&str; 12] = [
    "trace_event_raw_event_sched_switch",
    "__traceiter_sched_switch",
    "__schedule",
    "schedule",
    "schedule_timeout",
    "schedule_preempt_disabled",
    "io_schedule",
    "do_syscall_64",
    "x64_sys_call",
    "entry_SYSCALL_64_after_hwframe",
    "ret_from_fork",
    "ret_from_fork_asm",
];

/// One wait of one thread.
#[derive(Clone, Debug)]
pub struct Wait {
    /// The time at which the thread left the CPU, on the monotonic clock.
    pub began: Duration,
    /// The time at which it was woken. `None` while it waits.
    pub ended: Option<Duration>,
    /// The name of the thread.
    pub process: String,
    /// The name of the thread that started it, at that time.
    pub father: String,
    /// The kernel's functions, the innermost first.
    pub stack: Vec<String>,
}

/// The reason of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// All CPUs have to pass a quiescent state.
    GracePeriod,
    /// Another thread has a lock, or a kernel thread has work to do.
    Lock,
    /// A file system has to write, or a disk to answer.
    Storage,
    /// Any other.
    Other,
    /// The child of a vfork has to call execve.
    Vfork,
    /// The container is paused.
    Frozen,
}

impl Kind {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::GracePeriod => "grace period",
            Kind::Lock => "lock",
            Kind::Storage => "storage",
            Kind::Other => "other",
            Kind::Vfork => "vfork",
            Kind::Frozen => "frozen",
        }
    }

    /// Whether it is the kernel that is waited for. Otherwise it is the runtime
    /// itself, or what the client has asked for.
    pub fn is_of_the_kernel(self) -> bool {
        !matches!(self, Kind::Vfork | Kind::Frozen)
    }
}

impl Wait {
    /// Returns the reason of the wait, by the names of the kernel's functions.
    pub fn kind(&self) -> Kind {
        let any = |names: &[&str]| {
            self.stack.iter().any(|function| names.iter().any(|name| function.contains(name)))
        };
        if any(&["__refrigerator"]) {
            Kind::Frozen
        } else if any(&["wait_for_vfork_done"]) || self.waits_in_clone() {
            Kind::Vfork
        } else if any(&[
            "synchronize_rcu",
            "synchronize_srcu",
            "percpu_down_write",
            "rcu_sync_enter",
            "rcu_barrier",
            // The compiler may have put fsnotify_wait_marks_destroyed into it.
            "fsnotify_destroy_group",
            "fsnotify_wait_marks_destroyed",
        ]) {
            Kind::GracePeriod
        } else if any(&[
            "mutex_lock",
            "rwsem_down",
            "rwbase_",
            "percpu_rwsem",
            "__down",
            "flush_work",
        ]) {
            Kind::Lock
        } else if any(&[
            "folio_wait",
            "bit_wait_io",
            "wb_wait_for_completion",
            "submit_bio_wait",
            "jbd2_",
            "blk_",
        ]) {
            Kind::Storage
        } else {
            Kind::Other
        }
    }

    /// Whether the outermost function that waits is clone's own.
    fn waits_in_clone(&self) -> bool {
        let mut own = self.chain().into_iter().rev();
        let in_clone = own.by_ref().find(|function| *function == "kernel_clone").is_some();
        in_clone && own.all(|function| function.contains("wait_for_"))
    }

    /// Returns the functions that tell waits apart, the innermost first.
    pub fn chain(&self) -> Vec<&str> {
        self.stack.iter().map(String::as_str).filter(|name| !COMMON.contains(name)).collect()
    }
}

/// Returns the time on the tracer's clock.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock").into()
}

/// A tracer of the calling thread's descendants, which is removed on drop.
#[derive(Debug)]
pub struct Tracer {
    instance: PathBuf,
    /// The threads that are traced. An event can be about others as well.
    family: Family,
}

/// The threads that are traced, each with the name of the one that started it.
type Family = BTreeMap<i32, String>;

impl Tracer {
    /// Begins to trace what the calling thread starts from now on. Mounts tracefs
    /// in a folder if it is not mounted.
    pub fn new(folder: &Path) -> Result<Tracer> {
        let instances = tracefs(folder)?.join("instances");
        remove_stale(&instances);
        let instance = instances.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&instance).map_err(|e| format!("make {}: {e}", instance.display()))?;
        let family = Family::from([(gettid().as_raw(), String::new())]);
        let tracer = Tracer { instance, family };
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get());
        let (least, most) = CPU_BUFFER_KIB;
        let buffer = (BUFFER_KIB / cpus).clamp(least, most).to_string();
        let own = gettid().to_string();
        for (file, value) in [
            ("trace_clock", "mono"),
            ("buffer_size_kb", &buffer),
            ("options/event-fork", "1"),
            ("set_event_pid", &own),
            ("events/sched/sched_switch/trigger", "stacktrace if prev_state == 2"),
            ("events/sched/sched_switch/enable", "1"),
            ("events/sched/sched_waking/enable", "1"),
            ("events/sched/sched_process_fork/enable", "1"),
        ] {
            tracer.write(file, value)?;
        }
        Ok(tracer)
    }

    /// Returns the waits since the last call.
    pub fn take(&mut self) -> Result<Vec<Wait>> {
        self.write("tracing_on", "0")?;
        let text = fs::read(self.instance.join("trace")).map_err(|e| format!("trace: {e}"))?;
        let waits = parse(&String::from_utf8_lossy(&text), &mut self.family);
        self.write("trace", "")?;
        self.write("tracing_on", "1")?;
        waits
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let file = self.instance.join(file);
        fs::write(&file, value).map_err(|e| format!("write {value:?} to {}: {e}", file.display()))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.instance);
    }
}

/// Returns where tracefs is mounted. Mounts it in a folder if it is not.
fn tracefs(folder: &Path) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|e| format!("mounts: {e}"))?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<&str>>());
    let mounted = fields.find(|fields| fields.get(2) == Some(&"tracefs"));
    if let Some(path) = mounted.and_then(|fields| fields.get(1).map(PathBuf::from)) {
        return Ok(path);
    }
    let path = folder.join("tracing");
    fs::create_dir_all(&path).map_err(|e| format!("make {}: {e}", path.display()))?;
    mount(Some("tracefs"), &path, Some("tracefs"), MsFlags::empty(), None::<&str>)
        .map_err(|e| format!("mount tracefs: {e}"))?;
    Ok(path)
}

/// Removes the instances of processes that were killed.
fn remove_stale(instances: &Path) {
    for entry in fs::read_dir(instances).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Reads the tracer's text: events in the order of time, stacks behind theirs.
fn parse(text: &str, family: &mut Family) -> Result<Vec<Wait>> {
    let own = gettid().as_raw();
    let mut waits: Vec<Wait> = Vec::new();
    // The waits that have no end yet and those that have no stack yet, by thread.
    let (mut open, mut bare) = (BTreeMap::<i32, usize>::new(), BTreeMap::<i32, usize>::new());
    let mut stack_of = None;
    for line in text.lines() {
        if line.starts_with('#') {
            ensure_complete(line)?;
            continue;
        }
        if let Some(function) = line.strip_prefix(" => ") {
            if let Some(index) = stack_of {
                let wait: &mut Wait = &mut waits[index];
                wait.stack.push(function.trim().to_owned());
            }
            continue;
        }
        stack_of = None;
        let Some(event) = Event::parse(line) else { continue };
        match event.what {
            What::Switch { from, process, uninterruptible, to } => {
                if let Some(index) = open.remove(&to) {
                    waits[index].ended.get_or_insert(event.at);
                }
                let Some(father) = family.get(&from) else { continue };
                if uninterruptible && from != own {
                    open.insert(from, waits.len());
                    bare.insert(from, waits.len());
                    waits.push(Wait {
                        began: event.at,
                        ended: None,
                        process: process.to_owned(),
                        father: father.clone(),
                        stack: Vec::new(),
                    });
                }
            }
            What::Waking { thread } => {
                if let Some(index) = open.remove(&thread) {
                    waits[index].ended = Some(event.at);
                }
            }
            What::Fork { father, name, child } if family.contains_key(&father) => {
                family.insert(child, name.to_owned());
            }
            // The kernel has given the number of a dead one to another.
            What::Fork { child, .. } => drop(family.remove(&child)),
            What::Stack => stack_of = bare.remove(&event.thread),
        }
    }
    Ok(waits)
}

/// Checks the line of the header that counts the events.
fn ensure_complete(line: &str) -> Result<()> {
    let Some(counts) = line.strip_prefix("# entries-in-buffer/entries-written: ") else {
        return Ok(());
    };
    let counts = counts.split_whitespace().next().and_then(|counts| counts.split_once('/'));
    let (kept, written) = counts.ok_or("the trace's header has no counts")?;
    if kept != written {
        return Err(format!("the tracer has kept {kept} of {written} events only"));
    }
    Ok(())
}

/// One event of the tracer's text:
/// `NAME-THREAD [CPU] FLAGS SECONDS: EVENT: FIELDS`.
struct Event<'a> {
    thread: i32,
    at: Duration,
    what: What<'a>,
}

enum What<'a> {
    Switch { from: i32, process: &'a str, uninterruptible: bool, to: i32 },
    Waking { thread: i32 },
    Fork { father: i32, name: &'a str, child: i32 },
    Stack,
}

impl Event<'_> {
    fn parse(line: &str) -> Option<Event<'_>> {
        // A name may hold anything, so the line is read from both ends.
        let (head, what) = if let Some((head, fields)) = line.split_once(": sched_switch: ") {
            (head, switch(fields)?)
        } else if let Some((head, fields)) = line.split_once(": sched_waking: ") {
            let (_, thread) = fields.rsplit_once(" pid=")?;
            (head, What::Waking { thread: first_number(thread)? })
        } else if let Some((head, fields)) = line.split_once(": sched_process_fork: ") {
            (head, fork(fields)?)
        } else {
            (line.strip_suffix(": <stack trace>")?, What::Stack)
        };
        let (head, seconds) = head.rsplit_once(' ')?;
        let (name, _) = head.rsplit_once(" [")?;
        let (_, thread) = name.trim_end().rsplit_once('-')?;
        let (whole, fraction) = seconds.split_once('.')?;
        let micros: u64 = fraction.parse().ok()?;
        let at = Duration::from_secs(whole.parse().ok()?) + Duration::from_micros(micros);
        Some(Event { thread: thread.parse().ok()?, at, what })
    }
}

fn switch(fields: &str) -> Option<What<'_>> {
    let (from, to) = fields.split_once(" ==> ")?;
    let (name, rest) = from.rsplit_once(" prev_pid=")?;
    let (_, state) = rest.rsplit_once(" prev_state=")?;
    let (_, to) = to.rsplit_once(" next_pid=")?;
    Some(What::Switch {
        from: first_number(rest)?,
        process: name.strip_prefix("prev_comm=")?,
        uninterruptible: state == "D",
        to: first_number(to)?,
    })
}

fn fork(fields: &str) -> Option<What<'_>> {
    let (father, child) = fields.rsplit_once(" child_pid=")?;
    let (father, _) = father.split_once(" child_comm=")?;
    let (name, father) = father.rsplit_once(" pid=")?;
    Some(What::Fork {
        father: father.parse().ok()?,
        name: name.strip_prefix("comm=")?,
        child: first_number(child)?,
    })
}

fn first_number(text: &str) -> Option<i32> {
    text.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# tracer: nop
#
# entries-in-buffer/entries-written: 8/8   #P:2
#
           bench-100     [000] .....    10.000000: sched_process_fork: comm=bench pid=100 child_comm=bench child_pid=101
     a [b] c d-101     [000] d..2.    10.000100: sched_switch: prev_comm=a [b] c d prev_pid=101 prev_prio=120 prev_state=D ==> next_comm=swapper/0 next_pid=0 next_prio=120
     a [b] c d-101     [000] d..2.    10.000102: <stack trace>
 => __schedule
 => schedule
 => synchronize_rcu_expedited
 => namespace_unlock
 => do_syscall_64
          <idle>-0       [001] dNh2.    10.002100: sched_waking: comm=a [b] c d pid=101 prio=120 target_cpu=000
          <idle>-0       [000] d..2.    10.003000: sched_switch: prev_comm=swapper/0 prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=a next_pid=101 next_prio=120
         other-900     [000] d..2.    10.004000: sched_switch: prev_comm=other prev_pid=900 prev_prio=120 prev_state=D ==> next_comm=a next_pid=101 next_prio=120
         other-900     [000] d..2.    10.004001: <stack trace>
 => folio_wait_bit
     a [b] c d-101     [000] d..2.    10.005000: sched_switch: prev_comm=a [b] c d prev_pid=101 prev_prio=120 prev_state=D ==> next_comm=x next_pid=5 next_prio=120
";

    fn read(text: &str) -> Result<Vec<Wait>> {
        parse(text, &mut Family::from([(100, String::new())]))
    }

    #[test]
    fn a_wait_ends_when_its_thread_is_woken_and_others_threads_do_not_count() {
        let waits = read(TEXT).expect("a whole trace");
        let [first, second] = waits.as_slice() else { panic!("two waits, not {waits:?}") };
        assert_eq!((first.process.as_str(), first.father.as_str()), ("a [b] c d", "bench"));
        assert_eq!(first.ended.map(|end| end - first.began), Some(Duration::from_millis(2)));
        assert_eq!(first.chain(), ["synchronize_rcu_expedited", "namespace_unlock"]);
        assert_eq!(first.kind(), Kind::GracePeriod);
        assert_eq!((second.ended, second.stack.len()), (None, 0));
    }

    #[test]
    fn a_trace_with_lost_events_is_refused() {
        let lost = TEXT.replace("8/8", "8/9");
        let error = read(&lost).expect_err("it is not whole");
        assert!(error.contains("kept 8 of 9"), "{error}");
    }

    #[test]
    fn a_wait_has_its_kind_by_its_stack() {
        let stack = |functions: &[&str]| Wait {
            began: Duration::ZERO,
            ended: None,
            process: String::new(),
            father: String::new(),
            stack: functions.iter().map(|name| (*name).to_owned()).collect(),
        };
        let vfork = stack(&["__wait_for_common", "wait_for_completion_state", "kernel_clone"]);
        assert_eq!(vfork.kind(), Kind::Vfork);
        let inotify = stack(&["__flush_work", "fsnotify_destroy_group", "inotify_release"]);
        assert_eq!(inotify.kind(), Kind::GracePeriod);
        // The same function waits for a lock within a clone.
        let lock = stack(&["percpu_rwsem_wait", "cgroup_can_fork", "copy_process", "kernel_clone"]);
        assert_eq!(lock.kind(), Kind::Lock);
        assert!(lock.kind().is_of_the_kernel() && !vfork.kind().is_of_the_kernel());
    }

    /// This machine's kernel, rather than a text.
    #[test]
    fn the_kernel_shows_a_wait_of_a_child() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut tracer = match Tracer::new(folder.path()) {
            Ok(tracer) => tracer,
            Err(why) => return eprintln!("no tracefs here: {why}"),
        };
        // A mount namespace's end waits for a grace period.
        let child = std::process::Command::new("unshare").args(["--mount", "true"]).status();
        assert!(child.is_ok_and(|status| status.success()), "run unshare");
        let waits = tracer.take().expect("a whole trace");
        drop(tracer);
        let _ = nix::mount::umount(&folder.path().join("tracing"));
        assert!(waits.iter().any(|wait| wait.kind() == Kind::GracePeriod), "{waits:?}");
    }
}
