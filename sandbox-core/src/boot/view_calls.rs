//! Answers sched_getaffinity(2) and sysinfo(2) as the container's views say.
//!
//! ```text
//!   the caller waits ──▶ what do its views say? ──▶ its memory is written ──▶ it goes on
//!                          └ no less than the kernel: the kernel decides
//! ```
//! What cannot be answered is the kernel's: a thread that has an affinity of its own, another
//! process, memory that cannot be written. So each errno is the kernel's.
//!
//! The memory is written by `/proc/TID/mem`, which is opened before the kernel says that the call
//! still waits: so it is the caller's, and not that of a later thread of its number. What is
//! mapped there is looked at before, since such a file writes where the caller itself may not. All
//! this is done by a child of boot (`view_writer.rs`).

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::param::page_size;

use super::thread_status::ThreadStatus;
use crate::container::paths::PROC;
use crate::container::view_call::ViewCall;
use crate::cpu_set::CpuSet;
use crate::sys::mapping::{mapping_at, mapping_in};
use crate::sys::namespace::pid_of_namespace;
use crate::sys::process::cpu_affinity;
use crate::sys::seccomp_listener::{self, Call};
use crate::views::files::SystemInfo;
use crate::views::sources::Cpus;

/// The number of answers per second for each container, and as many at once as a tenth of them.
/// An answer takes about ten microseconds, of which half is the caller's own: with more, boot
/// would work for one container only.
pub(super) const ANSWERS_A_SECOND: u32 = 100_000;
pub(super) const ANSWERS_AT_ONCE: u32 = ANSWERS_A_SECOND / 10;

/// The answers for which one counts that takes longer: it reads several files.
const LONG: u32 = 8;

/// The time for which a container's CPUs are kept between two calls. A loop of calls reads its
/// cgroup once in this time.
const KEPT: Duration = Duration::from_millis(1);

/// The same for what is mapped at an address.
const MAPPING_KEPT: Duration = Duration::from_millis(10);

/// What is kept of a container from one call to the next.
#[derive(Debug, Default)]
pub(super) struct Kept {
    cpus: Option<(Instant, Cpus)>,
    mapping: Option<(Instant, Target)>,
}

/// The memory of a thread to be written: its first and its last page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    thread: i32,
    pages: (u64, u64),
}

impl Kept {
    /// Returns the container's CPUs, unless they were read too long ago.
    pub(super) fn cpus(&self, now: Instant) -> Option<&Cpus> {
        let (since, cpus) = self.cpus.as_ref()?;
        (now.saturating_duration_since(*since) < KEPT).then_some(cpus)
    }

    /// Keeps the container's CPUs.
    pub(super) fn keep(&mut self, now: Instant, cpus: Cpus) -> &Cpus {
        &self.cpus.insert((now, cpus)).1
    }

    /// Forgets them: they have changed.
    pub(super) fn forget_cpus(&mut self) {
        self.cpus = None;
    }
}

/// An answer to a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// What is written, and where.
    pub(super) bytes: Vec<u8>,
    pub(super) address: u64,
    /// What the call returns.
    pub(super) value: u32,
}

/// Returns what a call costs of a container's share.
pub(super) fn cost(view: ViewCall, call: &Call) -> u32 {
    let [pid, ..] = call.data.arguments;
    match view {
        ViewCall::Affinity if pid as i32 == 0 => 1,
        _ => LONG,
    }
}

/// Returns the answer to sched_getaffinity(2). `None` if it is the kernel's.
pub(super) fn affinity(call: &Call, cpus: &Cpus) -> Option<Reply> {
    let [pid, length, address, ..] = call.data.arguments;
    if !cpus.by_quota {
        return None;
    }
    let thread = thread_of(call.thread, pid as i32)?;
    // The kernel checks the length, and says how much of it it writes.
    let mut bytes = cpu_affinity(thread, length as u32).ok()?;
    let (words, rest) = bytes.as_chunks_mut::<8>();
    let own = CpuSet::from_words(words.iter().map(|word| u64::from_ne_bytes(*word)).collect());
    if own != cpus.effective || !rest.is_empty() {
        return None;
    }
    let told = cpus.told.words().iter().copied().chain(std::iter::repeat(0));
    words.iter_mut().zip(told).for_each(|(word, told)| *word = told.to_ne_bytes());
    let value = u32::try_from(bytes.len()).ok()?;
    Some(Reply { bytes, address, value })
}

