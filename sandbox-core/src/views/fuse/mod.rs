//! The file system that boot serves to the kernel.
//!
//! ```text
//!   SERIAL/                     a directory for each container, by a number never used twice
//!       meminfo stat ...        texts that boot makes (`places`), of proc
//!       pressure/ cpu io memory
//!       cpu/                    the host's /sys/devices/system/cpu, passed through (`sysfs`):
//!           online ...            texts that boot makes
//!           cpuN/                 of the CPUs that the container has
//!       node/                   likewise /sys/devices/system/node
//! ```
//! One read(2) of the device returns one request ([`protocol`]), one write(2) replies to it
//! (`reply`). `Server` reads and replies when boot's loop finds the device readable, and what
//! a request asks is answered by `file_system`. Nothing here waits: a request whose answer is
//! not there yet (`Unanswered::Wait`) is put aside, and boot goes on.
//!
//! A reader sleeps where a signal wakes it up until boot takes its request, and then until boot
//! replies: so a request is replied to in the turn in which it is taken, or put aside, where the
//! kernel's notice of the signal ends it. When boot ends, the kernel ends all of them.
//!
//! boot sends the kernel no notices of its own: the kernel takes a directory's lock for them,
//! which a reader may hold who waits for boot.

mod file_system;
mod nodes;
mod places;
pub mod protocol;
mod reply;
mod server;
mod snapshots;
mod sysfs;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::File;
use crate::cpu_set::CpuSet;

pub(crate) use server::{Served, Server};

/// An answer, if there is one.
pub(crate) type Answer<T> = Result<T, Unanswered>;

/// The reason why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// It needs what boot has asked the shim for: the request waits for [`Server::resume`].
    Wait,
    /// The program gets this error.
    Errno(Errno),
}

impl From<Errno> for Unanswered {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// The answers that a [`Server`] serves, which boot has. All must return without waiting.
pub(crate) trait Content {
    /// Returns the text of a container's file as it is now. For `possible` of the CPUs and for
    /// the files of a memory node, `kernels` is the text that the kernel has there.
    fn text(&mut self, serial: u32, file: File, kernels: Option<&[u8]>) -> Answer<Vec<u8>>;

    /// Returns the CPUs that a container is told it has: only these have a directory.
    fn cpus(&mut self, serial: u32) -> Answer<CpuSet>;

    /// Returns the host's sysfs. `ENOENT` if boot was given none: `cpu` then has only the files
    /// that boot makes, and `node` has nothing.
    fn sysfs(&self, serial: u32) -> Answer<Sysfs<'_>>;
}

/// Directories of the host's sysfs: the roots of two mounts that are nowhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sysfs<'a> {
    /// `/sys/devices/system/cpu`
    pub(crate) cpu: BorrowedFd<'a>,
    /// `/sys/devices/system/node`, which a kernel without NUMA lacks.
    pub(crate) node: Option<BorrowedFd<'a>>,
}
