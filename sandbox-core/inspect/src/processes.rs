//! The processes of a container, as the kernel shows them (proc_pid_stat(5), proc_pid_status(5)).
//! Their names and command lines are the container's, and so hostile: see [`Process::command`].

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use sandbox_core::cgroup::Cgroup;
use sandbox_core::types::HostPid;

use crate::status::Status;

/// The most of a command line that is read.
const COMMAND: usize = 4096;

/// One process.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Its PID on the host.
    pub pid: HostPid,
    /// Its PID in its own PID namespace.
    pub inside: i32,
    /// The host PID of its parent.
    pub parent: HostPid,
    /// Its effective user on the host.
    pub user: u32,
    /// Its effective user as it is in its user namespace. `None` if that has no number for it.
    pub user_inside: Option<u32>,
    /// The number of its threads.
    pub threads: u64,
    /// Its state, as one letter: `R`, `S`, `D`, `T`, `Z`, …
    pub state: char,
    /// The time that it used CPUs.
    pub cpu: Duration,
    /// When it was started, in ticks of the kernel's clock since the machine started.
    started: u64,
    /// Memory that is present, in bytes.
    pub memory: u64,
    /// Memory that was swapped out, in bytes.
    pub swapped: u64,
    /// The command line, or the name in brackets where there is none. Characters that are not
    /// printable are escaped.
    pub command: String,
}

impl Process {
    /// Reads a process. `None` if it has ended.
    pub fn read(pid: HostPid) -> Option<Self> {
        let read = |name: &str| fs::read(format!("/proc/{}/{name}", pid.0)).ok();
        let text = |name: &str| Some(String::from_utf8_lossy(&read(name)?).into_owned());
        let mut process = parse(pid, &text("stat")?, &Status::of(pid.0)?)?;
        process.user_inside = inside(&text("uid_map")?, process.user);
        if let Some(command) = command(&read_some(&format!("/proc/{}/cmdline", pid.0))) {
            process.command = command;
        }
        Some(process)
    }

    /// Reads the processes of a container, in the order of their start.
    ///
    /// # Errors
    /// The error names the cgroup that cannot be read. One that is gone has no processes.
    pub fn of(cgroup: &Cgroup) -> Result<Vec<Self>> {
        let pids = cgroup.pids().context("list the processes of a container")?;
        let mut all: Vec<Self> = pids.into_iter().filter_map(Self::read).collect();
        all.sort_by_key(|process| (process.started, process.pid.0));
        Ok(all)
    }

    /// Returns when it was started.
    pub fn started(&self) -> SystemTime {
        UNIX_EPOCH + boot_time() + Duration::from_millis(1000 * self.started / ticks())
    }
}

/// Returns the first process of a container that is one of its own: not boot, which shares the
/// cgroup of the root container, unless there is no other. All others descend from it, or were
/// exec'd later.
pub fn first(processes: &[Process], boot: Option<i32>) -> Option<&Process> {
    let not_boot = |process: &&Process| Some(process.pid.0) != boot && process.state != 'Z';
    processes.iter().find(not_boot).or_else(|| processes.first())
}

fn parse(pid: HostPid, stat: &str, status: &Status) -> Option<Process> {
    // The name can contain anything, also a parenthesis.
    let (name, rest) = (stat.find('(')?, stat.rfind(')')?);
    let fields: Vec<&str> = stat.get(rest + 2..)?.split(' ').collect();
    // Counted as in the manual, which begins with 1, and the state is the third.
    let field = |number: usize| fields.get(number - 3)?.trim().parse::<u64>().ok();
    Some(Process {
        pid,
        inside: status.inside()?,
        parent: HostPid(field(4)?.try_into().ok()?),
        user: status.number("Uid", 1)?,
        user_inside: None,
        threads: field(20)?,
        state: fields.first()?.chars().next()?,
        cpu: Duration::from_millis(1000 * (field(14)? + field(15)?) / ticks()),
        started: field(22)?,
        memory: status.bytes("VmRSS").unwrap_or(0),
        swapped: status.bytes("VmSwap").unwrap_or(0),
        command: format!("[{}]", crate::calls::printable(stat.get(name + 1..rest)?.as_bytes())),
    })
}

/// Returns the number inside of a user of this process's namespace (user_namespaces(7)).
fn inside(map: &str, user: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let (inside, outside, count) = (next()?, next()?, next()?);
        let at = user.checked_sub(outside).filter(|at| *at < count)?;
        inside.checked_add(at)
    })
}

/// Joins the arguments of a command line. `None` if there are none.
fn command(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().rposition(|byte| *byte != 0)? + 1;
    let arguments = bytes[..end].split(|byte| *byte == 0).map(crate::calls::printable);
    Some(arguments.collect::<Vec<_>>().join(" "))
}

fn read_some(path: &str) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(COMMAND as u64).read_to_end(&mut bytes);
    }
    bytes
}

fn ticks() -> u64 {
    rustix::param::clock_ticks_per_second().max(1)
}

/// Returns when the machine started, since 1970.
fn boot_time() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    Duration::from_secs(line.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_though_its_name_is_hostile() {
        let stat = "7 (a) R 1 (\n) S 3 7 7 0 -1 0 1 2 3 4 150 50 0 0 20 0 2 0 700 9 9";
        let status = b"Name:\tx\nUid:\t1\t100033\t1\t1\nNSpid:\t7\t12\t4\nVmRSS:\t  12 kB\n";
        let process = parse(HostPid(7), stat, &Status::parse(status)).unwrap();
        assert_eq!(process.command, r"[a) R 1 (\n]");
        assert_eq!((process.inside, process.parent, process.user), (4, HostPid(3), 100_033));
        assert_eq!((process.threads, process.state, process.memory), (2, 'S', 12 << 10));
        assert_eq!(process.cpu, Duration::from_secs(2));
    }

    #[test]
    fn users_are_those_inside() {
        let map = "         0     100000      65536\n     65536     300000          1\n";
        assert_eq!(inside(map, 100_033), Some(33));
        assert_eq!(inside(map, 300_000), Some(65536));
        assert_eq!(inside(map, 300_001), None);
        assert_eq!(inside("0 0 4294967295", 5), Some(5));
    }

    #[test]
    fn command_lines_are_printable() {
        assert_eq!(command(b"sh\0-c\0echo \x1b[2J\0").as_deref(), Some(r"sh -c echo \u{1b}[2J"));
        assert_eq!(command(b"\0\0"), None);
    }

    #[test]
    fn this_process_is_read() {
        let me = Process::read(HostPid(std::process::id().cast_signed())).unwrap();
        assert!(me.memory > 0 && me.command.contains("sandbox_inspect"), "{me:?}");
        assert!(me.started() <= SystemTime::now() + Duration::from_secs(1));
        assert_eq!(me.user_inside, Some(rustix::process::geteuid().as_raw()));
    }
}
