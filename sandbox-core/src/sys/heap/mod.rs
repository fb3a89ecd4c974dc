//! The allocator of the shim and of the sandbox process: the system's, and a sampler that can be
//! switched on. Off, it costs one load for each call, and no memory.
//!
//! On, about one in so many bytes is recorded with the stack of who allocated it, until it is freed.
//! The stack is not unwound here: the words of it that may be return addresses or frame pointers are
//! copied, and `palisade` unwinds them by the executable's `.eh_frame`. No other word leaves the
//! process.
//!
//! # Why nothing here waits for itself
//! - The sampler allocates nothing: its state is one page, and the table a file of fixed size.
//! - A child that is forked has neither. The page is wiped in it (`MADV_WIPEONFORK`), so that the
//!   sampler finds itself off before it looks at its lock, whoever held that in the parent; and the
//!   table is not there (`MADV_DONTFORK`), so that no child writes into its parent's. A child
//!   in its parent's memory (`sys::spawn`, `sys::let_go`) allocates nothing.
//! - A handler of a signal that allocates, which none may, finds the lock taken. It is tried for a
//!   bounded time only; what is missed then counts as lost.
#![cfg(target_arch = "x86_64")]

pub mod table;

use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::asm;
use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64};

use rustix::fs::{MemfdFlags, SealFlags};

use super::check;
use table::Table;

/// The allocator.
pub struct Sampling;

/// Whether the sampler is on, in this process or in the one that it was forked from.
static ON: AtomicBool = AtomicBool::new(false);

/// The state, once the sampler was on. It is never unmapped.
static STATE: AtomicPtr<State> = AtomicPtr::new(ptr::null_mut());

/// Where the stack of the main thread begins, or 0.
static STACK: AtomicU64 = AtomicU64::new(0);

/// The largest stack.
const LARGEST_STACK: u64 = 8 << 20;

/// How often the lock is tried.
const TRIES: u32 = 100_000;

const PAGE: usize = 4096;

/// A page, which is all zeros in a child.
struct State {
    locked: AtomicBool,
    /// The table, while the sampler is on.
    table: AtomicPtr<AtomicU64>,
    /// One in so many bytes is sampled.
    every: AtomicU64,
    /// The bytes until the next one is.
    left: AtomicI64,
    random: AtomicU64,
    /// Where the stack ends, and where the executable's code lies.
    stack: AtomicU64,
    code: [AtomicU64; 2],
    /// What was missed as the lock was not to be had.
    missed: AtomicU64,
}

// SAFETY: each call is passed to the system's allocator as it came, and what that returns is
// returned; the sampler looks at addresses and sizes only.
unsafe impl GlobalAlloc for Sampling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what `System` demands.
        let memory = unsafe { System.alloc(layout) };
        if ON.load(Relaxed) {
            allocated(memory, layout.size());
        }
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what `System` demands.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if ON.load(Relaxed) {
            allocated(memory, layout.size());
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if ON.load(Relaxed) {
            // Before another thread can be given the same address.
            freed(memory, layout.size());
        }
        // SAFETY: the caller promises what `System` demands.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if ON.load(Relaxed) {
            freed(memory, layout.size());
        }
        // SAFETY: the caller promises what `System` demands.
        let moved = unsafe { System.realloc(memory, layout, size) };
        if ON.load(Relaxed) {
            let failed = moved.is_null();
            allocated(
                if failed { memory } else { moved },
                if failed { layout.size() } else { size },
            );
        }
        moved
    }
}

/// Notes that the stack of the main thread begins here: its main function calls this first.
#[inline(always)]
pub fn stack_begins_here() {
    STACK.store(registers()[1], Relaxed);
}

/// Makes a table, at which nobody looks yet.
///
/// # Errors
/// Those of memfd_create(2), ftruncate(2) and fcntl(2).
pub fn new_table() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("palisade-heap", flags)?);
    file.set_len(table::SIZE as u64)?;
    rustix::fs::fcntl_add_seals(&file, SEALS)?;
    Ok(file)
}

/// What makes it safe to map a table: it keeps its size.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Switches the sampler on: about one in `every` bytes is recorded in the table.
///
/// # Errors
/// `EBUSY` if it is on; `InvalidData` if that is no table; those of mmap(2) and madvise(2).
pub fn switch_on(table: impl AsFd, every: NonZeroU32) -> io::Result<()> {
    let table = map_table(table)?;
    let state = state().inspect_err(|_| unmap_table(table))?;
    let begun = state.locked(|| {
        if !state.table.load(Relaxed).is_null() {
            return Err(rustix::io::Errno::BUSY.into());
        }
        let code = executable_code();
        state.code[0].store(code.start, Relaxed);
        state.code[1].store(code.end, Relaxed);
        state.stack.store(STACK.load(Relaxed), Relaxed);
        state.every.store(u32::from(every).into(), Relaxed);
        state.random.store(seed(), Relaxed);
        state.left.store(state.distance(), Relaxed);
        state.missed.store(0, Relaxed);
        state.table.store(table.as_ptr(), Relaxed);
        Ok(())
    });
    let begun = begun.unwrap_or_else(|| Err(rustix::io::Errno::BUSY.into()));
    match begun {
        Ok(()) => ON.store(true, Relaxed),
        Err(_) => unmap_table(table),
    }
    begun
}

