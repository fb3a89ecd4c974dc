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

mod child;
mod clean_up;
mod executable;
mod gofer_run;
mod process;
mod spawn;
mod state;
mod users;

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use rustix::process::{Signal, WaitIdOptions, pidfd_send_signal, waitid};

use crate::cgroup::{Cgroup, SavedCgroup};
use crate::control::donation::STARTED;
use crate::control::gofer::RootfsMount;
use crate::control::message::{MAX_DESCRIPTORS, MAX_PACKET, Numbered, Request, Upward};
use crate::control::packet::{Received, receive_packet, send_packet};
use crate::error::{Context, Error, Result};
use crate::spec::plan::{Mappings, Plan};
use crate::types::{HostPid, Userns};

pub use clean_up::clean_up;
pub use executable::Executable;
pub use gofer_run::GoferRun;
pub use process::{Along, Process, signal_foreground};
use state::StateDirectory;

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
    /// The root container's cgroup; boot belongs into it.
    pub cgroup: &'a Cgroup,
    /// CPUs that the sandbox is told it has.
    pub cpus: u32,
    /// Bytes of memory that the sandbox is told it has.
    pub memory: u64,
    /// Node configuration.
    pub config: &'a Config,
}

/// One running sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// `<namespace>/<id>`: the owner of an ID range.
    owner: String,
    directory: StateDirectory,
    state_root: PathBuf,
    boot: HostPid,
    pidfd: OwnedFd,
    reaped: AtomicBool,
    /// Stays open until the shim ends: what was not received may hold
    /// descriptors that cannot be closed just so (`control/packet.rs`).
    control: ManuallyDrop<OwnedFd>,
    mounts: OwnedFd,
    start_sync: OwnedFd,
    log: OwnedFd,
    panic_log: OwnedFd,
    executable: Executable,
    user_namespace: Option<UserNamespace>,
    id_range: Option<PathBuf>,
    next_number: AtomicU64,
    gofers_started: AtomicU64,
    /// Gofers that were not collected yet.
    gofers: Mutex<Vec<Arc<OwnedFd>>>,
}

/// What [`Sandbox::receive`] found.
#[derive(Debug)]
pub enum Heard {
    /// A message, and what came along.
    Message(Upward, Along),
    /// None is waiting.
    Nothing,
    /// boot has closed the channel: it is dying, or means to live on unheard.
    Closed,
}

/// The sandbox's user namespace, as the host sees it.
#[derive(Debug)]
struct UserNamespace {
    fd: OwnedFd,
    mappings: Mappings,
}

impl Sandbox {
    /// Clones boot into its namespaces and the root container's cgroup, hands
    /// it its descriptors and writes the state file. Does not wait for it:
    /// [`Sandbox::gofer`] goes on while boot starts.
    ///
    /// # Errors
    /// `Exists` when there is state of a sandbox with this ID. Nothing is left
    /// behind.
    pub fn spawn(new: NewSandbox<'_>) -> Result<Sandbox> {
        spawn::spawn(new)
    }

