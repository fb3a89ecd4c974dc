//! What the kernel says of a process or a thread, line by line (proc_pid_status(5)).
//!
//! The name of a thread is any bytes that its container likes: what is read is never taken to be
//! UTF-8, and what is printed is escaped.

use std::fs;
use std::str::FromStr;

use crate::calls::printable;

/// `/proc/ID/status`.
#[derive(Clone, Debug)]
pub struct Status(String);

impl Status {
    /// Reads that of a process, or of a thread. `None` if it has ended.
    pub fn of(id: i32) -> Option<Self> {
        fs::read(format!("/proc/{id}/status")).ok().map(|bytes| Self::parse(&bytes))
    }

    /// Takes the text of one.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Returns what stands behind a key.
    pub fn line(&self, key: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
    }

    /// Returns one word of what stands behind a key, counted from 0, as a number.
    pub fn number<T: FromStr>(&self, key: &str, word: usize) -> Option<T> {
        self.line(key)?.split_whitespace().nth(word)?.parse().ok()
    }

    /// Returns a number of kibibytes as bytes.
    pub fn bytes(&self, key: &str) -> Option<u64> {
        self.number::<u64>(key, 0)?.checked_mul(1024)
    }

    /// Returns the ID in the innermost PID namespace of the process.
    pub fn inside(&self) -> Option<i32> {
        self.line("NSpid")?.split_whitespace().last()?.parse().ok()
    }

    /// Returns the state as one letter: `R`, `S`, `D`, `T`, `t`, `Z`, …
    pub fn state(&self) -> Option<char> {
        self.line("State")?.chars().next()
    }

    /// Returns how often it was given a CPU: unchanged, it has not run meanwhile.
    pub fn switches(&self) -> Option<u64> {
        let of = |key| self.number::<u64>(key, 0);
        Some(of("voluntary_ctxt_switches")?.wrapping_add(of("nonvoluntary_ctxt_switches")?))
    }
}

/// Returns the name of a thread, with what is not printable escaped. Nothing, if it has ended.
pub fn name(thread: i32) -> String {
    let name = fs::read(format!("/proc/{thread}/comm")).unwrap_or_default();
    printable(name.strip_suffix(b"\n").unwrap_or(&name))
}

/// Returns the threads of a process, in the order of their IDs. None, if it has ended.
pub fn threads(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut all: Vec<i32> =
        tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_whatever_the_name_is() {
        let status = Status::parse(
            b"Name:\ta\xffState:\tR\nState:\tD (disk sleep)\nTgid:\t7\nUid:\t1\t2\t3\t4\n\
            NSpid:\t7\t12\t4\nVmPTE:\t  12 kB\n\
            voluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t2\n",
        );
        assert_eq!((status.state(), status.inside()), (Some('D'), Some(4)));
        assert_eq!((status.number("Uid", 1), status.bytes("VmPTE")), (Some(2u32), Some(12 << 10)));
        assert_eq!((status.switches(), status.line("Ui")), (Some(7), None));
    }

    #[test]
    fn this_thread_is_among_those_of_this_process() {
        let me = std::process::id().cast_signed();
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        assert!(threads(me).contains(&thread));
        assert_eq!(Status::of(thread).unwrap().number("Tgid", 0), Some(me));
        assert!(!name(thread).is_empty() && name(-1).is_empty());
    }
}
