//! Reports out-of-memory kills.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::EventfdFlags;
use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::{Cgroup, file};
use crate::error::{Context, Error, Result};

/// A descriptor that is readable after a possible out-of-memory kill; then call
/// [`OomWatch::take`]. It also becomes readable when the cgroup is removed.
///
/// Version 1 signals before it kills, so a `take` at once may find nothing.
/// Call it again when a process has ended. Kills in cgroups that the workload
/// made below its own count on version 2 only.
#[derive(Debug)]
pub struct OomWatch {
    event: OwnedFd,
    counter: PathBuf,
    seen: u64,
    /// The counter of the parent cgroup, which includes the kills in all
    /// cgroups below, and its last value. systemd removes a cgroup as soon as
    /// it is empty, maybe before the shim has read the cgroup's own counter.
    above: Option<(PathBuf, u64)>,
    /// Whether the counters have changed without a kill so far: a limit was
    /// hit.
    was_short: bool,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl OomWatch {
    /// Returns the number of processes killed since the last call. The
    /// descriptor is then unreadable until the next event.
    ///
    /// If the cgroup is gone, the parent's counter may show a kill. It was in
    /// this cgroup if there was an event that is not counted yet. The
    /// kernel delays an event that follows another within 10 ms
    /// (`cgroup_file_notify`) and drops it with the cgroup. So an earlier event
    /// without a kill counts as well if `killed` is true: SIGKILL has ended one
    /// of the processes, and the shim has sent none since the last call.
    pub fn take(&mut self, killed: bool) -> Result<u64> {
        let changed = self.drain()?;
        // The kernel counts a kill in the cgroup before it does in the parent.
        // The shim reads them in the opposite order, so the parent's value
        // includes no kill that is not in the cgroup's own count.
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

    /// Reads all events. Returns whether one reported a change of the counters.
    /// The last event of a removed cgroup reports the removal.
    fn drain(&self) -> Result<bool> {
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.event, &mut events) {
                Ok(length) => return Ok(reports_change(&events[..length])),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).context(|| "read an out-of-memory event"),
            }
        }
    }

    /// Returns the parent's counter, if there is one.
    fn kills_above(&self) -> Result<Option<u64>> {
        self.above.as_ref().map_or(Ok(None), |(counter, _)| kills(counter))
    }

    /// Stores the parent's counter. Returns whether it has grown.
    fn see_above(&mut self, now: Option<u64>) -> bool {
        let (Some((_, seen)), Some(now)) = (&mut self.above, now) else { return false };
        std::mem::replace(seen, now) < now
    }
}

/// Whether one of these struct inotify_event (inotify(7)) is `IN_MODIFY`. The
/// watched file has no name in them, so all have the same size.
fn reports_change(events: &[u8]) -> bool {
    const SIZE: usize = 16;
    let mask = |event: &[u8]| event[4..8].try_into().map_or(0, u32::from_ne_bytes);
    let modify = inotify::ReadFlags::MODIFY.bits();
    events.chunks_exact(SIZE).any(|event| mask(event) & modify != 0)
}

impl Cgroup {
    /// Starts watching. Kills before this call are not reported.
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

    fn oom_counter(&self) -> Result<PathBuf> {
        let missing =
            || Error::internal("this host has no memory cgroup, which reports out-of-memory kills");
        let dir = self.dir("memory").ok_or_else(missing)?;
        Ok(dir.join(if self.saved.v2 { "memory.events" } else { "memory.oom_control" }))
    }

    /// Registers an eventfd with `cgroup.event_control` (memcg_test.rst).
    fn watch_v1(&self, control: &Path) -> Result<OwnedFd> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = rustix::event::eventfd(0, flags).context(|| "eventfd")?;
        let watched = file::open(control, OFlags::RDONLY)
            .context(|| format!("open {}", control.display()))?;
        let line = format!("{} {}", event.as_raw_fd(), watched.as_raw_fd());
        file::write(&control.with_file_name("cgroup.event_control"), &line)?;
        Ok(event)
    }

    /// Watches `memory.events`, which is modified at each event (cgroup-v2.rst).
    fn watch_v2(&self, events: &Path) -> Result<OwnedFd> {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let event = inotify::init(flags).context(|| "inotify_init1")?;
        inotify::add_watch(&event, events, WatchFlags::MODIFY)
            .context(|| format!("inotify_add_watch {}", events.display()))?;
        Ok(event)
    }
}

/// Returns the parent's counter and its value. The root has none.
fn counter_above(counter: &Path) -> Result<Option<(PathBuf, u64)>> {
    let name = counter.file_name().unwrap_or_default();
    let Some(above) = counter.ancestors().nth(2).map(|cgroup| cgroup.join(name)) else {
        return Ok(None);
    };
    Ok(kills(&above)?.map(|seen| (above, seen)))
}

/// Reads the counter. `None` if the cgroup is gone. Version 1 counts since Linux 4.13.
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
    fn a_kill_whose_event_went_with_the_cgroup_is_reported_at_the_exit() {
        let mut counters = Counters::new();
        counters.count("own", 1, 0);
        assert_eq!(counters.take(false), 0);
        counters.count("", 1, 1);
        counters.remove();
        // The end of the watch is an event too, but reports no kill.
        assert_eq!(counters.take(false), 0);
        assert_eq!(counters.take(true), 1);
        assert_eq!(counters.take(true), 0);
    }

    #[test]
    fn a_kill_in_another_cgroup_is_not_reported() {
        let mut counters = Counters::new();
        counters.count("", 0, 1);
        counters.remove();
        assert_eq!(counters.take(true), 0);

        // Nor is a kill that was counted before.
        let mut counters = Counters::new();
        counters.count("own", 1, 0);
        counters.count("", 1, 1);
        assert_eq!(counters.take(false), 0);
        counters.remove();
        assert_eq!(counters.take(true), 0);
    }

    #[test]
    fn a_kill_is_reported_once_though_the_parent_counts_it_too() {
        let mut counters = Counters::new();
        counters.count("own", 1, 1);
        counters.count("", 1, 1);
        assert_eq!(counters.take(false), 1);
        counters.remove();
        assert_eq!(counters.take(true), 0);
    }

    #[test]
    fn the_last_events_of_a_cgroup_show_whether_it_changed() {
        let (modify, gone) = (inotify::ReadFlags::MODIFY, inotify::ReadFlags::IGNORED);
        assert!(reports_change(&[event(modify), event(gone)].concat()));
        assert!(!reports_change(&event(gone)));
        // Version 1 has a counter instead.
        assert!(!reports_change(&1_u64.to_ne_bytes()));
    }
}
