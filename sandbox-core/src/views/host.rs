//! The kernel's own files, as boot's proc shows them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::kernel_file::{self, USUAL, nonsense, utf8};
use crate::cpu_set::CpuSet;

/// The time for which a text counts that the kernel makes slowly on a machine with many CPUs,
/// and that is the machine's.
const SLOW: Duration = Duration::from_secs(1);
/// The number of texts of `cpuinfo` that are kept, each for other CPUs.
const CPUINFOS: usize = 4;

/// The kernel's files. Each is opened at its first look and kept open.
#[derive(Debug)]
pub(crate) struct Host {
    proc: PathBuf,
    opened: Vec<Opened>,
    machine: Option<(Instant, Machine)>,
    cpuinfo: Vec<(Instant, CpuSet, String)>,
}

#[derive(Debug)]
struct Opened {
    name: &'static str,
    fd: OwnedFd,
    /// The number of bytes that it is expected to be below.
    size: usize,
}

/// What `/proc/stat` says about the machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    /// The CPUs with a line of their own: those that are online.
    pub(super) online: CpuSet,
    /// The lines of all CPUs and of each.
    pub(super) cpus: String,
    /// The lines after those.
    pub(super) lines: String,
}

impl Host {
    /// Returns the files of this proc, which is of boot's PID namespace.
    pub(crate) fn new(proc: impl Into<PathBuf>) -> Host {
        Host { proc: proc.into(), opened: Vec::new(), machine: None, cpuinfo: Vec::new() }
    }

    /// Reads a file that the kernel makes as a whole.
    pub(super) fn read(&mut self, name: &'static str) -> io::Result<String> {
        let opened = self.open(name)?;
        let text = kernel_file::read(&opened.fd, opened.size)?;
        // A little more than now, so that one pread will do the next time.
        opened.size = text.len() + text.len() / 8 + 64;
        utf8(text, name)
    }

    /// Reads a file that the kernel makes by lines.
    pub(super) fn read_lines(&mut self, name: &'static str) -> io::Result<String> {
        utf8(kernel_file::read_lines(&self.open(name)?.fd, |_| false)?, name)
    }

    /// Returns the CPUs that are online.
    pub(super) fn online(&mut self) -> io::Result<CpuSet> {
        Ok(self.machine()?.online.clone())
    }

    /// Returns what `stat` says about the machine, at most a second old.
    pub(super) fn machine(&mut self) -> io::Result<&Machine> {
        let now = Instant::now();
        let machine = match self.machine.take() {
            Some((at, machine)) if now.duration_since(at) < SLOW => (at, machine),
            _ => (now, Machine::parse(&self.read("stat")?)),
        };
        Ok(&self.machine.insert(machine).1)
    }

    /// Returns the blocks of `cpuinfo` of these CPUs, at most a second old.
    pub(super) fn cpuinfo(
        &mut self,
        cpus: &CpuSet,
        blocks_of: impl FnOnce(&str, &CpuSet) -> String,
    ) -> io::Result<String> {
        let now = Instant::now();
        self.cpuinfo.retain(|(at, ..)| now.duration_since(*at) < SLOW);
        if let Some((_, _, text)) = self.cpuinfo.iter().find(|(_, of, _)| of == cpus) {
            return Ok(text.clone());
        }
        let text = blocks_of(&self.read_lines("cpuinfo")?, cpus);
        if self.cpuinfo.len() >= CPUINFOS {
            self.cpuinfo.remove(0);
        }
        self.cpuinfo.push((now, cpus.clone(), text.clone()));
        Ok(text)
    }

    /// Returns the state of a thread as proc_pid_stat(5) has it. `None` if it has ended.
    pub(super) fn state_of(&self, thread: i32) -> Option<u8> {
        let path = self.proc.join(format!("{thread}/task/{thread}/stat"));
        let fd = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut start = [0; 128];
        let fd = fd.ok()?;
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(&fd, &mut start, 0)).ok()?;
        // The name, in brackets, may have brackets and spaces itself. It is short.
        let start = start.get(..read)?;
        let end = start.iter().rposition(|b| *b == b')')?;
        start.get(end + 2).copied()
    }

    /// Opens a file anew that boot holds open. `None` if boot may not.
    pub(super) fn open_anew(&self, fd: &OwnedFd) -> io::Result<Option<OwnedFd>> {
        let path = self.proc.join(format!("self/fd/{}", fd.as_raw_fd()));
        match rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NODEV) => Err(Errno::NODEV.into()),
            Err(_) => Ok(None),
        }
    }

    fn open(&mut self, name: &'static str) -> io::Result<&mut Opened> {
        let known = self.opened.iter().position(|opened| opened.name == name);
        let at = match known {
            Some(at) => at,
            None => {
                let path = self.proc.join(name);
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
                self.opened.push(Opened { name, fd, size: USUAL });
                self.opened.len() - 1
            }
        };
        self.opened.get_mut(at).ok_or_else(|| nonsense(name))
    }
}

impl Machine {
    fn parse(stat: &str) -> Machine {
        let mut machine = Machine::default();
        for line in stat.split_inclusive('\n') {
            match line.strip_prefix("cpu") {
                Some(cpu) => {
                    let number = cpu.split(' ').next().and_then(|number| number.parse().ok());
                    machine.cpus.push_str(line);
                    number.into_iter().for_each(|cpu| machine.online.insert(cpu));
                }
                None => machine.lines.push_str(line),
            }
        }
        machine
    }
}
