//! Memory that a process has and does not use.

use std::hint::black_box;

use rustix::param::page_size;

/// What stays of the stack below the caller's frames.
const KEPT: usize = 16 << 10;

/// How far below that a stack may have been used.
const DEPTH: usize = 1 << 20;

/// Returns memory to the kernel that this process has used and no longer does: free pages of the
/// heap (malloc_trim(3)), and those of the main thread's stack below where it stands.
#[inline(never)]
pub fn give_back() {
    // SAFETY: nothing but the allocator's own free memory changes.
    unsafe { libc::malloc_trim(0) };
    if rustix::thread::gettid() != rustix::process::getpid() {
        return;
    }
    let here = black_box(0_u8);
    let end = (&raw const here).addr().saturating_sub(KEPT) & !(page_size() - 1);
    let start = std::ptr::without_provenance_mut(end.saturating_sub(DEPTH));
    // SAFETY: the stack of the main thread grows downwards, and has a gap below that is longer
    // than this (mmap_base): the range is unused stack, or nothing. What is nothing makes the call
    // fail after it has done the rest, madvise(2).
    unsafe { libc::madvise(start, DEPTH, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use nix::sched::CloneFlags;

    use super::*;
    use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
    use crate::sys::process::exit_now;

    /// Uses this much of the stack.
    #[inline(never)]
    fn descend(left: usize) -> u64 {
        let frame = black_box([left as u64; 512]);
        let below = if left == 0 { 0 } else { descend(left - 1) };
        below + black_box(frame)[left % 512]
    }

    /// In a child, whose one thread counts as its main one.
    #[test]
    fn what_is_in_use_stays() {
        let alone = SingleThreaded::in_a_test();
        let pidfd = match clone_into(&alone, CloneFlags::empty(), None).unwrap() {
            Cloned::Parent { pidfd, .. } => pidfd,
            Cloned::Child => {
                let kept = black_box([7_u8; 4096]);
                let sum = descend(20);
                give_back();
                let same = kept.iter().all(|byte| *byte == 7) && descend(20) == sum;
                exit_now(i32::from(!same))
            }
        };
        let id = rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd));
        let ended = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
        assert_eq!(ended.unwrap().unwrap().exit_status(), Some(0));
    }
}
