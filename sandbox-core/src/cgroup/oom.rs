//! Being told of out-of-memory kills.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::EventfdFlags;
use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::{Cgroup, file};
use crate::error::{Context, Error, Result};

/// Readable when something happened that may be an out-of-memory kill; then
/// ask [`OomWatch::take`]. Becomes readable as well when the cgroup is removed.
///
/// Version 1 signals before it kills, so that a `take` at once may find
/// nothing: ask once more when a process has exited by SIGKILL. Kills in
/// cgroups that the workload made below its own count on version 2 only.
#[derive(Debug)]
pub struct OomWatch {
    event: OwnedFd,
    counter: PathBuf,
    seen: u64,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl OomWatch {
    /// How many processes were killed since the last call. None when the
    /// cgroup is gone. Makes the descriptor unreadable until the next event.
    pub fn take(&mut self) -> Result<u64> {
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.event, &mut events) {
                Ok(_) | Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).context(|| "read an out-of-memory event"),
            }
        }
        let now = kills(&self.counter)?.unwrap_or(self.seen);
        let new = now.saturating_sub(self.seen);
        self.seen = self.seen.max(now);
        Ok(new)
    }
}

impl Cgroup {
    /// Starts watching; kills before this call are not reported.
    pub fn oom_watch(&self) -> Result<OomWatch> {
        let counter = self.oom_counter()?;
        let event = if self.saved.v2 { self.watch_v2(&counter)? } else { self.watch_v1(&counter)? };
        let seen = kills(&counter)?.unwrap_or(0);
        Ok(OomWatch { event, counter, seen })
    }

    /// How many processes were killed for want of memory, ever.
    pub fn oom_kill_count(&self) -> Result<u64> {
        Ok(kills(&self.oom_counter()?)?.unwrap_or(0))
    }

    fn oom_counter(&self) -> Result<PathBuf> {
        let missing = || {
            Error::internal("this host has no memory cgroup, which tells of out-of-memory kills")
        };
        let dir = self.dir("memory").ok_or_else(missing)?;
        Ok(dir.join(if self.saved.v2 { "memory.events" } else { "memory.oom_control" }))
    }

    /// An eventfd, registered with `cgroup.event_control` (memcg_test.rst).
    fn watch_v1(&self, control: &std::path::Path) -> Result<OwnedFd> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = rustix::event::eventfd(0, flags).context(|| "eventfd")?;
        let watched = file::open(control, OFlags::RDONLY)
            .context(|| format!("open {}", control.display()))?;
        let line = format!("{} {}", event.as_raw_fd(), watched.as_raw_fd());
        file::write(&control.with_file_name("cgroup.event_control"), &line)?;
        Ok(event)
    }

    /// `memory.events` is marked modified at each event (cgroup-v2.rst).
    fn watch_v2(&self, events: &std::path::Path) -> Result<OwnedFd> {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let event = inotify::init(flags).context(|| "inotify_init1")?;
        inotify::add_watch(&event, events, WatchFlags::MODIFY)
            .context(|| format!("inotify_add_watch {}", events.display()))?;
        Ok(event)
    }
}

/// The counter; none when the cgroup is gone. Version 1 counts since Linux 4.13.
fn kills(counter: &std::path::Path) -> Result<Option<u64>> {
    let text = file::read_if_any(counter)?;
    Ok(text.map(|t| file::value_of(&t, "oom_kill").unwrap_or(0)))
}
