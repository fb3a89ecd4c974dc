//! Lists and kills the processes of a cgroup.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::freeze::timespec;
use super::{Cgroup, file, tree};
use crate::error::{Context, Error, Result};
use crate::types::HostPid;

/// Time in which SIGKILL must have ended all processes.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Returns all processes in the cgroup and in those below it, or none if it
    /// is gone or absent.
    pub fn pids(&self) -> Result<Vec<HostPid>> {
        let Some(any) = self.any_dir() else { return Ok(Vec::new()) };
        let holder = self.holder().as_ref().map(|h| h.pid());
        let mut pids = Vec::new();
        tree::each(any, |dir| {
            // A threaded cgroup of version 2 only lists threads; its domain lists
            // their process.
            if let Some(procs) = file::read_at(dir, "cgroup.procs")? {
                // Processes of another PID namespace are listed as 0.
                let found = procs.lines().filter_map(|l| l.parse().ok()).filter(|p| *p > 0);
                pids.extend(found.filter(|p| Some(*p) != holder).map(HostPid));
            }
            Ok(())
        })?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Sends SIGKILL to all processes, repeatedly until none is left, and
    /// returns when all are gone. Thaws the cgroup, since frozen processes of
    /// version 1 do not die.
    pub fn kill_all(&self) -> Result<()> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        for round in 0.. {
            self.send_kill(round > 0)?;
            let left = self.pids()?;
            if left.is_empty() {
                return Ok(());
            }
            if !wait_for_exit(&pidfds(&left), deadline)? || Instant::now() >= deadline {
                return Err(Error::internal(format!(
                    "{}: {} processes do not die within {} s of SIGKILL",
                    self.name(),
                    left.len(),
                    KILL_TIMEOUT.as_secs()
                )));
            }
        }
        Ok(())
    }

    /// Sends SIGKILL to all processes at once, so that none escapes by forking.
    /// Returns false where the kernel cannot: on version 1, and before Linux
    /// 5.14.
    pub fn kill_at_once(&self) -> Result<bool> {
        if !self.saved.v2 {
            return Ok(false);
        }
        let kill = self.saved.dirs[0].path.join("cgroup.kill");
        match file::write_io(&kill, "1") {
            Ok(()) => Ok(true),
            Err(e) if file::gone(&e) => Ok(false),
            Err(e) => Err(e).context(|| format!("write 1 to {}", kill.display())),
        }
    }

    /// Sends SIGKILL to all processes, without waiting for their end.
    pub fn kill_now(&self) -> Result<()> {
        self.send_kill(false)
    }

    fn send_kill(&self, again: bool) -> Result<()> {
        if self.kill_at_once()? {
            return Ok(());
        }
        // Freezing the cgroup first catches a process that forks faster than
        // the shim reads the list. Most containers need no second round.
        let frozen = again && self.freeze().is_ok();
        for pidfd in pidfds(&self.pids()?) {
            match pidfd_send_signal(&pidfd, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(e) => return Err(e).context(|| format!("SIGKILL to {}", self.name())),
            }
        }
        if frozen || self.is_frozen()? {
            self.thaw_if_there()?;
        }
        Ok(())
    }
}

/// Opens descriptors of the processes that still live.
pub(super) fn pidfds(pids: &[HostPid]) -> Vec<OwnedFd> {
    let open = |p: &HostPid| pidfd_open(Pid::from_raw(p.0)?, PidfdFlags::empty()).ok();
    pids.iter().filter_map(open).collect()
}

/// Waits until all have exited. Returns false after the deadline.
pub(super) fn wait_for_exit(pidfds: &[OwnedFd], deadline: Instant) -> Result<bool> {
    for pidfd in pidfds {
        loop {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Ok(false);
            };
            let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
            match poll(&mut watched, Some(&timespec(left))) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).context(|| "poll a pidfd"),
            }
        }
    }
    Ok(true)
}
