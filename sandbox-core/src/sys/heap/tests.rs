//! The tests call the allocator themselves: it is not that of this program.

use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sched::CloneFlags;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::*;
use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
use crate::sys::process::exit_now;

/// One sampler for all tests, where they are threads of one process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const EVERY: u32 = 4096;

fn begin(every: u32) -> File {
    stack_begins_here();
    let table = new_table().unwrap();
    switch_on(&table, NonZeroU32::new(every).unwrap()).unwrap();
    table
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

#[inline(never)]
fn allocate(size: usize) -> *mut u8 {
    // SAFETY: no test asks for nothing.
    let memory = unsafe { Sampling.alloc(layout(size)) };
    assert!(!memory.is_null());
    memory
}

fn free(memory: *mut u8, size: usize) {
    // SAFETY: the tests allocated it with this size.
    unsafe { Sampling.dealloc(memory, layout(size)) }
}

fn samples(table: &File) -> Vec<table::Sample> {
    let parts = table::parts(table, 1 << 16).unwrap();
    parts.flat_map(|part| table::parse(&part.unwrap()).unwrap()).collect()
}

fn is_mapped() -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().contains("palisade-heap")
}

#[test]
fn what_is_held_is_estimated_and_what_is_freed_is_not() {
    let _alone = alone();
    let kept_before = allocate(1 << 20);
    let table = begin(EVERY);
    assert!(is_mapped());
    let sizes = [24, 100, 3000];
    let held: Vec<_> = (0..6000).map(|n| (allocate(sizes[n % 3]), sizes[n % 3])).collect();
    let freed: Vec<_> = (0..6000).map(|_| allocate(500)).collect();
    freed.into_iter().for_each(|memory| free(memory, 500));
    free(kept_before, 1 << 20);
    switch_off();
    assert!(!is_mapped(), "off, it has no table");
    let all = samples(&table);
    for size in sizes {
        let of_it = all.iter().filter(|sample| sample.size == size as u64).count();
        let chance = -(-(size as f64) / f64::from(EVERY)).exp_m1();
        // 12, 49 and 1038 samples of 2000 allocations: within five deviations.
        let (expected, variance) = (2000.0 * chance, 2000.0 * chance * (1.0 - chance));
        let off = (of_it as f64 - expected).abs();
        assert!(off <= 5.0 * variance.sqrt(), "{of_it} of {size} bytes, {expected} expected");
    }
    assert!(all.iter().all(|sample| sizes.contains(&(sample.size as usize))), "freed ones");
    let totals = table::totals(&table).unwrap();
    assert_eq!((totals.allocations, totals.frees, totals.lost), (12_000, 6001, 0));
    assert_eq!(totals.allocated, 2000 * (24 + 100 + 3000) + 6000 * 500);
    assert_eq!(totals.freed, 6000 * 500 + (1 << 20));
    held.into_iter().for_each(|(memory, size)| free(memory, size));
}

#[test]
fn each_is_recorded_with_its_stack_and_follows_a_move() {
    let _alone = alone();
    let table = begin(1);
    let memory = allocate(64);
    // SAFETY: it was allocated with this size.
    let moved = unsafe { Sampling.realloc(memory, layout(64), 1 << 20) };
    let one = allocate(32);
    // SAFETY: no test asks for nothing.
    let zeroed = unsafe { Sampling.alloc_zeroed(layout(40)) };
    free(zeroed, 40);
    switch_off();
    let mut all = samples(&table);
    all.sort_by_key(|sample| sample.size);
    assert_eq!(all.iter().map(|s| s.size).collect::<Vec<_>>(), [32, 1 << 20]);
    let caller = allocate as fn(usize) -> *mut u8 as usize as u64;
    let within = |(_, word): &(u64, u64)| (caller..caller + 4096).contains(word);
    assert!(all[0].stack.iter().any(within), "{caller:#x}: {:x?}", all[0]);
    let [ip, sp, _] = all[0].registers;
    assert!(executable_code().contains(&ip));
    assert!(all[0].stack.iter().all(|(at, _)| *at >= sp && at - sp < LARGEST_STACK));
    free(moved, 1 << 20);
    free(one, 32);
}

#[test]
fn there_is_one_at_a_time_and_only_with_a_table() {
    let _alone = alone();
    let table = begin(EVERY);
    let second = new_table().unwrap();
    let busy = switch_on(&second, NonZeroU32::MIN).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
    switch_off();
    switch_off();
    drop(table);
    let any = tempfile::tempfile().unwrap();
    any.set_len(table::SIZE as u64).unwrap();
    for wrong in [&any, &File::open("/dev/null").unwrap()] {
        let error = switch_on(wrong, NonZeroU32::MIN).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "it could be cut short: {error}");
    }
    let table = begin(1);
    free(allocate(8), 8);
    switch_off();
    assert_eq!(table::totals(&table).unwrap().allocations, 1, "and again");
}

#[test]
fn a_child_allocates_whoever_had_the_lock_and_is_not_seen() {
    let _alone = alone();
    let table = begin(1);
    let before = allocate(8);
    let state = existing_state().unwrap();
    let single = SingleThreaded::in_a_test();
    let cloned = state.locked(|| clone_into(&single, CloneFlags::empty(), None).unwrap());
    let pidfd = match cloned.unwrap() {
        Cloned::Parent { pidfd, .. } => pidfd,
        Cloned::Child => {
            free(before, 8);
            let one = allocate(16);
            let off = existing_state().is_some_and(|its| its.table.load(Relaxed).is_null());
            // Off already: no page of the parent's is touched.
            switch_off();
            free(one, 16);
            exit_now(i32::from(!off))
        }
    };
    let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
    assert_eq!(ended.unwrap().exit_status(), Some(0));
    switch_off();
    let totals = table::totals(&table).unwrap();
    assert_eq!((totals.allocations, totals.frees, samples(&table).len()), (1, 0, 1));
    free(before, 8);
}

#[test]
fn a_lock_that_is_not_to_be_had_is_not_waited_for() {
    let _alone = alone();
    let table = begin(1);
    let state = existing_state().unwrap();
    // As a handler of a signal would, in the middle of the sampler's work.
    let memory = state.locked(|| allocate(8)).unwrap();
    switch_off();
    let totals = table::totals(&table).unwrap();
    assert_eq!((totals.allocations, totals.lost), (0, 1));
    free(memory, 8);
}

#[test]
fn distances_have_an_exponential_distribution() {
    for random in [0, 1 << 11, u64::MAX / 3, u64::MAX / 2, u64::MAX - (1 << 40), u64::MAX] {
        let number = ((random >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        let (ours, theirs) = (exponential(random), -number.ln());
        assert!((ours - theirs).abs() < 1e-7, "{random}: {ours}, {theirs}");
    }
}
