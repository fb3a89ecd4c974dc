//! The messages between shim and boot, both directions, and their encoding.
//!
//! One message is one packet of a seqpacket socket; descriptors travel beside
//! it as `SCM_RIGHTS`. The shim treats whatever comes up from boot as hostile:
//! decoding is bounded by [`MAX_PACKET`], allocates no more than the packet
//! holds, and every string is looked up in the shim's own tables, never used
//! as a path.

use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::spec::plan::{ContainerPlan, ProcessPlan};
use crate::types::{Capacity, ProcessId};

/// The largest packet, in bytes. A larger request travels in a memfd, as the
/// packet's first descriptor.
pub const MAX_PACKET: usize = 64 * 1024;

/// The most descriptors one packet carries (the kernel's `SCM_MAX_FD` is 253).
pub const MAX_DESCRIPTORS: usize = 32;

/// What the shim asks of boot. Descriptors are named in the order they travel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Make a container up to its gate. Its mounts were put into the mounts
    /// channel by the gofer before this is sent.
    ///
    /// Descriptors: those of [`Donations`].
    Create {
        /// What to make.
        plan: Box<ContainerPlan>,
        /// Which descriptors travel along.
        donations: Donations,
        /// What it is told that it has.
        capacity: Capacity,
    },
    /// Open the gate of a created container.
    Start {
        /// Its ID.
        container: String,
    },
    /// Run one more process in a running container.
    ///
    /// Descriptors: those of [`Donations`].
    Exec {
        /// The container's ID.
        container: String,
        /// The exec's ID, unique in the container.
        exec: String,
        /// What to run.
        process: Box<ProcessPlan>,
        /// Which descriptors travel along.
        donations: Donations,
    },
    /// Forget a container that has exited (or never started: then it is killed).
    Delete {
        /// Its ID.
        container: String,
    },
    /// New CPU count and memory size, after an update of the resources.
    Update {
        /// The container, or the sandbox itself.
        container: Option<String>,
        /// What it is told from now on.
        capacity: Capacity,
    },
}

/// Which descriptors a Create or Exec carries, in this order: stdio, then
/// `cgroup.procs`, then seccomp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Donations {
    /// Standard input; `/dev/null` when false.
    pub stdin: bool,
    /// Standard output; `/dev/null` when false.
    pub stdout: bool,
    /// Standard error; `/dev/null` when false.
    pub stderr: bool,
    /// How many open `cgroup.procs` files to write "0" to, one a hierarchy.
    /// Zero when boot sits in that cgroup already.
    pub cgroup_procs: u8,
    /// A file that holds the compiled seccomp program (`struct sock_filter`s)
    /// and the `SECCOMP_FILTER_FLAG_`s to load it with.
    pub seccomp: Option<u32>,
}

impl Donations {
    /// How many descriptors that makes.
    pub fn count(self) -> usize {
        usize::from(self.stdin)
            + usize::from(self.stdout)
            + usize::from(self.stderr)
            + usize::from(self.cgroup_procs)
            + usize::from(self.seccomp.is_some())
    }
}

/// A request with the number that its reply will carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbered {
    /// Chosen by the shim, never used twice in a sandbox's life.
    pub number: u64,
    /// The request.
    pub request: Request,
}

/// What boot says to the shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Upward {
    /// The answer to a request.
    Reply {
        /// The request's number.
        number: u64,
        /// What came of it.
        outcome: Result<Done, Failure>,
    },
    /// A process ended. Exec'd processes before the init of their container.
    Exited {
        /// The process.
        process: ProcessId,
        /// As wait(2) shells tell it: the exit code, or 128 + the signal.
        status: u32,
    },
}

/// A request that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// Nothing more to say.
    Ok,
    /// A process was made. Descriptors: its pidfd, then the master side of
    /// its terminal when `terminal`.
    Process {
        /// Whether a terminal travels along.
        terminal: bool,
    },
}
