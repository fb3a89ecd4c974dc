//! A buffer of the kernel's tracer (Documentation/trace/ftrace.rst): an instance of our own, which
//! records chosen events of chosen threads and of all that they fork. Others can use the tracer at
//! the same time.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;
use sandbox_core::sys::mount::FsContext;

use super::format::{Field, Format, Formats};
use super::ring::{self, Record};

/// The memory of the kernel's for each CPU, in KiB.
const BUFFER: u64 = 4096;
/// The most memory for all CPUs, in KiB.
const ALL_BUFFERS: u64 = 128 << 10;
/// The most pages that are read of one CPU before the next one's turn.
const PAGES: usize = 2048;

/// The events that are recorded. Some kernels lack some of them.
const EVENTS: [&str; 9] = [
    "raw_syscalls/sys_enter",
    "raw_syscalls/sys_exit",
    "sched/sched_switch",
    "sched/sched_waking",
    "sched/sched_process_fork",
    "sched/sched_process_exec",
    "sched/sched_process_exit",
    "exceptions/page_fault_user",
    "block/block_rq_issue",
];

/// An event of which all are recorded, whoever runs: a disk answers when it likes.
const COMPLETION: &str = "block/block_rq_complete";

/// What is recorded of the pod, and of the disks.
pub(super) struct Buffer {
    pod: Instance,
    /// `None` if the kernel has no such event.
    disks: Option<Instance>,
    formats: Formats,
}

/// An instance of the tracer, which is removed when it is dropped.
struct Instance {
    /// Our mount, which is nowhere. `None` if the administrator has mounted it.
    _mount: Option<OwnedFd>,
    path: PathBuf,
    cpus: Vec<(u32, File)>,
}

impl Buffer {
    /// Begins to record these threads, and what they fork.
    ///
    /// # Errors
    /// The error says what the kernel refuses.
    pub(super) fn begin(threads: &[i32]) -> Result<Self> {
        let mut pod = Instance::make("pod")?;
        let formats = pod.formats()?;
        // First who, and then what: otherwise everything is recorded for a moment.
        pod.write("set_event_pid", &list(threads))?;
        pod.write("options/event-fork", "1")?;
        for event in EVENTS.iter().filter(|event| pod.has(event)) {
            pod.enable(event)?;
        }
        let disks = match pod.has(COMPLETION) {
            true => Some(Instance::make("disks")?),
            false => None,
        };
        if let Some(disks) = &disks {
            disks.enable(COMPLETION)?;
        }
        pod.open()?;
        let mut buffer = Self { pod, disks, formats };
        buffer.disks.as_mut().map_or(Ok(()), Instance::open)?;
        Ok(buffer)
    }

    /// Returns where the fields of records are.
    pub(super) fn formats(&self) -> Formats {
        self.formats.clone()
    }

    /// Adds threads that no recorded one has forked.
    pub(super) fn add(&self, threads: &[i32]) -> Result<()> {
        if threads.is_empty() {
            return Ok(());
        }
        let path = self.pod.path.join("set_event_pid");
        let mut file = File::options().append(true).open(&path).context("open set_event_pid")?;
        // One that has ended meanwhile is no error.
        file.write_all(list(threads).as_bytes()).context("add threads to set_event_pid")
    }

    /// Reads what there is now.
    pub(super) fn read(&mut self, into: &mut Vec<Record>) -> Result<()> {
        self.pod.read(into)?;
        self.disks.as_mut().map_or(Ok(()), |disks| disks.read(into))
    }

    /// Stops recording. What was recorded can still be read.
    pub(super) fn stop(&self) -> Result<()> {
        self.disks.iter().try_for_each(|disks| disks.write("tracing_on", "0"))?;
        self.pod.write("tracing_on", "0")
    }

    /// Returns how many records there was no room for.
    pub(super) fn lost(&self) -> u64 {
        self.pod.lost() + self.disks.as_ref().map_or(0, Instance::lost)
    }
}

