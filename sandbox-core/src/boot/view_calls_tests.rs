//! Answers to a child that has loaded a program which announces the calls.

use std::os::fd::OwnedFd;

use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::gettid;

use super::*;
use crate::container::filter::Filter;
use crate::control::packet::{Received, pair, receive_packet, send_packet};
use crate::spec::plan::Watch;
use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
use crate::sys::process::{
    SECCOMP_NEW_LISTENER, affinity_at, exit_now, load_seccomp, set_cpu_affinity,
};
use crate::sys::seccomp_listener::SECCOMP_WAIT_KILLABLE;
use crate::types::Limited;

/// The length of a mask that every kernel takes.
const LENGTH: u32 = 1024;

/// Runs `inside` in a child whose calls are announced. Returns its pidfd and its listener.
fn child(inside: impl FnOnce() -> i32) -> (OwnedFd, OwnedFd) {
    let watch = Watch { views: true, ..Watch::default() };
    let filter = Filter::new(&[], None, Some(&watch), Limited { cpus: true, memory: true });
    let program = filter.watched_with(0).unwrap();
    let (ours, theirs) = pair().unwrap();
    match clone_into(&SingleThreaded::in_a_test(), CloneFlags::empty(), None).unwrap() {
        Cloned::Child => {
            let flags = SECCOMP_NEW_LISTENER | SECCOMP_WAIT_KILLABLE;
            let Ok(Some(listener)) = load_seccomp(&program.program, flags) else { exit_now(100) };
            let sent = send_packet(&theirs, b"x", &[listener.as_fd()]);
            drop(listener);
            exit_now(if sent.is_ok() { inside() } else { 101 })
        }
        Cloned::Parent { pidfd, .. } => {
            drop(theirs);
            let Received::Packet { fds, .. } = receive_packet(&ours, 16, 1).unwrap() else {
                panic!("no listener")
            };
            (pidfd, fds.take().remove(0))
        }
    }
}

fn machine() -> CpuSet {
    let mask = cpu_affinity(0, LENGTH).unwrap();
    let words = mask.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word));
    CpuSet::from_words(words.collect())
}

/// CPUs by a quota of one.
fn one() -> Cpus {
    let effective = machine();
    let told = CpuSet::from_cpus(effective.highest());
    Cpus { by_quota: told != effective, told, effective }
}

fn info() -> SystemInfo {
    SystemInfo {
        uptime: 11,
        loads: [12, 13, 14],
        totalram: 15,
        freeram: 16,
        sharedram: 17,
        bufferram: 18,
        totalswap: 19,
        freeswap: 20,
        procs: 21,
        mem_unit: 1,
    }
}

/// Answers until the child has ended. Returns its status.
fn answer((pidfd, listener): (OwnedFd, OwnedFd), cpus: &Cpus) -> Option<i32> {
    let mut kept = Kept::default();
    loop {
        let mut ready = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        poll(&mut ready, Some(&Timespec { tv_sec: 20, tv_nsec: 0 })).unwrap();
        match ready[0].revents() {
            PollFlags::IN => {}
            PollFlags::HUP => break,
            other => panic!("{other:?}"),
        }
        let Some(call) = seccomp_listener::receive(listener.as_fd()).unwrap() else { continue };
        let reply = match ViewCall::of(&call.data).unwrap() {
            ViewCall::Affinity => affinity(&call, cpus),
            ViewCall::SystemInfo => Some(system_info(&call, &info())),
        };
        match reply {
            Some(reply) => give(listener.as_fd(), (call.thread, call.id), &reply, &mut kept),
            None => seccomp_listener::go_on(listener.as_fd(), call.id).unwrap(),
        }
    }
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
    status.exit_status()
}

fn set_of(mask: &[u8]) -> CpuSet {
    let words = mask.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word));
    CpuSet::from_words(words.collect())
}

/// Returns the line at which a check of a child fails.
macro_rules! check {
    ($checked:expr) => {
        if !$checked {
            return line!() as i32 % 251 + 1;
        }
    };
}

