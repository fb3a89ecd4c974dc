//! The sandbox as the shim sees it: one boot process and the channels to it.
//!
//! Nothing in here waits. Each operation that takes time is begun by one call
//! and has a descriptor that becomes readable when the next call can finish
//! it, so that the shim's event loop stays the only place that waits:
//!
//! | begun by | readable | finished by |
//! |---|---|---|
//! | [`Sandbox::spawn`] | [`Sandbox::start_sync`] | [`Sandbox::finish_start`] |
//! | [`Sandbox::gofer`] | [`GoferRun`] | [`GoferRun::finish`] |
//! | [`Sandbox::send`] | [`Sandbox::control`] | [`Sandbox::receive`] |
//! | [`Sandbox::kill`] | [`Sandbox::pidfd`] | [`Sandbox::reap`] |

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::cgroup::Cgroup;
use crate::control::message::{Request, Upward};
use crate::error::Result;
use crate::gofer::request::RootfsMount;
use crate::spec::plan::Plan;

/// A process ID in the host's (the shim's) PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPid(pub i32);

/// When a sandbox gets a user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Userns {
    /// Always, from an allocated range, unless the spec brings mappings or
    /// the pod needs the host's.
    #[default]
    Auto,
    /// Only with the mappings of the spec.
    Spec,
    /// Never.
    Never,
}

/// What a node's administrator chose. See ARCHITECTURE.md, "Options".
#[derive(Clone, Debug)]
pub struct Config {
    /// When a sandbox gets a user namespace.
    pub userns: Userns,
    /// First host ID of the range that sandboxes are given slices of.
    pub id_range_start: u32,
    /// How many host IDs the range has; each sandbox takes 65536.
    pub id_range_size: u32,
    /// Where state is kept: `/run/palisade`.
    pub state_root: PathBuf,
    /// The `palisade` executable.
    pub palisade: PathBuf,
    /// boot logs at debug level.
    pub debug: bool,
    /// boot dies with the shim.
    pub attached: bool,
}

/// What a new sandbox is made from.
#[derive(Clone, Copy, Debug)]
pub struct NewSandbox<'a> {
    /// ID of the sandbox and of its root container.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The root container's plan.
    pub plan: &'a Plan,
    /// The root container's cgroup; boot is put into it.
    pub cgroup: &'a Cgroup,
    /// Node configuration.
    pub config: &'a Config,
}

/// One running sandbox.
#[derive(Debug)]
pub struct Sandbox {}

impl Sandbox {
    /// Clones boot into its namespaces and its cgroup, hands it its
    /// descriptors and writes the state file. Does not wait for it.
    pub fn spawn(_new: NewSandbox<'_>) -> Result<Sandbox> {
        todo!()
    }
    /// Readable once boot is up or dead.
    pub fn start_sync(&self) -> BorrowedFd<'_> {
        todo!()
    }
    /// Ok when boot is up; otherwise why it is not.
    pub fn finish_start(&self) -> Result<()> {
        todo!()
    }
    /// Starts the gofer for one container's root file system and mounts. May
    /// be called before boot is up.
    pub fn gofer(&self, _plan: &Plan, _rootfs: Vec<RootfsMount>) -> Result<GoferRun> {
        todo!()
    }
    /// Sends a request and tells its number.
    pub fn send(&self, _request: Request, _descriptors: &[BorrowedFd<'_>]) -> Result<u64> {
        todo!()
    }
    /// The control channel, non-blocking.
    pub fn control(&self) -> BorrowedFd<'_> {
        todo!()
    }
    /// The next message from boot; `None` when none is waiting; an error when
    /// boot has closed the channel or sends what is no message.
    pub fn receive(&self) -> Result<Option<(Upward, Vec<OwnedFd>)>> {
        todo!()
    }
    /// boot's process ID.
    pub fn pid(&self) -> HostPid {
        todo!()
    }
    /// Readable once boot has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        todo!()
    }
    /// Whether boot lives.
    pub fn is_running(&self) -> bool {
        todo!()
    }
    /// SIGKILL to boot: the kernel takes the pod along.
    pub fn kill(&self) -> Result<()> {
        todo!()
    }
    /// Collects the exit status of a boot that has exited. Idempotent.
    pub fn reap(&self) -> Result<()> {
        todo!()
    }
    /// The pipe that boot logs into, non-blocking, to be relayed by lines.
    pub fn log(&self) -> BorrowedFd<'_> {
        todo!()
    }
    /// What boot wrote when it panicked, at most 16 KiB.
    pub fn panic_log(&self) -> String {
        todo!()
    }
    /// Host ID of an ID inside the sandbox's user namespace.
    pub fn host_id(&self, _inside: u32) -> u32 {
        todo!()
    }
    /// The seccomp program that the gofer compiled for this plan, to be
    /// donated with Create and Exec; `None` when the plan has no profile.
    pub fn seccomp(&self, _plan: &Plan) -> Result<Option<(OwnedFd, u32)>> {
        todo!()
    }
    /// Kills what is left, gives the ID range back and removes the state.
    pub fn destroy(&self) -> Result<()> {
        todo!()
    }
}

/// A gofer at work.
#[derive(Debug)]
pub struct GoferRun {}

impl AsFd for GoferRun {
    /// Readable once the gofer has answered or died.
    fn as_fd(&self) -> BorrowedFd<'_> {
        todo!()
    }
}

impl GoferRun {
    /// Reads the answer and collects the process.
    pub fn finish(self) -> Result<()> {
        todo!()
    }
}

/// A container's process, known by a pidfd that came from boot and was checked
/// to belong to a PID namespace below the shim's.
#[derive(Debug)]
pub struct Process {
    /// Its host PID.
    pub pid: HostPid,
    /// Readable once it has exited.
    pub pidfd: OwnedFd,
}

impl Process {
    /// Checks a descriptor that boot sent.
    pub fn from_boot(_pidfd: OwnedFd) -> Result<Process> {
        todo!()
    }
    /// pidfd_send_signal(2). `NotFound` when it has exited.
    pub fn signal(&self, _signal: i32) -> Result<()> {
        todo!()
    }
}

/// Checks that a descriptor from boot is the master side of a pseudo terminal.
pub fn checked_terminal(_fd: OwnedFd) -> Result<OwnedFd> {
    todo!()
}

/// Cleans up after a shim that died: kills the sandbox if it lives, removes
/// its cgroups, gives its ID range back, removes its state. Idempotent; needs
/// nothing but the state on disk. Returns boot's PID when it is known.
pub fn clean_up(_state_root: &Path, _namespace: &str, _id: &str) -> Result<Option<HostPid>> {
    todo!()
}
