//! Removes a cgroup.

use std::path::Path;
use std::time::{Duration, Instant};

use super::processes::{pidfds, wait_for_exit};
use super::{Cgroup, systemd, tree};
use crate::error::{Error, Result};

/// Time for a removal. containerd gives `delete` five seconds.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Time to wait for processes before each further attempt.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

impl Cgroup {
    /// Removes the cgroup and those that the workload made below it.
    ///
    /// If it is gone already, that is a success. Kills nothing, though systemd
    /// kills a unit's processes. Waits three seconds at most for processes that
    /// are about to end; then the error says how many are left. Parents stay,
    /// as with runc: they belong to the kubelet or the administrator.
    pub fn remove(&self) -> Result<()> {
        self.remove_within(REMOVAL_TIMEOUT)
    }

    /// As [`Cgroup::remove`], but waits this long at most.
    pub fn remove_within(&self, patience: Duration) -> Result<()> {
        if let Some(unit) = &self.saved.unit {
            systemd::stop(unit)?;
        }
        // Processes that are left there fall back to the class of all others.
        let shares = self.saved.resctrl.as_ref().map_or(Ok(()), |groups| groups.remove());
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        let mut left: Vec<&Path> = self.paths().collect();
        loop {
            let mut busy = Vec::new();
            for dir in left {
                if !tree::remove(dir)? {
                    busy.push(dir);
                }
            }
            if busy.is_empty() {
                return shares;
            }
            left = busy;
            // Frozen processes of version 1 cannot die.
            if self.is_frozen()? {
                self.thaw_if_there()?;
            }
            let now = Instant::now();
            if now >= deadline {
                return self.refused(&left, patience);
            }
            // Wait for an event if there is one: the exit of a listed process.
            // In its last moments a process is not listed any more.
            let alive = pidfds(&self.pids()?);
            if alive.is_empty() {
                std::thread::sleep(pause);
                pause = (pause * 2).min(RETRY_INTERVAL);
            } else {
                wait_for_exit(&alive, now + RETRY_INTERVAL)?;
            }
        }
    }

    fn refused(&self, left: &[&Path], patience: Duration) -> Result<()> {
        let count = self.pids()?.len();
        let dirs: Vec<_> = left.iter().map(|d| d.display().to_string()).collect();
        Err(Error::internal(format!(
            "rmdir {}: still busy after {patience:?}, with {count} processes",
            dirs.join(" ")
        )))
    }
}