/// Switches the sampler off, if it is on. The table's file has what was found.
pub fn switch_off() {
    ON.store(false, Relaxed);
    let Some(state) = existing_state() else { return };
    let table = state.locked(|| {
        state.with_table(|table| table.count_lost(state.missed.load(Relaxed)));
        state.table.swap(ptr::null_mut(), Relaxed)
    });
    if let Some(table) = table.and_then(NonNull::new) {
        unmap_table(table);
    }
    // SAFETY: the page is the sampler's own, and all zeros mean that it is off, as they are now.
    unsafe { libc::madvise(ptr::from_ref(state).cast_mut().cast(), PAGE, libc::MADV_DONTNEED) };
}

#[cold]
#[inline(never)]
fn allocated(memory: *mut u8, size: usize) {
    if memory.is_null() {
        return;
    }
    look(|state, table| {
        table.count_allocated(size);
        if state.is_due(size) {
            match table.insert(memory.addr() as u64, size) {
                Some(record) => copy_stack(state, &record),
                None => table.count_lost(1),
            }
        }
    });
}

#[cold]
#[inline(never)]
fn freed(memory: *mut u8, size: usize) {
    look(|_, table| {
        table.count_freed(size);
        table.remove(memory.addr() as u64);
    });
}

/// Looks at the table, unless there is none: in a child, or as the sampler was just switched off.
fn look(work: impl FnOnce(&State, &Table<'_>)) {
    let Some(state) = existing_state() else { return };
    if state.table.load(Relaxed).is_null() {
        return;
    }
    if state.locked(|| state.with_table(|table| work(state, table))).is_none() {
        state.missed.fetch_add(1, Relaxed);
    }
}

/// Copies what may be needed of a stack to unwind it.
#[inline(never)]
fn copy_stack(state: &State, record: &table::Record<'_>) {
    let [ip, sp, bp] = registers();
    record.begin(ip, sp, bp);
    let end = state.stack.load(Relaxed);
    let code = state.code[0].load(Relaxed)..state.code[1].load(Relaxed);
    // Another thread has its stack elsewhere: its allocations are counted, by nobody.
    if sp >= end || end - sp > LARGEST_STACK {
        return;
    }
    let stack = sp..end;
    for distance in 0..table::REACH {
        let at = sp + 8 * distance as u64;
        if at >= end {
            return;
        }
        // SAFETY: it is between the top of this thread's stack and the frame of its main function,
        // all of which is mapped, and aligned, since the stack pointer is.
        let word = unsafe { ptr::with_exposed_provenance::<u64>(at as usize).read_volatile() };
        if (code.contains(&word) || stack.contains(&word)) && !record.push(distance, word) {
            return;
        }
    }
}

/// Returns `rip`, `rsp` and `rbp`.
#[inline(always)]
fn registers() -> [u64; 3] {
    let (ip, sp, bp): (u64, u64, u64);
    // SAFETY: it only reads registers.
    unsafe {
        asm!(
            "lea {ip}, [rip]",
            "mov {sp}, rsp",
            "mov {bp}, rbp",
            ip = out(reg) ip, sp = out(reg) sp, bp = out(reg) bp,
            options(nomem, nostack, preserves_flags),
        );
    }
    [ip, sp, bp]
}

impl State {
    /// Does something while no other thread does. `None` if the lock is not to be had.
    fn locked<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let free = || self.locked.compare_exchange_weak(false, true, Acquire, Relaxed).is_ok();
        let taken = (0..TRIES).any(|turn| {
            if turn % 100 == 99 {
                rustix::thread::sched_yield();
            }
            free()
        });
        taken.then(|| {
            let done = work();
            self.locked.store(false, Release);
            done
        })
    }

    /// Hands out the table, if there is one. The lock is taken.
    fn with_table(&self, work: impl FnOnce(&Table<'_>)) {
        let Some(words) = NonNull::new(self.table.load(Relaxed)) else { return };
        // SAFETY: the mapping has that length, is aligned to pages, is writable, and stays until
        // `switch_off`, which takes the lock before. All that has it changes it by atomic
        // operations, the shim by reading the file only.
        let words = unsafe { slice::from_raw_parts(words.as_ptr(), table::SIZE / 8) };
        if let Some(table) = Table::new(words) {
            work(&table);
        }
    }

    /// Whether an allocation of so many bytes has the next one that is sampled.
    fn is_due(&self, size: usize) -> bool {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let left = self.left.load(Relaxed).saturating_sub(size);
        let due = left < 0;
        self.left.store(if due { self.distance() } else { left }, Relaxed);
        due
    }

    /// Returns the bytes to the next one that is sampled: each is with the same chance, so the
    /// distances have an exponential distribution.
    fn distance(&self) -> i64 {
        let every = self.every.load(Relaxed);
        if every <= 1 {
            return 0;
        }
        let mut random = self.random.load(Relaxed);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        self.random.store(random, Relaxed);
        (exponential(random) * every as f64) as i64
    }
}

/// Returns -ln of a random number between 0 and 1, of whose bits it is given. Without the C
/// library's logarithm, whose tables every shim and sandbox process would carry.
fn exponential(random: u64) -> f64 {
    // Of 2^53 equal steps.
    let number = ((random >> 11) + 1) as f64;
    let bits = number.to_bits();
    let exponent = (bits >> 52) as i32 - 1023;
    // Between 1 and 2.
    let fraction = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    let s = (fraction - 1.0) / (fraction + 1.0);
    let square = s * s;
    // 2 artanh(s)
    let series = (0..8).rev().fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    let ln = f64::from(exponent - 53) * std::f64::consts::LN_2 + 2.0 * s * series;
    -ln
}

fn seed() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // No stream of random numbers begins with 0.
    (now.tv_nsec as u64 ^ (now.tv_sec as u64) << 30).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn existing_state() -> Option<&'static State> {
    // SAFETY: it is null, or the page that `state` has made, which stays mapped, in a child as well,
    // and for which all zeros are a value.
    unsafe { STATE.load(Acquire).as_ref() }
}

