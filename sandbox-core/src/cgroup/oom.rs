//! Reports out-of-memory kills.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Cgroup, file};
use crate::error::{Context, Error, Result};

/// A descriptor that is readable after a possible out-of-memory kill; then call
/// [`OomWatch::take`].
///
/// Version 1 signals before it kills, so a `take` at once may find nothing.
/// Call it again when a process has ended. Kills in cgroups that the workload
/// made below its own count on version 2 only.
#[derive(Debug)]
pub struct OomWatch {
    changes: Changes,
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
        match &self.changes {
            Changes::Signalled(eventfd) => eventfd.as_fd(),
            Changes::Notified { epoll, .. } => epoll.as_fd(),
        }
    }
}

/// The means by which the kernel reports that a counter may have changed.
#[derive(Debug)]
enum Changes {
    /// Version 1: an eventfd, which is signalled before a kill.
    Signalled(OwnedFd),
    /// Version 2: the epoll instance that watches `memory.events`. It still reports a change
    /// after the cgroup was removed, and does not report the removal. inotify would report
    /// both, but the kernel closes it only after a grace period: 13 to 23 ms on 16 CPUs, for
    /// each container.
    Notified { epoll: OwnedFd, _events: OwnedFd },
}

impl Changes {
    /// Watches a file for events of one kind, those that happened already left out.
    fn of(events: OwnedFd, kind: epoll::EventFlags) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context(|| "epoll_create")?;
        let flags = kind | epoll::EventFlags::ET;
        epoll::add(&epoll, &events, epoll::EventData::new_u64(0), flags)
            .context(|| "epoll_ctl of an out-of-memory counter")?;
        Ok(Self::Notified { epoll, _events: events })
    }

    /// Forgets the changes so far. Returns whether one was a change of the counters; a signal
    /// of version 1 comes before that.
    fn drain(&self) -> Result<bool> {
        match self {
            Self::Signalled(eventfd) => match rustix::io::read(eventfd, &mut [0; 8]) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(false),
                Err(e) => Err(e).context(|| "read an out-of-memory event"),
            },
            Self::Notified { epoll, .. } => {
                let mut ready = Vec::with_capacity(1);
                let now = Some(&Timespec { tv_sec: 0, tv_nsec: 0 });
                epoll::wait(epoll, spare_capacity(&mut ready), now)
                    .context(|| "wait for an out-of-memory event")?;
                Ok(!ready.is_empty())
            }
        }
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
        let changed = self.changes.drain()?;
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

impl Cgroup {
    /// Starts watching. Kills before this call are not reported.
    pub fn oom_watch(&self) -> Result<OomWatch> {
        let counter = self.oom_counter()?;
        let changes = if self.saved.v2 { watch_v2(&counter)? } else { watch_v1(&counter)? };
        let seen = kills(&counter)?.unwrap_or(0);
        let above = match &self.saved.unit {
            Some(_) if self.saved.v2 => counter_above(&counter)?,
            _ => None,
        };
        Ok(OomWatch { changes, counter, seen, above, was_short: false })
    }

    fn oom_counter(&self) -> Result<PathBuf> {
        let missing =
            || Error::internal("this host has no memory cgroup, which reports out-of-memory kills");
        let dir = self.dir("memory").ok_or_else(missing)?;
        Ok(dir.join(if self.saved.v2 { "memory.events" } else { "memory.oom_control" }))
    }
}

/// Registers an eventfd with `cgroup.event_control` (memcg_test.rst).
fn watch_v1(control: &Path) -> Result<Changes> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let event = rustix::event::eventfd(0, flags).context(|| "eventfd")?;
    let watched =
        file::open(control, OFlags::RDONLY).context(|| format!("open {}", control.display()))?;
    let line = format!("{} {}", event.as_raw_fd(), watched.as_raw_fd());
    file::write(&control.with_file_name("cgroup.event_control"), &line)?;
    Ok(Changes::Signalled(event))
}

/// Watches `memory.events`, which wakes poll(2) by POLLPRI at each event (cgroup-v2.rst).
fn watch_v2(path: &Path) -> Result<Changes> {
    let events = file::open(path, OFlags::RDONLY).context(|| format!("open {}", path.display()))?;
    // What was not read yet counts as an event.
    rustix::io::read(&events, &mut [0; 1024]).context(|| format!("read {}", path.display()))?;
    Changes::of(events, epoll::EventFlags::PRI)
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

    /// A cgroup and the one above, as files: the kernel cannot be held between
    /// counting a kill and systemd's removing the cgroup. An eventfd stands in for the
    /// events of the cgroup's own file.
    struct Counters {
        directory: tempfile::TempDir,
        event: OwnedFd,
        watch: OomWatch,
    }

    impl Counters {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let above = directory.path().join("memory.events");
            let counter = directory.path().join("own/memory.events");
            std::fs::create_dir(counter.parent().unwrap()).unwrap();
            let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            for file in [&above, &counter] {
                std::fs::write(file, "max 0\noom_kill 0\n").unwrap();
            }
            let changes = Changes::of(event.try_clone().unwrap(), epoll::EventFlags::IN).unwrap();
            let watch =
                OomWatch { changes, counter, seen: 0, above: Some((above, 0)), was_short: false };
            Self { directory, event, watch }
        }

        fn count(&self, file: &str, max: u64, kills: u64) {
            let path = self.directory.path().join(file).join("memory.events");
            std::fs::write(path, format!("max {max}\noom_kill {kills}\n")).unwrap();
            if file == "own" {
                rustix::io::write(&self.event, &1_u64.to_ne_bytes()).unwrap();
            }
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
        // There was no event since.
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

    /// The last event may come with the removal.
    #[test]
    fn an_event_is_seen_after_the_cgroup_is_gone() {
        let mut counters = Counters::new();
        counters.count("own", 1, 1);
        counters.count("", 1, 1);
        counters.remove();
        assert_eq!(counters.take(false), 1);
        assert_eq!(counters.take(true), 0);
    }

    #[test]
    fn a_watch_is_readable_after_each_event_until_it_is_taken() {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut counters = Counters::new();
        let readable = |counters: &Counters| {
            let mut watched = [PollFd::new(&counters.watch, PollFlags::IN)];
            poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
        };
        for kills in [1, 2] {
            assert!(!readable(&counters));
            counters.count("own", 1, kills);
            assert!(readable(&counters));
            assert_eq!(counters.take(false), 1);
        }
        assert!(!readable(&counters));
    }
}
