//! Taking a cgroup away.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::processes::{pidfds, tree, wait_for_exit};
use super::{Cgroup, systemd};
use crate::error::{Context, Error, Result};

/// How long a removal may take; containerd gives `delete` five seconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long to wait for processes at a time, before trying again.
const STEP: Duration = Duration::from_millis(50);

impl Cgroup {
    /// Removes the cgroup and those that the workload made below it.
    ///
    /// Done already is success. Kills nothing (but a unit's processes, by
    /// systemd): processes that are just dying are waited for, three seconds
    /// at most, and then the error says how many are left. Parents stay, as
    /// with runc: they belong to the kubelet or the administrator.
    pub fn remove(&self) -> Result<()> {
        if let Some(unit) = &self.saved.unit {
            systemd::stop(unit)?;
        }
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(200);
        let mut left: Vec<&Path> = self.paths().collect();
        loop {
            let mut busy = Vec::new();
            for dir in left {
                if !remove_tree(dir)? {
                    busy.push(dir);
                }
            }
            if busy.is_empty() {
                return Ok(());
            }
            left = busy;
            // Frozen processes of version 1 do not even die.
            if self.is_frozen()? {
                self.thaw_if_there()?;
            }
            let now = Instant::now();
            if now >= deadline {
                return self.refused(&left);
            }
            // An event where there is one: the exit of a process that is still
            // listed. The last moments of a dying one are not.
            let alive = pidfds(&self.pids()?);
            if alive.is_empty() {
                std::thread::sleep(pause);
                pause = (pause * 2).min(STEP);
            } else {
                wait_for_exit(&alive, now + STEP)?;
            }
        }
    }

    fn refused(&self, left: &[&Path]) -> Result<()> {
        let count = self.pids()?.len();
        let dirs: Vec<_> = left.iter().map(|d| d.display().to_string()).collect();
        Err(Error::internal(format!(
            "rmdir {}: still busy after {} s, with {count} processes",
            dirs.join(" "),
            PATIENCE.as_secs()
        )))
    }
}

/// Removes what it can, children first; whether that was all.
fn remove_tree(dir: &Path) -> Result<bool> {
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(e) => return Err(e).context(|| format!("rmdir {}", dir.display())),
    }
    let mut gone = true;
    for below in tree(dir)?.iter().rev() {
        match rustix::fs::rmdir(below) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::BUSY | Errno::NOTEMPTY) => gone = false,
            Err(e) => return Err(e).context(|| format!("rmdir {}", below.display())),
        }
    }
    Ok(gone)
}