impl Instance {
    fn make(kind: &str) -> Result<Self> {
        let (mount, root) = root()?;
        let instances = root.join("instances");
        remove_of_the_dead(&instances);
        let path = instances.join(format!("palisade-{}-{kind}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        let instance = Self { _mount: mount, path, cpus: Vec::new() };
        instance.write("trace_clock", "boot")?;
        let cpus = instance.cpu_directories()?.len().max(1) as u64;
        instance.write("buffer_size_kb", &(ALL_BUFFERS / cpus).clamp(64, BUFFER).to_string())?;
        // What does not fit is the newest, so that what was recorded has no holes.
        instance.write("options/overwrite", "0")?;
        Ok(instance)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        fs::write(&path, text).with_context(|| format!("write {text:?} to {}", path.display()))
    }

    fn has(&self, event: &str) -> bool {
        self.path.join("events").join(event).is_dir()
    }

    fn enable(&self, event: &str) -> Result<()> {
        self.write(&format!("events/{event}/enable"), "1")
    }

    fn formats(&self) -> Result<Formats> {
        let of = |event: &&str| {
            let path = self.path.join("events").join(event).join("format");
            let text = match fs::read_to_string(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return None,
                other => other.with_context(|| format!("read {}", path.display())),
            };
            Some(text.and_then(|text| {
                let (_, name) = event.split_once('/').unwrap_or_default();
                Format::parse(name, &text).ok_or_else(|| anyhow!("{} is torn", path.display()))
            }))
        };
        let all = EVENTS.iter().chain([&COMPLETION]).filter_map(of);
        Ok(Formats::new(all.collect::<Result<Vec<_>>>()?))
    }

    fn cpu_directories(&self) -> Result<Vec<(u32, PathBuf)>> {
        let folder = self.path.join("per_cpu");
        let entries =
            fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
        let of = |entry: fs::DirEntry| {
            let number = entry.file_name().to_str()?.strip_prefix("cpu")?.parse().ok()?;
            Some((number, entry.path()))
        };
        let mut all: Vec<_> = entries.flatten().filter_map(of).collect();
        all.sort();
        Ok(all)
    }

    fn open(&mut self) -> Result<()> {
        for (cpu, folder) in self.cpu_directories()? {
            let path = folder.join("trace_pipe_raw");
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::open(&path, flags, Mode::empty())
                .with_context(|| format!("open {}", path.display()))?;
            self.cpus.push((cpu, file.into()));
        }
        Ok(())
    }

    fn read(&mut self, into: &mut Vec<Record>) -> Result<()> {
        let mut page = vec![0; rustix::param::page_size()];
        for (cpu, file) in &mut self.cpus {
            for _ in 0..PAGES {
                match file.read(&mut page) {
                    Ok(0) => break,
                    Ok(size) => ring::records(&page[..size], *cpu, into),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error).context("read the buffer of the tracer"),
                }
            }
        }
        Ok(())
    }

    fn lost(&self) -> u64 {
        let of = |(_, folder): (u32, PathBuf)| {
            let text = fs::read_to_string(folder.join("stats")).unwrap_or_default();
            let lost = ["overrun:", "commit overrun:", "dropped events:"];
            let line = |line: &str| {
                lost.iter().find_map(|key| line.strip_prefix(key)?.trim().parse::<u64>().ok())
            };
            text.lines().filter_map(line).sum::<u64>()
        };
        self.cpu_directories().unwrap_or_default().into_iter().map(of).sum()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The kernel removes none that is open.
        self.cpus.clear();
        let _ = fs::write(self.path.join("events/enable"), "0");
        let _ = fs::remove_dir(&self.path);
    }
}

/// Returns the number of a tracepoint for perf events, and where one of its fields is.
///
/// # Errors
/// Fails if there is no tracefs, or no such event or field.
pub(crate) fn tracepoint(event: &str, field: &str) -> Result<(u64, Field)> {
    let (_mount, root) = root()?;
    let path = root.join("events").join(event).join("format");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let found = Format::parse(event, &text).and_then(|f| Some((f.id().into(), f.field(field)?)));
    found.ok_or_else(|| anyhow!("{} has no {field}", path.display()))
}

/// Removes instances of commands that were killed.
fn remove_of_the_dead(instances: &Path) {
    for entry in fs::read_dir(instances).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("palisade-")?.split_once('-'));
        if let Some((pid, _)) = pid
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Returns the directory of the tracer: where it is mounted, or on a mount of our own.
fn root() -> Result<(Option<OwnedFd>, PathBuf)> {
    let usual = Path::new("/sys/kernel/tracing");
    if usual.join("instances").is_dir() {
        return Ok((None, usual.to_owned()));
    }
    let mount = || {
        let context = FsContext::open("tracefs")?;
        context.create()?;
        context.mount(MountAttrFlags::empty())
    };
    let mount = mount().map_err(|error| {
        anyhow!(
            "mount the tracer's file system, tracefs: {error}; it takes root of the host, a kernel \
             with CONFIG_FTRACE, and no lockdown for confidentiality"
        )
    })?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    Ok((Some(mount), path))
}

fn list(threads: &[i32]) -> String {
    threads.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
