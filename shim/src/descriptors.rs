//! The number of descriptors that the shim may have open, and those that it keeps in reserve.
//!
//! A process that is made takes descriptors for as long as it lives. What ends it, and tells of
//! its end (Kill, Delete, events, a new connection of containerd's), needs some for a moment. So
//! the shim raises its soft limit to the hard one, keeps a few descriptors in reserve, and
//! refuses what it would need those for.
//!
//! ```text
//!   ample ──── one that was taken is among the last, or there is none ────► tight
//!     the reserve is held; nothing is asked or counted                        │
//!                                                                             │
//!   tight: the reserve is free, for whatever must work. Before a process is made, the shim tries
//!     to fill it again, and finds out so whether there is room besides.
//! ```
//!
//! Its descriptors have low numbers, since they are taken first: they stay below a limit that is
//! lowered later, from outside.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::fcntl_dupfd_cloexec;
use sandbox_core::sys::open_files;
use tokio::sync::Notify;

use crate::error::{Code, Error, Result};

/// The descriptors in reserve. What must work needs one or two at a time; a hook, a new
/// connection and the removal of a sandbox may come together.
const RESERVE: usize = 12;

/// The descriptors that there must be beside the reserve for a process to be made. It may take
/// more: then it is refused half-way.
const ROOM: usize = 6;

/// The shim's descriptors.
pub(crate) struct Descriptors {
    state: Mutex<State>,
    /// Wakes those who can close something.
    pub(crate) are_short: Notify,
}

struct State {
    /// The soft limit, as it was last asked for.
    limit: u64,
    /// What is duplicated.
    nothing: Option<OwnedFd>,
    /// What is in reserve; empty while it is used.
    reserve: Vec<OwnedFd>,
    is_tight: bool,
}

impl Descriptors {
    /// Raises the soft limit, and takes the reserve.
    pub(crate) fn begin() -> Self {
        if let Err(error) = open_files::raise_limit() {
            log::warn!("the soft limit of open files stays as it is: {error}");
        }
        let mut state = State {
            limit: open_files::limit().unwrap_or(u64::MAX),
            nothing: File::open("/dev/null").map(OwnedFd::from).ok(),
            reserve: Vec::with_capacity(RESERVE),
            is_tight: false,
        };
        state.is_tight = !state.fill(RESERVE);
        Self { state: Mutex::new(state), are_short: Notify::new() }
    }

    /// Refuses a process that there is no room for. Asks the kernel only if descriptors were
    /// short before.
    pub(crate) fn admit(&self) -> Result<()> {
        let mut state = self.lock();
        if !state.is_tight || state.has_room() {
            return Ok(());
        }
        state.reserve.clear();
        drop(state);
        self.are_short.notify_one();
        let message = "there are no descriptors left for another process";
        Err(self.explain(Error::new(Code::RESOURCE_EXHAUSTED, message)))
    }

    /// Takes note of a descriptor that was just opened, to stay open for a while. The kernel
    /// numbers them from below, so that a high number says how many there are.
    pub(crate) fn took(&self, fd: impl AsFd) {
        let number = u64::from(fd.as_fd().as_raw_fd().unsigned_abs());
        let mut state = self.lock();
        if !state.is_tight && number + RESERVE as u64 >= state.limit {
            state.is_tight = true;
            state.reserve.clear();
        }
    }

    /// Lets whatever must work have the reserve, since there was no other descriptor.
    pub(crate) fn run_out(&self) {
        {
            let mut state = self.lock();
            state.is_tight = true;
            state.limit = open_files::limit().unwrap_or(state.limit);
            state.reserve.clear();
        }
        self.are_short.notify_one();
    }

    /// Lets what must work now have the reserve, if that may be needed: if descriptors are
    /// short, or the limit was lowered from outside.
    pub(crate) fn must_work(&self) {
        let mut state = self.lock();
        let limit = open_files::limit().unwrap_or(state.limit);
        state.is_tight |= limit < state.limit;
        state.limit = limit;
        if state.is_tight {
            state.reserve.clear();
        }
    }

