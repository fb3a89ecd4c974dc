//! A thread that waits. The kernel shows the call, the stack pointer and where it is; what it has on
//! its stack is read from its memory. It is not stopped: a stop would end some calls early
//! (epoll_wait(2), and others that signal(7) names, return EINTR).

use std::fs;
use std::io::{ErrorKind, Read as _};

use sandbox_core::types::{Call, HostPid};

use super::{Looker, Thread, begin, purpose};
use crate::calls::{self, Doing, Inside, Process};
use crate::status::Status;
use crate::unwind::{Memory, ends_with_call};

/// The most bytes of a stack that are read, and how many at once.
const STACK: usize = 64 << 10;
const STEP: usize = 4 << 10;

/// How often code is looked at for a stack.
const LOOKS: u32 = 1000;

/// How often a thread is read that moves meanwhile.
const TRIES: u32 = 3;

/// What a thread was found doing.
pub(super) enum Read {
    /// It waits.
    Waits(Box<Thread>),
    /// It runs: its stack is not to be had this way.
    Runs(Box<Thread>),
}

impl Looker {
    /// Reads a thread. `None` if it has ended.
    pub(super) fn blocked(&mut self, pid: i32, tid: i32) -> Option<Read> {
        let mut tries = 0;
        loop {
            tries += 1;
            let status = Status::of(tid)?;
            let mut thread = Box::new(begin(pid, tid, &status)?);
            if thread.state == "Z" {
                thread.waits_for = Some("its parent, which has not waited for it yet".to_owned());
                return Some(Read::Waits(thread));
            }
            match Doing::of(tid) {
                Ok(Doing::Runs) => return Some(Read::Runs(thread)),
                Ok(Doing::Waits { call, sp, ip }) => {
                    self.read(&mut thread, &status, call, (ip, sp));
                    let moved = Status::of(tid)?.switches() != status.switches();
                    if moved && tries == TRIES {
                        let why = "it ran while it was read, so this may be no stack that it had";
                        thread.ends_early = Some(why.to_owned());
                    } else if moved {
                        continue;
                    }
                    return Some(Read::Waits(thread));
                }
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    let why = "it may not be looked at (CAP_SYS_PTRACE is missing)";
                    thread.ends_early = Some(why.to_owned());
                    return Some(Read::Waits(thread));
                }
                Err(_) => return None,
            }
        }
    }

    fn read(
        &mut self,
        thread: &mut Thread,
        status: &Status,
        call: Option<Call>,
        (ip, sp): (u64, u64),
    ) {
        let served = self.walker.images.served(thread.pid);
        let process = Process::open(HostPid(thread.tid)).sparing(served);
        thread.wchan = wchan(thread.tid);
        thread.kernel = kernel(thread.tid);
        if is_32_bit(thread.pid) {
            // Its calls have other numbers, and its frames another form.
            thread.ends_early = Some("stacks of 32-bit programs are not read".to_owned());
            thread.waits_for = purpose::of(thread, status, None, &process, &mut self.sockets);
            return;
        }
        thread.call = call.map(|call| calls::describe(&call, &process));
        thread.waits = call.and_then(|call| calls::waits(&call, &process)).map(calls::Waits::name);
        thread.waits_for = purpose::of(thread, status, call.as_ref(), &process, &mut self.sockets);
        let mut copy = Copy { process, sp, bytes: Vec::new(), ended: false, looks: LOOKS };
        let walked = self.walker.waiting(thread.pid, (ip, sp), &mut copy);
        self.fill(thread, walked);
    }
}

/// The top of a stack, as far as it was needed.
struct Copy {
    process: Process,
    sp: u64,
    bytes: Vec<u8>,
    ended: bool,
    /// How often code may still be looked at: a stack can be full of what looks like it.
    looks: u32,
}

impl Memory for Copy {
    fn word(&mut self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.sp)?).ok()?;
        let end = at.checked_add(8).filter(|end| *end <= STACK)?;
        while self.bytes.len() < end && !self.ended {
            let length = self.bytes.len();
            self.bytes.resize(length + STEP, 0);
            let from = self.sp.checked_add(length as u64)?;
            let read = self.process.read(from, &mut self.bytes[length..]);
            self.ended = read < STEP;
            self.bytes.truncate(length + read);
        }
        let word = self.bytes.get(at..end)?;
        Some(u64::from_ne_bytes(word.try_into().ok()?))
    }

    fn has_call_before(&mut self, address: u64) -> bool {
        if self.looks == 0 {
            return false;
        }
        self.looks -= 1;
        let mut bytes = [0; 7];
        self.process.read(address.wrapping_sub(7), &mut bytes) == 7 && ends_with_call(bytes)
    }
}

/// Returns the function of the kernel in which a thread waits.
fn wchan(tid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{tid}/wchan")).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty() && text != "0")
}

/// Returns the kernel's stack of a thread. Nothing, if it may not be read.
fn kernel(tid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{tid}/stack")).unwrap_or_default();
    text.lines().filter_map(function).collect()
}

/// Returns the function of a line as in `[<0>] futex_wait_queue+0x5e/0x90`.
fn function(line: &str) -> Option<String> {
    let (_, name) = line.split_once("] ")?;
    Some(name.split('+').next().unwrap_or(name).to_owned())
}

/// Whether a process executes a program of 32 bits (`EI_CLASS` of its ELF header).
fn is_32_bit(pid: i32) -> bool {
    let mut head = [0; 5];
    let file = fs::File::open(format!("/proc/{pid}/exe"));
    file.and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == *b"\x7fELF\x01"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_kernel_s_stack_are_read() {
        assert_eq!(function("[<0>] do_wait+0x7a/0x100").as_deref(), Some("do_wait"));
        assert_eq!(function("[<0>] f+0x1/0x2 [overlay]").as_deref(), Some("f"));
        assert_eq!(function("nonsense"), None);
    }

    #[test]
    fn no_more_of_a_stack_is_read_than_is_bounded() {
        let large = vec![7u64; STACK / 4];
        let sp = large.as_ptr().addr() as u64;
        let process = Process::open(HostPid(std::process::id().cast_signed()));
        let mut copy = Copy { process, sp, bytes: Vec::new(), ended: false, looks: 1 };
        assert_eq!(copy.word(sp), Some(7));
        assert_eq!(copy.bytes.len(), STEP, "only what is needed");
        assert_eq!(copy.word(sp + STACK as u64 - 8), Some(7));
        assert_eq!(copy.word(sp + STACK as u64 - 7), None);
        assert_eq!(copy.word(sp - 8), None);
        assert_eq!(copy.word(u64::MAX), None);
    }
}
