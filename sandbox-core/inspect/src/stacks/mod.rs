//! What each thread of a process does at this moment: its state, the call it is in, what it waits
//! for, its stack in the kernel and in the program. Nothing is stopped for it.
//!
//! | file | content |
//! |---|---|
//! | `blocked.rs` | a thread that waits: all of it is in /proc, and in its memory |
//! | `busy.rs` | threads that run: the kernel samples them |
//! | `purpose.rs` | what a thread waits for |

mod blocked;
mod busy;
mod purpose;

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::images::Place;
use crate::status::{self, Status};
use crate::symbols::{Function, Symbols};
use crate::walk::{Walked, Walker};

/// The most threads that are looked at.
pub const MOST: usize = 50_000;

/// The most bytes of names on all stacks together: a container chooses how long they are.
const BYTES: usize = 256 << 20;

/// One thread.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Thread {
    /// Its process, as the host numbers it.
    pub pid: i32,
    /// The thread, likewise.
    pub tid: i32,
    /// The thread, as its own PID namespace numbers it.
    pub tid_inside: i32,
    /// Its name, with what is not printable escaped.
    pub name: String,
    /// Its state, as one letter: `R`, `S`, `D`, `T`, `t`, `Z`, …
    pub state: String,
    /// The function of the kernel in which it waits.
    pub wchan: Option<String>,
    /// The system call that it is in, with its arguments.
    pub call: Option<String>,
    /// What kind of thing it waits for, in one word.
    pub waits: Option<&'static str>,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// Its stack in the kernel, the innermost first.
    pub kernel: Vec<String>,
    /// Its stack in the program, the innermost first.
    pub user: Vec<Frame>,
    /// Why the program's stack ends before its beginning.
    pub ends_early: Option<String>,
}

/// A function on a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// Its name, or an offset in its file.
    pub function: String,
    /// The program or library, as the process sees it.
    pub file: String,
    /// Where it is in its source, if debug information says it.
    pub line: Option<String>,
    /// Whether it was found by a guess, on which those further out rest.
    pub guessed: bool,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Threads that ended while they were looked for.
    pub ended: usize,
    /// Threads that were too many.
    pub left_out: usize,
}

/// What is passed on.
#[derive(Debug)]
pub enum Found {
    /// A thread will be looked at: the index of its process, and its ID.
    Begins(usize, i32),
    /// A thread of a process, by its index.
    Thread(usize, Box<Thread>),
}

/// Looks at all threads of some processes, until it is told to stop.
pub fn look(processes: &[i32], stop: &AtomicBool, mut pass_on: impl FnMut(Found)) -> Seen {
    let mut seen = Seen::default();
    let mut looker = Looker::default();
    let mut busy = Vec::new();
    let (mut left, mut bytes) = (MOST, 0);
    for (index, pid) in processes.iter().enumerate() {
        let mut threads = status::threads(*pid);
        seen.left_out += threads.len().saturating_sub(left);
        threads.truncate(left);
        left -= threads.len();
        for tid in threads {
            if stop.load(Ordering::Relaxed) {
                return seen;
            }
            pass_on(Found::Begins(index, tid));
            if bytes > BYTES {
                seen.left_out += 1;
                continue;
            }
            match looker.blocked(*pid, tid) {
                Some(blocked::Read::Waits(thread)) => {
                    bytes += size(&thread);
                    pass_on(Found::Thread(index, thread));
                }
                Some(blocked::Read::Runs(thread)) => busy.push((index, thread)),
                None => seen.ended += 1,
            }
        }
    }
    looker.busy(busy, stop, |found| match found {
        Some(found) => pass_on(found),
        None => seen.ended += 1,
    });
    seen
}

/// Knows the programs, and the names of their functions.
#[derive(Default)]
struct Looker {
    walker: Walker,
    symbols: Symbols,
    sockets: purpose::Sockets,
}

impl Looker {
    /// Gives the functions of a stack their names.
    fn fill(&mut self, thread: &mut Thread, walked: Walked) {
        let Self { walker, symbols, .. } = self;
        let mut names = |place: &Place| symbols.at(&walker.images, *place).to_vec();
        for place in &walked.kernel {
            thread.kernel.extend(names(place).into_iter().map(|function| function.name));
        }
        for (at, place) in walked.user.iter().enumerate() {
            let guessed = walked.guessed.contains(&at);
            let frame = |Function { name, file, line }| Frame {
                function: name,
                file,
                line: line.map(|(file, number)| format!("{file}:{number}")),
                guessed,
            };
            thread.user.extend(names(place).into_iter().map(frame));
        }
        thread.ends_early = walked.ends;
    }
}

/// Returns about how many bytes a thread takes.
fn size(thread: &Thread) -> usize {
    let of = |frame: &Frame| {
        let line = frame.line.as_ref().map_or(0, String::len);
        size_of::<Frame>() + frame.function.len() + frame.file.len() + line
    };
    thread.user.iter().map(of).sum()
}

/// Returns what is known of a thread before it is known what it does. `None` if it has ended, or
/// another one has its number.
fn begin(pid: i32, tid: i32, status: &Status) -> Option<Thread> {
    if status.number("Tgid", 0) != Some(pid) {
        return None;
    }
    Some(Thread {
        pid,
        tid,
        tid_inside: status.inside()?,
        name: status::name(tid),
        state: status.state()?.to_string(),
        ..Thread::default()
    })
}
