//! The cost of an operation besides time: CPU, by the accounting of the
//! benchmark's cgroup, and processes, as the kernel's process connector reports
//! them.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
    sockopt,
};

use crate::lab::Lab;

/// A clock of the CPU time used below the benchmark's cgroup by all processes
/// except the benchmark: shims, engines, containers.
#[derive(Debug)]
pub struct CpuClock {
    cgroup: PathBuf,
}

impl CpuClock {
    /// Makes the clock of a lab.
    pub fn new(lab: &Lab) -> CpuClock {
        CpuClock { cgroup: lab.accounting() }
    }

    /// Returns its time.
    pub fn read(&self) -> Result<Duration> {
        let v1 = self.cgroup.join("cpuacct.usage");
        let all = match fs::read_to_string(&v1) {
            Ok(usage) => Duration::from_nanos(usage.trim().parse()?),
            Err(_) => self.read_v2()?,
        };
        let own = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
        Ok(all.saturating_sub(own.into()))
    }

    fn read_v2(&self) -> Result<Duration> {
        let path = self.cgroup.join("cpu.stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(usage.context("cpu.stat has no usage_usec")?.parse()?))
    }
}

/// The processes started during a [`Census`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Started {
    /// Number of new processes.
    pub processes: u32,
    /// Number of their threads, beyond the first.
    pub threads: u32,
    /// Number of programs executed.
    pub programs: u32,
}

/// Counts the processes that the benchmark's descendants start. It listens to
/// the kernel's process connector (`linux/cn_proc.h`), which names each new
/// process and its parent, so no other process of the machine is counted.
#[derive(Debug)]
pub struct Census {
    socket: OwnedFd,
    family: BTreeSet<u32>,
}

const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_EVENT_FORK: u32 = 1;
const PROC_EVENT_EXEC: u32 = 2;
const NLMSG_DONE: u16 = 3;
/// Size of both headers, `nlmsghdr` and `cn_msg`.
const HEADERS: usize = 16 + 20;

impl Census {
    /// Starts to listen.
    pub fn begin(lab: &Lab) -> Result<Census> {
        let mut family: BTreeSet<u32> =
            lab.processes().into_iter().filter_map(|pid| pid.try_into().ok()).collect();
        family.insert(std::process::id());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::CONNECTOR))
                .context("open the process connector")?;
        sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20)?;
        bind(&socket, &SocketAddrNetlink::new(0, CN_IDX_PROC))?;
        send(&socket, &subscription(), SendFlags::empty()).context("ask for process events")?;
        Ok(Census { socket, family })
    }

    /// Returns what was counted since the start.
    pub fn end(mut self) -> Result<Started> {
        let mut started = Started::default();
        let mut buffer = vec![0; 4096];
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((_, length)) => self.count(&buffer[..length], &mut started),
                Err(rustix::io::Errno::AGAIN) => return Ok(started),
                Err(e) => bail!("the process connector: {e}"),
            }
        }
    }

    /// Counts one event: its kind, CPU and timestamp, and then PIDs by kind.
    fn count(&mut self, message: &[u8], started: &mut Started) {
        let word = |index: usize| {
            let at = HEADERS + index * 4;
            let bytes = message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        match word(0) {
            PROC_EVENT_FORK => {
                let (parent, child, leader) = (word(5), word(6), word(7));
                if !self.family.contains(&parent) {
                } else if child == leader {
                    self.family.insert(child);
                    started.processes += 1;
                } else if parent != std::process::id() {
                    started.threads += 1;
                }
            }
            PROC_EVENT_EXEC if self.family.contains(&word(5)) => started.programs += 1,
            _ => {}
        }
    }
}

fn subscription() -> Vec<u8> {
    let length = (HEADERS + 4) as u32;
    let mut message = Vec::new();
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&NLMSG_DONE.to_ne_bytes());
    message.extend_from_slice(&0u16.to_ne_bytes());
    for word in [0, 0, CN_IDX_PROC, CN_VAL_PROC, 0, 0] {
        message.extend_from_slice(&u32::to_ne_bytes(word));
    }
    message.extend_from_slice(&4u16.to_ne_bytes());
    message.extend_from_slice(&0u16.to_ne_bytes());
    message.extend_from_slice(&PROC_CN_MCAST_LISTEN.to_ne_bytes());
    message
}
