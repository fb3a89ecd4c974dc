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
/// nothing: ask once more when a process has ended. Kills in cgroups that the
/// workload made below its own count on version 2 only.
#[derive(Debug)]
pub struct OomWatch {
    event: OwnedFd,
    counter: PathBuf,
    seen: u64,
    /// The counter of the cgroup above, which counts the kills of all below it,
    /// and what it said. Where systemd removes the cgroup as soon as it is empty,
    /// that may be before we have read its own.
    above: Option<(PathBuf, u64)>,
    /// The counters have changed, but for no kill so far: a limit was hit.
    was_short: bool,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl OomWatch {
    /// How many processes were killed since the last call. Makes the descriptor
    /// unreadable until the next event.
    ///
    /// When the cgroup is gone, the one above may tell of a kill, which was here
    /// if there was an event of which we do not know yet. The kernel keeps an
    /// event back that comes within 10 ms of another one (`cgroup_file_notify`)
    /// and forgets it with the cgroup; so one that we know of will do as well, if
    /// `killed`: SIGKILL has ended one of the processes, and was not sent by us
    /// since the last call.
    pub fn take(&mut self, killed: bool) -> Result<u64> {
        let changed = self.drain()?;
        // The kernel counts a kill here before it does above: what is read in the
        // opposite order is of no kill that is not in our own count.
        let above = self.kills_above()?;
        let Some(now) = kills(&self.counter)? else {
            self.was_short |= changed;
            let suspected = changed || killed && self.was_short;
            let above = self.kills_above()?;
            return Ok(u64::from(suspected && self.see_above(above)));
        };
        let new = now.saturating_sub(self.seen);
        self.seen = self.seen.max(now);
        self.was_short = new == 0 && (changed || self.was_short);
        let above = if new > 0 { self.kills_above()? } else { above };
        self.see_above(above);
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

    /// What the cgroup above says, if it can.
    fn kills_above(&self) -> Result<Option<u64>> {
        self.above.as_ref().map_or(Ok(None), |(counter, _)| kills(counter))
    }

    /// Keeps what the cgroup above said; whether that is more than the last time.
    fn see_above(&mut self, now: Option<u64>) -> bool {
        let (Some((_, seen)), Some(now)) = (&mut self.above, now) else { return false };
        std::mem::replace(seen, now) < now
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
        Ok(OomWatch { event, counter, seen, above, was_short: false })
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

    /// A cgroup and the one above, as files: the kernel cannot be held between
    /// counting a kill and systemd's removing the cgroup.
    struct Counters {
        directory: tempfile::TempDir,
        watch: OomWatch,
    }

    impl Counters {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let above = directory.path().join("memory.events");
            let counter = directory.path().join("own/memory.events");
            std::fs::create_dir(counter.parent().unwrap()).unwrap();
            let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
            let event = inotify::init(flags).unwrap();
            for file in [&above, &counter] {
                std::fs::write(file, "max 0\noom_kill 0\n").unwrap();
            }
            inotify::add_watch(&event, &counter, WatchFlags::MODIFY).unwrap();
            let above = Some((above, 0));
            Self { directory, watch: OomWatch { event, counter, seen: 0, above, was_short: false } }
        }

        fn count(&self, file: &str, max: u64, kills: u64) {
            let path = self.directory.path().join(file).join("memory.events");
            std::fs::write(path, format!("max {max}\noom_kill {kills}\n")).unwrap();
        }

        fn remove(&self) {
            std::fs::remove_dir_all(self.directory.path().join("own")).unwrap();
        }

        fn take(&mut self, killed: bool) -> u64 {
            self.watch.take(killed).unwrap()
        }
    }

    #[test]
    fn a_kill_whose_event_went_with_the_cgroup_is_told_at_the_exit() {
        let mut counters = Counters::new();
        counters.count("own", 1, 0);
        assert_eq!(counters.take(false), 0);
        counters.count("", 1, 1);
        counters.remove();
        // The end of the watch is an event too, but of no kill.
        assert_eq!(counters.take(false), 0);
        assert_eq!(counters.take(true), 1);
        assert_eq!(counters.take(true), 0);
    }

    #[test]
    fn a_kill_next_door_is_not_the_reason_of_an_end() {
        let mut counters = Counters::new();
        counters.count("", 0, 1);
        counters.remove();
        assert_eq!(counters.take(true), 0);

        // Nor is one that was known before.
        let mut counters = Counters::new();
        counters.count("own", 1, 0);
        counters.count("", 1, 1);
        assert_eq!(counters.take(false), 0);
        counters.remove();
        assert_eq!(counters.take(true), 0);
    }

    #[test]
    fn a_kill_is_told_once_though_the_cgroup_above_counts_it_too() {
        let mut counters = Counters::new();
        counters.count("own", 1, 1);
        counters.count("", 1, 1);
        assert_eq!(counters.take(false), 1);
        counters.remove();
        assert_eq!(counters.take(true), 0);
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
