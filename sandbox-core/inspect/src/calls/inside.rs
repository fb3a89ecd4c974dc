//! The memory and the open files of a thread, read from the host.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use sandbox_core::types::HostPid;

/// What can be seen of the thread that calls.
pub trait Inside {
    /// Reads memory, as much as there is. Returns the number of bytes.
    fn read(&self, address: u64, into: &mut [u8]) -> usize;
    /// Returns what a descriptor is open for: a path as the container has it, or `socket:[7]`.
    fn file(&self, number: i32) -> Option<String>;
}

/// A thread of which only the registers are known.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Inside for Nothing {
    fn read(&self, _: u64, _: &mut [u8]) -> usize {
        0
    }

    fn file(&self, _: i32) -> Option<String> {
        None
    }
}

/// A process that lives. What is read from it can change meanwhile: it is for people's eyes.
#[derive(Debug)]
pub struct Process {
    pid: HostPid,
    memory: Option<File>,
}

impl Process {
    /// Opens the memory of a process, which may be a thread's ID. One that cannot be opened has none.
    pub fn open(pid: HostPid) -> Self {
        Self { pid, memory: File::open(format!("/proc/{}/mem", pid.0)).ok() }
    }
}

impl Inside for Process {
    fn read(&self, address: u64, into: &mut [u8]) -> usize {
        let Some(memory) = &self.memory else { return 0 };
        let mut done = 0;
        // A read ends where a mapping does.
        while done < into.len() {
            match memory.read_at(&mut into[done..], address.saturating_add(done as u64)) {
                Ok(0) | Err(_) => break,
                Ok(some) => done += some,
            }
        }
        done
    }

    fn file(&self, number: i32) -> Option<String> {
        let link = fs::read_link(format!("/proc/{}/fd/{number}", self.pid.0)).ok()?;
        Some(link.to_string_lossy().into_owned())
    }
}
