//! Being told of out-of-memory kills.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

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
    /// The counter of the cgroup above, which counts the kills of all below it,
    /// and what it said. Where systemd removes the cgroup as soon as it is empty,
    /// that may be before we have read its own.
    above: Option<(PathBuf, u64)>,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl OomWatch {
    /// How many processes were killed since the last call. None when the
    /// cgroup is gone, unless its last events and the cgroup above say that there
    /// was one. Makes the descriptor unreadable until the next event.
    pub fn take(&mut self) -> Result<u64> {
        let modified = self.drain()?;
        let now = kills(&self.counter)?;
        let above = self.take_above()?;
        let Some(now) = now else {
            return Ok(u64::from(modified && above));
        };
        let new = now.saturating_sub(self.seen);
        self.seen = self.seen.max(now);
        Ok(new)
    }

    /// Reads the events away; whether one told of a change of the counters. The
    /// last of a cgroup that is removed tells of that.
    fn drain(&self) -> Result<bool> {
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.event, &mut events) {
                Ok(length) => return Ok(tells_of_change(&events[..length])),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).context(|| "read an out-of-memory event"),
            }
        }
    }

    /// Whether somebody was killed in the cgroup above or below it since the
    /// last call.
    fn take_above(&mut self) -> Result<bool> {
        let Some((counter, seen)) = &mut self.above else { return Ok(false) };
        let now = kills(counter)?.unwrap_or(*seen);
        Ok(std::mem::replace(seen, now) < now)
    }
}

/// Whether a struct inotify_event (inotify(7)) among these is `IN_MODIFY`: the
/// watched file has no name in them, so that all are of one size.
fn tells_of_change(events: &[u8]) -> bool {
    const SIZE: usize = 16;
    let mask = |event: &[u8]| event[4..8].try_into().map_or(0, u32::from_ne_bytes);
    let modify = inotify::ReadFlags::MODIFY.bits();
    events.chunks_exact(SIZE).any(|event| mask(event) & modify != 0)
}

impl Cgroup {
    /// Starts watching; kills before this call are not reported.
    pub fn oom_watch(&self) -> Result<OomWatch> {
        let counter = self.oom_counter()?;
        let event = if self.saved.v2 { self.watch_v2(&counter)? } else { self.watch_v1(&counter)? };
        let seen = kills(&counter)?.unwrap_or(0);
        let above = match &self.saved.unit {
            Some(_) if self.saved.v2 => counter_above(&counter)?,
            _ => None,
        };
        Ok(OomWatch { event, counter, seen, above })
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
    fn watch_v1(&self, control: &Path) -> Result<OwnedFd> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = rustix::event::eventfd(0, flags).context(|| "eventfd")?;
        let watched = file::open(control, OFlags::RDONLY)
            .context(|| format!("open {}", control.display()))?;
        let line = format!("{} {}", event.as_raw_fd(), watched.as_raw_fd());
        file::write(&control.with_file_name("cgroup.event_control"), &line)?;
        Ok(event)
    }

    /// `memory.events` is marked modified at each event (cgroup-v2.rst).
    fn watch_v2(&self, events: &Path) -> Result<OwnedFd> {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let event = inotify::init(flags).context(|| "inotify_init1")?;
        inotify::add_watch(&event, events, WatchFlags::MODIFY)
            .context(|| format!("inotify_add_watch {}", events.display()))?;
        Ok(event)
    }
}

/// The same counter one cgroup above, with its value; the root has none.
fn counter_above(counter: &Path) -> Result<Option<(PathBuf, u64)>> {
    let name = counter.file_name().unwrap_or_default();
    let Some(above) = counter.ancestors().nth(2).map(|cgroup| cgroup.join(name)) else {
        return Ok(None);
    };
    Ok(kills(&above)?.map(|seen| (above, seen)))
}

/// The counter; none when the cgroup is gone. Version 1 counts since Linux 4.13.
fn kills(counter: &Path) -> Result<Option<u64>> {
    let text = file::read_if_any(counter)?;
    Ok(text.map(|t| file::value_of(&t, "oom_kill").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(mask: inotify::ReadFlags) -> Vec<u8> {
        [1, mask.bits(), 0, 0].iter().flat_map(|field: &u32| field.to_ne_bytes()).collect()
    }

    #[test]
    fn the_last_events_of_a_cgroup_tell_whether_it_changed() {
        let (modify, gone) = (inotify::ReadFlags::MODIFY, inotify::ReadFlags::IGNORED);
        assert!(tells_of_change(&[event(modify), event(gone)].concat()));
        assert!(!tells_of_change(&event(gone)));
        // What version 1 has instead is a counter.
        assert!(!tells_of_change(&1_u64.to_ne_bytes()));
    }
}
