//! The messages between shim and boot, in both directions, and their encoding.
//!
//! One message is one packet of a seqpacket socket; descriptors travel beside
//! it as `SCM_RIGHTS`. The shim treats all messages from boot as hostile:
//! decoding is bounded by [`MAX_PACKET`] and allocates no more than the packet
//! holds; the shim looks every string up in its own tables and uses none as a
//! path.

use serde::{Deserialize, Serialize};

use super::encoding::Message;
use crate::error::Failure;
use crate::spec::plan::{ContainerPlan, ProcessPlan};
use crate::types::{Capacity, ProcessId};

/// The size of the largest packet, in bytes. A larger request travels in a
/// memfd, as the packet's first descriptor.
pub const MAX_PACKET: usize = 64 * 1024;

/// The most descriptors that one packet carries (the kernel's `SCM_MAX_FD` is
/// 253).
pub const MAX_DESCRIPTORS: usize = 32;

/// A request of the shim to boot. Each lists its descriptors in the order in
/// which they travel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Creates a container, up to its gate. The gofer has sent the mounts on
    /// the mounts channel before.
    ///
    /// Descriptors: those of [`Donations`].
    Create {
        /// The container's plan.
        plan: Box<ContainerPlan>,
        /// The descriptors that travel with the request.
        donations: Donations,
        /// The CPUs and the memory that the container is told it has.
        capacity: Capacity,
    },
    /// Opens the gate of a created container.
    Start {
        /// The container's ID.
        container: String,
    },
    /// Starts one more process in a running container.
    ///
    /// Descriptors: those of [`Donations`].
    Exec {
        /// The container's ID.
        container: String,
        /// The exec's ID, unique in the container.
        exec: String,
        /// The process's plan.
        process: Box<ProcessPlan>,
        /// The descriptors that travel with the request.
        donations: Donations,
    },
    /// Lets a process go on whose seccomp listener an agent has, or fails the request that
    /// it belongs to. See [`Upward::Listener`].
    ListenerHandedOver {
        /// The number of that request.
        of: u64,
        /// Why no agent has it.
        refused: Option<String>,
    },
    /// Forgets a container that has exited, or kills and forgets one that was
    /// not started.
    Delete {
        /// The container's ID.
        container: String,
    },
    /// Sends the new capacity after an update of the resources.
    Update {
        /// The container's ID; `None` for the sandbox itself.
        container: Option<String>,
        /// The new capacity.
        capacity: Capacity,
    },
}

/// The descriptors that a Create or Exec carries, in this order: stdio, then
/// `cgroup.procs`, then that of the init's own cgroup, then seccomp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Donations {
    /// Whether there is a standard input; without one it is `/dev/null`.
    pub stdin: bool,
    /// Whether there is a standard output; without one it is `/dev/null`.
    pub stdout: bool,
    /// Whether there is a standard error; without one it is `/dev/null`.
    pub stderr: bool,
    /// Whether there is the directory of a cgroup of version 2 to be born in. If the kernel
    /// refuses that, the process is moved there.
    pub cgroup_directory: bool,
    /// The number of open `cgroup.procs` files (version 1: `tasks`) to write
    /// "0" to, one for each hierarchy. Zero if boot is in that cgroup already.
    pub cgroup_procs: u8,
    /// Whether there is one more `cgroup.procs`, to which the init writes "0" once its
    /// cgroup namespace is made. With Create only: the container divides its cgroup.
    pub init_procs: bool,
    /// The `SECCOMP_FILTER_FLAG_`s to load the seccomp program with, if there
    /// is a file that holds one (`struct sock_filter`s). With Create only: boot
    /// keeps it for the container's execs.
    pub seccomp: Option<u32>,
}

impl Donations {
    /// Returns the number of descriptors.
    pub fn count(self) -> usize {
        usize::from(self.stdin)
            + usize::from(self.stdout)
            + usize::from(self.stderr)
            + usize::from(self.cgroup_directory)
            + usize::from(self.cgroup_procs)
            + usize::from(self.init_procs)
            + usize::from(self.seccomp.is_some())
    }
}

/// A request with the number that its reply will carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbered {
    /// The number, which the shim never uses twice for one sandbox.
    pub number: u64,
    /// The request.
    pub request: Request,
}

impl Message for Numbered {
    const NAME: &str = "a request";
}

/// A message of boot to the shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Upward {
    /// The reply to a request.
    Reply {
        /// The request's number.
        number: u64,
        /// The result.
        outcome: Result<Done, Failure>,
    },
    /// The process of a request has a seccomp program and waits until an agent has its
    /// listener. Descriptors: its pidfd, then the listener.
    Listener {
        /// The number of the request: a Create, a Start or an Exec.
        of: u64,
    },
    /// A process has ended. boot reports exec'd processes before the init of
    /// their container.
    Exited {
        /// The process.
        process: ProcessId,
        /// The exit code, or 128 + the number of the signal that ended it.
        status: u32,
    },
}

impl Message for Upward {
    const NAME: &str = "a message to the shim";
}

/// The result of a request that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// There is no more to report.
    Ok,
    /// A process was made. Descriptors: its pidfd, then the master side of its
    /// terminal if `terminal`, then the mount namespace that it has left if `mounts`.
    Process {
        /// Whether a terminal comes with it.
        terminal: bool,
        /// Whether a mount namespace comes with it.
        mounts: bool,
    },
}