/// Returns the thread of the caller's process that it calls by a PID; `None` if that is another
/// process, or none. Numbers of PIDs are the caller's own.
fn thread_of(caller: i32, pid: i32) -> Option<i32> {
    if pid == 0 {
        return Some(caller);
    }
    let status = ThreadStatus::of(caller)?;
    let innermost = |name| status.field(name)?.split_whitespace().next_back()?.parse::<i32>().ok();
    if innermost("NSpid") == Some(pid) {
        return Some(caller);
    }
    if innermost("NStgid") == Some(pid) {
        return status.field("Tgid")?.parse().ok();
    }
    let namespace = File::open(format!("{PROC}/{caller}/ns/pid")).ok()?;
    let thread = pid_of_namespace(namespace.as_fd(), pid).ok()?;
    fs::metadata(format!("{PROC}/{caller}/task/{thread}")).ok().map(|_| thread)
}

/// Returns the answer to sysinfo(2).
pub(super) fn system_info(call: &Call, info: &SystemInfo) -> Reply {
    let [address, ..] = call.data.arguments;
    let mut bytes = Vec::with_capacity(112);
    bytes.extend(info.uptime.to_ne_bytes());
    bytes.extend(info.loads.iter().flat_map(|load| load.to_ne_bytes()));
    let memory = [info.totalram, info.freeram, info.sharedram, info.bufferram];
    let swap = [info.totalswap, info.freeswap];
    bytes.extend(memory.into_iter().chain(swap).flat_map(u64::to_ne_bytes));
    bytes.extend(info.procs.to_ne_bytes());
    bytes.extend([0; 6]);
    // totalhigh and freehigh
    bytes.extend([0; 16]);
    bytes.extend(info.mem_unit.to_ne_bytes());
    bytes.extend([0; 4]);
    Reply { bytes, address, value: 0 }
}

/// Writes an answer into the caller's memory, and lets it go on. Whatever fails, the kernel
/// decides instead.
pub(super) fn give(
    listener: BorrowedFd<'_>,
    (thread, id): (i32, u64),
    reply: &Reply,
    kept: &mut Kept,
) {
    let given = write(listener, (thread, id), reply, kept);
    // It fails only if the caller is gone.
    let _ = match given {
        Some(()) => seccomp_listener::return_value(listener, id, reply.value),
        None => seccomp_listener::go_on(listener, id),
    };
}

fn write(
    listener: BorrowedFd<'_>,
    (thread, id): (i32, u64),
    reply: &Reply,
    kept: &mut Kept,
) -> Option<()> {
    let path = format!("{PROC}/{thread}/mem");
    let memory = File::options().write(true).open(path).ok()?;
    let target = target(thread, reply)?;
    let now = Instant::now();
    let known = kept.mapping.filter(|(since, known)| {
        *known == target && now.saturating_duration_since(*since) < MAPPING_KEPT
    });
    if known.is_none() {
        may_be_written(target, reply)?;
        kept.mapping = Some((now, target));
    }
    if !seccomp_listener::waits(listener, id) {
        return None;
    }
    let written = memory.write_at(&reply.bytes, reply.address);
    (written.ok() == Some(reply.bytes.len())).then_some(())
}

fn target(thread: i32, reply: &Reply) -> Option<Target> {
    let last = reply.address.checked_add((reply.bytes.len() as u64).checked_sub(1)?)?;
    let page = page_size() as u64;
    Some(Target { thread, pages: (reply.address / page, last / page) })
}

/// Looks whether the caller itself could write there, and that no page has to be read from a file
/// first.
fn may_be_written(target: Target, reply: &Reply) -> Option<()> {
    let Target { thread, pages: (first, last) } = target;
    let path = format!("{PROC}/{thread}/maps");
    let maps = File::open(&path).ok()?;
    let end = reply.address.checked_add(reply.bytes.len() as u64)?;
    let mut address = reply.address;
    while address < end {
        let mapping =
            mapping_at(maps.as_fd(), address).or_else(|error| match error.raw_os_error() {
                // Linux before 6.11
                Some(libc::ENOTTY) => mapping_in(&fs::read(&path)?, address),
                _ => Err(error),
            });
        match mapping {
            Ok(mapping) if !mapping.writable || mapping.end <= address => return None,
            Ok(mapping) if mapping.of_a_file => {
                are_there(thread, first, last)?;
                address = mapping.end;
            }
            Ok(mapping) => address = mapping.end,
            Err(_) => return None,
        }
    }
    Some(())
}

/// Looks whether pages are in memory: proc_pid_pagemap(5).
fn are_there(thread: i32, first: u64, last: u64) -> Option<()> {
    const PRESENT: u64 = 1 << 63;
    let pagemap = File::open(format!("{PROC}/{thread}/pagemap")).ok()?;
    for page in first..=last {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, page.checked_mul(8)?).ok()?;
        if u64::from_ne_bytes(entry) & PRESENT == 0 {
            return None;
        }
    }
    Some(())
}

#[cfg(test)]
#[path = "view_calls_tests.rs"]
mod tests;
