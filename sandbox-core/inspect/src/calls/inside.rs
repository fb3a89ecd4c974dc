//! The memory and the open files of a thread, read from the host.

use std::fs;
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::Arc;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
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
#[derive(Clone, Debug)]
pub struct Process {
    pid: HostPid,
    spared: Arc<[Range<u64>]>,
}

impl Process {
    /// Takes a process, which may be a thread's ID. One that may not be looked at has no memory.
    pub fn open(pid: HostPid) -> Self {
        Self { pid, spared: Arc::default() }
    }

    /// Does not read these parts of its memory.
    #[must_use]
    pub fn sparing(self, spared: Arc<[Range<u64>]>) -> Self {
        Self { spared, ..self }
    }
}

impl Inside for Process {
    fn read(&self, address: u64, into: &mut [u8]) -> usize {
        // Not /proc/PID/mem: where a page comes from a file system that never answers, waiting for it
        // by that would outlast even a kill of this command.
        let end = address.saturating_add(into.len() as u64);
        if self.spared.iter().any(|part| part.start < end && address < part.end) {
            return 0;
        }
        let Ok(base) = usize::try_from(address) else { return 0 };
        let from = [RemoteIoVec { base, len: into.len() }];
        let pid = Pid::from_raw(self.pid.0);
        process_vm_readv(pid, &mut [IoSliceMut::new(into)], &from).unwrap_or(0)
    }

    fn file(&self, number: i32) -> Option<String> {
        let link = fs::read_link(format!("/proc/{}/fd/{number}", self.pid.0)).ok()?;
        Some(link.to_string_lossy().into_owned())
    }
}