/// Returns the state, and makes it before it is used for the first time.
fn state() -> io::Result<&'static State> {
    if let Some(state) = existing_state() {
        return Ok(state);
    }
    let page = map(PAGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    // SAFETY: it is this page, which nothing else has.
    check(unsafe { libc::madvise(page.as_ptr(), PAGE, libc::MADV_WIPEONFORK) })
        .inspect_err(|_| unmap(page, PAGE))?;
    let ours = STATE.compare_exchange(ptr::null_mut(), page.as_ptr().cast(), AcqRel, Acquire);
    if ours.is_err() {
        unmap(page, PAGE);
    }
    existing_state().ok_or_else(|| io::Error::other("the sampler has no state"))
}

fn map_table(file: impl AsFd) -> io::Result<NonNull<AtomicU64>> {
    let file = file.as_fd();
    let sealed = rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS));
    if !sealed || rustix::fs::fstat(file)?.st_size != table::SIZE as i64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no table of allocations"));
    }
    let table = map(table::SIZE, libc::MAP_SHARED, file.as_raw_fd())?;
    // SAFETY: it is this mapping, which nothing else has.
    check(unsafe { libc::madvise(table.as_ptr(), table::SIZE, libc::MADV_DONTFORK) })
        .inspect_err(|_| unmap(table, table::SIZE))?;
    Ok(table.cast())
}

fn unmap_table(table: NonNull<AtomicU64>) {
    unmap(table.cast(), table::SIZE);
}

fn map(size: usize, flags: i32, file: i32) -> io::Result<NonNull<libc::c_void>> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the kernel chooses a free address, so that no other memory changes.
    let address = unsafe { libc::mmap(ptr::null_mut(), size, access, flags, file, 0) };
    match NonNull::new(address) {
        Some(mapped) if address != libc::MAP_FAILED => Ok(mapped),
        _ => Err(io::Error::last_os_error()),
    }
}

fn unmap(mapped: NonNull<libc::c_void>, size: usize) {
    // SAFETY: the callers have made this mapping, and nobody uses it any more.
    unsafe { libc::munmap(mapped.as_ptr(), size) };
}

/// Returns where the code of this executable lies, by its program headers. Empty if the kernel
/// has not said where they are.
fn executable_code() -> Range<u64> {
    // SAFETY: it reads a vector that the kernel has made.
    let headers = unsafe { libc::getauxval(libc::AT_PHDR) };
    // SAFETY: as before.
    let count = unsafe { libc::getauxval(libc::AT_PHNUM) };
    let first = ptr::with_exposed_provenance::<libc::Elf64_Phdr>(headers as usize);
    if first.is_null() {
        return 0..0;
    }
    // SAFETY: the kernel has mapped the executable with its program headers at this address, so
    // many of them, and they do not change.
    let all = unsafe { slice::from_raw_parts(first, count as usize) };
    // Where the executable lies, if it does not lie where it was linked to.
    let own = all.iter().find(|header| header.p_type == libc::PT_PHDR);
    let base = own.map_or(0, |own| headers.wrapping_sub(own.p_vaddr));
    let code = all.iter().find(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_X != 0);
    code.map_or(0..0, |code| {
        let start = base.wrapping_add(code.p_vaddr);
        start..start.saturating_add(code.p_memsz)
    })
}

#[cfg(test)]
mod tests;