    /// Adds to the error of a request that descriptors were short for what to do about it.
    pub(crate) fn explain(&self, error: Error) -> Error {
        if !error.is_for_want_of_descriptors() {
            return error;
        }
        // What the kernel says where the whole host has no more (errno(3)).
        if error.to_string().contains("Too many open files in system") {
            return error.and("the host has no more: raise fs.file-max (sysctl)");
        }
        let (limit, shim) = (self.lock().limit, std::process::id());
        error.and(&format!(
            "the limit of open files (RLIMIT_NOFILE) of this pod's shim, process {shim}, is {limit}, \
             {RESERVE} of them kept to end what runs: end some of its processes, raise the limit \
             (prlimit --nofile=NUMBER:NUMBER --pid {shim}), or, for new pods, LimitNOFILE= in \
             containerd's unit"
        ))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether there is room besides the reserve, which is then whole. If there is plenty,
    /// descriptors are no longer short.
    fn has_room(&mut self) -> bool {
        self.limit = open_files::limit().unwrap_or(self.limit);
        if !self.fill(RESERVE + ROOM) {
            return false;
        }
        self.reserve.truncate(RESERVE);
        true
    }

    /// Takes descriptors until there are so many. Returns whether there are.
    fn fill(&mut self, count: usize) -> bool {
        let Some(nothing) = &self.nothing else { return false };
        while self.reserve.len() < count {
            match fcntl_dupfd_cloexec(nothing, 0) {
                Ok(one) => self.reserve.push(one),
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;
    use crate::error::Context;

    fn limit_to(soft: u64) {
        let current = Some(soft);
        setrlimit(Resource::Nofile, Rlimit { current, ..getrlimit(Resource::Nofile) }).unwrap();
    }

    /// Opens as many as there can be.
    fn open_all() -> Vec<File> {
        std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
    }

    #[test]
    fn what_must_work_has_descriptors_when_there_are_no_others() {
        let descriptors = Descriptors::begin();
        limit_to(64);
        descriptors.must_work();
        descriptors.admit().unwrap();
        let mut opened = open_all();
        assert!(!opened.is_empty());
        descriptors.run_out();
        assert_eq!(open_all().len(), RESERVE);
        let refused = descriptors.admit().unwrap_err();
        assert_eq!(refused.code, Code::RESOURCE_EXHAUSTED);
        assert!(refused.to_string().contains("(RLIMIT_NOFILE)"), "{refused}");
        assert!(refused.to_string().contains("is 64,"), "{refused}");
        assert_eq!(open_all().len(), RESERVE, "a refused process takes the reserve");
        opened.truncate(opened.len() - ROOM);
        descriptors.admit().unwrap();
        assert_eq!(open_all().len(), ROOM, "a process gets the reserve");
        descriptors.must_work();
        assert_eq!(open_all().len(), ROOM + RESERVE);
    }

    #[test]
    fn a_limit_that_is_lowered_from_outside_frees_the_reserve() {
        let descriptors = Descriptors::begin();
        limit_to(4096);
        let _opened: Vec<_> = (0..50).map(|_| File::open("/dev/null").unwrap()).collect();
        descriptors.admit().unwrap();
        limit_to(50);
        assert!(open_all().is_empty());
        descriptors.must_work();
        assert_eq!(open_all().len(), RESERVE);
        assert!(descriptors.admit().is_err());
        limit_to(4096);
        descriptors.admit().unwrap();
    }

    #[test]
    fn the_last_numbers_say_that_descriptors_are_short() {
        let descriptors = Descriptors::begin();
        limit_to(64);
        descriptors.lock().limit = 64;
        let opened = open_all();
        opened.iter().for_each(|file| descriptors.took(file));
        assert_eq!(open_all().len(), RESERVE);
    }

    #[test]
    fn the_error_says_whose_limit_it_is() {
        let descriptors = Descriptors::begin();
        let error = |errno: rustix::io::Errno| {
            let failed: Result<()> = Err(errno).context(|| "open a file");
            descriptors.explain(failed.unwrap_err()).to_string()
        };
        let own = error(rustix::io::Errno::MFILE);
        assert!(own.starts_with("open a file: Too many open files"), "{own}");
        assert!(own.contains(&format!("--pid {}", std::process::id())), "{own}");
        assert!(error(rustix::io::Errno::NFILE).ends_with("raise fs.file-max (sysctl)"));
        assert_eq!(
            error(rustix::io::Errno::PERM),
            "open a file: Operation not permitted (os error 1)"
        );
    }
}