    /// Readable once boot is up or dead.
    pub fn start_sync(&self) -> BorrowedFd<'_> {
        self.start_sync.as_fd()
    }

    /// Ok when boot is up; otherwise why it is not.
    pub fn finish_start(&self) -> Result<()> {
        let mut said = [0; 4096];
        let length = rustix::io::read(&self.start_sync, &mut said)
            .context(|| "read start-sync of the sandbox process")?;
        match &said[..length] {
            [STARTED, ..] => Ok(()),
            [] => Err(Error::internal(format!(
                "the sandbox process died while starting{}",
                self.last_words()
            ))),
            sentence => Err(Error::internal(format!(
                "the sandbox process could not start: {}",
                printable(sentence)
            ))),
        }
    }

    /// How boot ended, as far as it can be known: its panic message, else its
    /// last log line.
    pub fn last_words(&self) -> String {
        let panic = self.panic_log();
        let mut logged = vec![0; MAX_PACKET];
        let length = rustix::io::read(&self.log, &mut logged).unwrap_or(0);
        let logged = printable(&logged[..length]);
        match panic.lines().chain(logged.lines().rev()).find(|line| !line.is_empty()) {
            Some(line) => format!(": {line}"),
            None => String::new(),
        }
    }

    /// Starts the gofer for one container's root file system and mounts. May
    /// be called before boot is up. One at a time.
    pub fn gofer(&self, plan: &Plan, rootfs: Vec<RootfsMount>) -> Result<GoferRun> {
        let first = self.gofers_started.fetch_add(1, Ordering::Relaxed) == 0;
        gofer_run::start(self, plan, rootfs, first)
    }

    /// Sends a request and tells its number.
    pub fn send(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<u64> {
        gofer_run::collect(self);
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let bytes = postcard::to_stdvec(&Numbered { number, request })
            .map_err(|e| Error::internal(format!("encode a request: {e}")))?;
        send_packet(&*self.control, &bytes, descriptors)
            .context(|| "send a request to the sandbox process")?;
        Ok(number)
    }

    /// The control channel, non-blocking.
    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// The next message from boot.
    ///
    /// # Errors
    /// boot sends what is no message, or not what belongs to it: it was taken
    /// over. Kill it and receive no more.
    pub fn receive(&self) -> Result<Heard> {
        let received = receive_packet(&*self.control, MAX_PACKET, MAX_DESCRIPTORS)
            .map_err(|e| Error::internal(format!("it sent {e}")))?;
        let (bytes, fds, process) = match received {
            Received::WouldBlock => return Ok(Heard::Nothing),
            Received::Closed => return Ok(Heard::Closed),
            Received::Packet { bytes, fds, process } => (bytes, fds, process),
        };
        let message = postcard::from_bytes(&bytes)
            .map_err(|e| Error::internal(format!("it sent what is no message: {e}")))?;
        let along = Along::check(&message, fds, process.map(HostPid))?;
        Ok(Heard::Message(message, along))
    }

    /// boot's process ID.
    pub fn pid(&self) -> HostPid {
        self.boot
    }

    /// Readable once boot has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether boot lives.
    pub fn is_running(&self) -> bool {
        if self.reaped.load(Ordering::Relaxed) {
            return false;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(rustix::process::WaitId::PidFd(self.pidfd.as_fd()), options), Ok(None))
    }

    /// SIGKILL to boot: the kernel takes the pod along. Idempotent.
    pub fn kill(&self) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e).context(|| format!("kill the sandbox process {}", self.boot.0)),
        }
    }

    /// Collects the exit status of a boot that has exited. Idempotent; does
    /// nothing while it lives.
    pub fn reap(&self) -> Result<()> {
        self.collect(WaitIdOptions::NOHANG)
    }

    fn collect(&self, options: WaitIdOptions) -> Result<()> {
        if self.reaped.load(Ordering::Relaxed) {
            return Ok(());
        }
        let id = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
        match waitid(id, WaitIdOptions::EXITED | options) {
            Ok(None) => {}
            Ok(Some(_)) | Err(Errno::CHILD) => self.reaped.store(true, Ordering::Relaxed),
            Err(e) => return Err(e).context(|| "wait for the sandbox process"),
        }
        Ok(())
    }

    /// The pipe that boot logs into, non-blocking, to be relayed by lines.
    pub fn log(&self) -> BorrowedFd<'_> {
        self.log.as_fd()
    }

    /// What boot wrote when it panicked, at most 16 KiB.
    pub fn panic_log(&self) -> String {
        let mut text = vec![0; PANIC_LOG_SIZE as usize];
        let length = rustix::io::pread(&self.panic_log, &mut text, 0).unwrap_or(0);
        let end = text[..length].iter().position(|b| *b == 0).unwrap_or(length);
        printable(&text[..end])
    }

    /// Host ID of a user ID inside the sandbox's user namespace; the overflow
    /// ID when it has none there.
    pub fn host_uid(&self, inside: u32) -> u32 {
        self.user_namespace
            .as_ref()
            .map_or(inside, |user| user.mappings.uid_outside(inside).unwrap_or(OVERFLOW_ID))
    }

    /// As [`Sandbox::host_uid`], for a group.
    pub fn host_gid(&self, inside: u32) -> u32 {
        self.user_namespace
            .as_ref()
            .map_or(inside, |user| user.mappings.gid_outside(inside).unwrap_or(OVERFLOW_ID))
    }

    /// Whether the sandbox has a user namespace of its own.
    pub fn has_user_namespace(&self) -> bool {
        self.user_namespace.is_some()
    }

    /// The seccomp program that the gofer compiled for this plan, with the
    /// flags to load it with, to be donated with Create and Exec; `None` when
    /// the plan has no profile. Call it once the gofer has finished.
    pub fn seccomp(&self, plan: &Plan) -> Result<Option<(OwnedFd, u32)>> {
        gofer_run::open_seccomp(&self.state_root, plan)
    }

    /// Records a container for `delete` to find.
    pub fn add_container(&self, id: &str, bundle: &Path, cgroup: SavedCgroup) -> Result<()> {
        self.directory.add_container(id, bundle, cgroup)
    }

    /// Forgets a container.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        self.directory.remove_container(id)
    }

    /// Kills what is left, waits until the kernel has taken it all away, gives
    /// the ID range back and removes the state. Idempotent.
    pub fn destroy(&self) -> Result<()> {
        self.kill()?;
        gofer_run::end(self);
        self.collect(WaitIdOptions::empty())?;
        if let Some(link) = &self.id_range {
            users::release(link, &self.owner)?;
        }
        self.directory.remove()
    }
}

/// What an ID outside a user namespace's mappings appears as.
const OVERFLOW_ID: u32 = 65534;

/// Room for a panic message. The memfd is sealed at this size, since boot may
/// be hostile.
const PANIC_LOG_SIZE: u64 = 16 * 1024;

/// Text from an untrusted place, cut and without control characters.
pub fn printable(text: &[u8]) -> String {
    let keep = |c: &char| *c == '\n' || !c.is_control();
    String::from_utf8_lossy(&text[..text.len().min(4096)]).chars().filter(keep).collect()
}

/// Opens a namespace file of a process: `/proc/<pid>/ns/<name>`.
fn open_namespace(pid: HostPid, name: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{}/ns/{name}", pid.0);
    std::fs::File::open(&path).map(Into::into).context(|| path)
}