#[test]
fn a_thread_is_told_the_cpus_of_its_container() {
    let (cpus, real) = (one(), cpu_affinity(0, LENGTH).unwrap());
    let (told, whole) = (cpus.told.clone(), cpus.effective.clone());
    let inside = move || {
        let own = gettid().as_raw_nonzero().get();
        for thread in [0, own] {
            let Ok(mask) = cpu_affinity(thread, LENGTH) else { return 1 };
            // As long as the kernel's.
            check!(mask.len() == real.len() && set_of(&mask) == told);
        }
        // Of others the kernel tells.
        let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get();
        check!(cpu_affinity(parent, LENGTH).is_ok_and(|mask| mask == real));
        let absent = cpu_affinity(i32::MAX, LENGTH).map_err(|e| e.raw_os_error());
        check!(absent == Err(Some(libc::ESRCH)));
        check!(cpu_affinity(-1, LENGTH).is_err());
        // A thread of its own process.
        let other = std::thread::spawn(move || cpu_affinity(own, LENGTH)).join();
        check!(other.is_ok_and(|mask| mask.is_ok_and(|mask| set_of(&mask) == told)));
        // And one that has an affinity of its own.
        let Some(first) = whole.iter().next() else { return 2 };
        check!(set_cpu_affinity([first]).is_ok());
        let mask = cpu_affinity(0, LENGTH);
        check!(mask.is_ok_and(|mask| set_of(&mask).iter().eq([first])));
        check!(set_cpu_affinity(whole.iter()).is_ok());
        let mask = cpu_affinity(0, LENGTH);
        check!(mask.is_ok_and(|mask| set_of(&mask) == told));
        0
    };
    assert_eq!(answer(child(inside), &cpus), Some(0));
}

#[test]
fn a_quota_that_is_worth_all_cpus_leaves_the_call_to_the_kernel() {
    let whole = machine();
    let cpus = Cpus { by_quota: false, told: whole.clone(), effective: whole.clone() };
    let inside = move || match cpu_affinity(0, LENGTH) {
        Ok(mask) => (set_of(&mask) != whole).into(),
        Err(_) => 1,
    };
    assert_eq!(answer(child(inside), &cpus), Some(0));
}

/// Each error is that of the kernel, which looks itself.
#[test]
fn what_cannot_be_written_fails_as_in_the_kernel() {
    static CONSTANT: [u8; LENGTH as usize] = [7; LENGTH as usize];
    let inside = || {
        let at = |length, address| affinity_at(length, address).map_err(|e| e.raw_os_error());
        let constant = CONSTANT.as_ptr() as u64;
        for address in [0, 16, 1 << 46, u64::MAX - 2, 1 << 63, constant] {
            check!(at(LENGTH.into(), address) == Err(Some(libc::EFAULT)));
        }
        check!(std::hint::black_box(&CONSTANT).iter().all(|byte| *byte == 7));
        for length in [0, 1, LENGTH as u64 - 1] {
            check!(at(length, 0) == Err(Some(libc::EINVAL)));
        }
        // Only the lower half of the length counts.
        check!(at(1 << 32, 0) == Err(Some(libc::EINVAL)));
        0
    };
    assert_eq!(answer(child(inside), &one()), Some(0));
}

#[test]
fn a_program_is_told_the_memory_of_its_container() {
    let inside = || {
        let told = rustix::system::sysinfo();
        let is = info();
        check!(told.uptime as u64 == is.uptime && told.loads.into_iter().eq(is.loads));
        check!(told.totalram == is.totalram && told.freeram == is.freeram);
        check!(told.sharedram == is.sharedram && told.bufferram == is.bufferram);
        check!(told.totalswap == is.totalswap && told.freeswap == is.freeswap);
        check!(told.procs == is.procs && told.mem_unit == is.mem_unit);
        check!(told.totalhigh == 0 && told.freehigh == 0);
        0
    };
    assert_eq!(answer(child(inside), &one()), Some(0));
    let call = Call { id: 0, thread: 0, data: Default::default() };
    let length = size_of::<libc::sysinfo>();
    assert_eq!(system_info(&call, &info()).bytes.len(), length);
}
