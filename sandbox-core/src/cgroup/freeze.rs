//! Pauses and resumes a cgroup's processes.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::{Cgroup, file};
use crate::error::{Context, Error, Result};

/// Time in which a cgroup must freeze. A process that waits for a slow disk
/// cannot be frozen before the disk replies.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time that the first attempts to freeze get, so many of them. As many that follow get twice
/// as much, and so on.
const FIRST_ATTEMPT: Duration = Duration::from_millis(10);
const ATTEMPTS: usize = 6;

impl Cgroup {
    /// Freezes all processes. Returns once the kernel reports them frozen. If
    /// that takes too long, they go on running.
    ///
    /// A process that reads a view cannot be frozen before boot replies, and the root
    /// container's cgroup has boot in it, which may be frozen first. So there are several
    /// attempts, and all run for a moment in between.
    pub fn freeze(&self) -> Result<()> {
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        let mut attempt = FIRST_ATTEMPT;
        let mut number = 0;
        loop {
            number += 1;
            let until = deadline.min(Instant::now() + attempt);
            let v2 = self.saved.v2;
            let frozen = if v2 { self.freeze_v2(until)? } else { self.freeze_v1(until)? };
            if frozen {
                return Ok(());
            }
            self.thaw()?;
            if Instant::now() >= deadline {
                return Err(Error::internal(format!(
                    "{} could not be frozen within {} s and runs on",
                    self.name(),
                    FREEZE_TIMEOUT.as_secs()
                )));
            }
            std::thread::sleep(attempt / 10);
            if number % ATTEMPTS == 0 {
                attempt *= 2;
            }
        }
    }

    /// Lets all processes run again.
    pub fn thaw(&self) -> Result<()> {
        let (path, value) = self.freezer(false)?;
        file::write(&path, value)
    }

    /// As [`Cgroup::thaw`], before a removal. A cgroup that is gone, or a host
    /// without a freezer, needs no thaw.
    pub fn thaw_if_there(&self) -> Result<()> {
        let Ok((path, value)) = self.freezer(false) else {
            return Ok(());
        };
        match file::write_io(&path, value) {
            Err(e) if file::gone(&e) => Ok(()),
            written => written.context(|| format!("write {value:?} to {}", path.display())),
        }
    }

    /// Whether the cgroup itself is to be frozen.
    pub fn is_frozen(&self) -> Result<bool> {
        let Ok((path, _)) = self.freezer(false) else {
            return Ok(false);
        };
        let state = file::read_if_any(&path)?.unwrap_or_default();
        Ok(!matches!(state.trim(), "" | "0" | "THAWED"))
    }

    /// Returns the file to write and the value.
    fn freezer(&self, freeze: bool) -> Result<(std::path::PathBuf, &'static str)> {
        let missing =
            || Error::internal("the container has no cgroup with a freezer, which pausing needs");
        let dir = self.dir("freezer").ok_or_else(missing)?;
        Ok(match (self.saved.v2, freeze) {
            (true, true) => (dir.join("cgroup.freeze"), "1"),
            (true, false) => (dir.join("cgroup.freeze"), "0"),
            (false, true) => (dir.join("freezer.state"), "FROZEN"),
            (false, false) => (dir.join("freezer.state"), "THAWED"),
        })
    }

    /// Freezes on version 2, which signals an event on `cgroup.events`.
    fn freeze_v2(&self, until: Instant) -> Result<bool> {
        let (path, value) = self.freezer(true)?;
        let events = self.saved.dirs[0].path.join("cgroup.events");
        file::write(&path, value)?;
        wait_for(&events, "frozen", 1, until).context(|| format!("wait for {}", events.display()))
    }

    /// Freezes on version 1, which has no event. Each read of `freezer.state`
    /// tries again to stop the processes that run, and each write those that
    /// were forked meanwhile (freezer-subsystem.rst). Mostly the first read
    /// reports success.
    fn freeze_v1(&self, until: Instant) -> Result<bool> {
        let (path, value) = self.freezer(true)?;
        let mut pause = Duration::from_micros(20);
        while Instant::now() < until {
            file::write(&path, value)?;
            if file::read(&path)?.trim() == value {
                return Ok(true);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        Ok(false)
    }
}

/// Waits until a key of `cgroup.events` has a value. kernfs wakes pollers with
/// POLLPRI at every change.
pub(super) fn wait_for(
    events: &Path,
    key: &str,
    value: u64,
    deadline: Instant,
) -> io::Result<bool> {
    let fd = file::open(events, OFlags::RDONLY)?;
    let mut text = [0; 512];
    loop {
        let n = rustix::io::pread(&fd, &mut text, 0)?;
        let now = std::str::from_utf8(&text[..n]).unwrap_or("");
        if file::value_of(now, key) == Some(value) {
            return Ok(true);
        }
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            return Ok(false);
        };
        let mut watched = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::PRI | PollFlags::ERR)];
        match poll(&mut watched, Some(&timespec(left))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Converts a duration for poll(2).
pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
