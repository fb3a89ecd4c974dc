//! The sandbox as the shim sees it: one boot and the channels to it.
//!
//! Only [`Sandbox::tear_down`] waits. Each other operation that takes time is
//! begun by one call, and has a descriptor that becomes readable when the next
//! call can finish it. So the shim's event loop stays the only place that
//! waits:
//!
//! | begun by | readable | finished by |
//! |---|---|---|
//! | [`Sandbox::spawn`] | [`Sandbox::start_sync`] | [`Sandbox::finish_namespaces`], where [`Sandbox::has_user_namespace`] |
//! | the same | the same | [`Sandbox::finish_start`] |
//! | [`Sandbox::gofer`] | [`GoferRun`] | [`GoferRun::finish`] |
//! | [`Sandbox::send`] | [`Sandbox::control`] | [`Sandbox::receive`] |
//! | the same, where [`Sandbox::has_unsent`] | the same, writable | [`Sandbox::send_rest`] |
//! | [`Sandbox::kill`] | [`Sandbox::pidfd`] | [`Sandbox::reap`] |

mod child;
mod clean_up;
pub mod counters;
mod ending;
mod executable;
mod gofer_run;
mod held_mounts;
mod limits;
mod pids;
mod process;
mod spawn;
pub mod state;
mod time_visit;
mod unfinished;
mod users;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;
use rustix::process::{Signal, WaitIdOptions, pidfd_send_signal, waitid};

use crate::cgroup::Cgroup;
use crate::checkpoint::manifest::{Ids, Manifest};
use crate::control::donation::STARTED;
use crate::control::encoding::Message;
use crate::control::gofer::RootfsMount;
use crate::control::message::{MAX_DESCRIPTORS, MAX_PACKET, Numbered, RawSocket, Request, Upward};
use crate::control::packet::{Arrived, Received, receive_packet_or_part, send_packet};
use crate::error::{Context, Error, Result};
use crate::network;
use crate::network::raw_sockets::RawSockets;
use crate::spec::plan::{Mappings, Plan};
use crate::types::{HostPid, IdPool, OVERFLOW_ID, Userns};

pub use clean_up::{Claim, Finished, finish, leave_unfinished};
use counters::Counters;
pub use executable::Executable;
use gofer_run::Gofer;
pub use gofer_run::{GoferRun, LaunchedGofer};
pub use held_mounts::{HeldMounts, keeps_busy};
pub use pids::processes_beside;
pub use process::{Checked, Process, ReceivedFds, Unchecked};
use state::StateDirectory;
use users::Spares;
pub use users::{Ranges, give_back_ownerless};

/// The most requests that wait for room in the control channel. A correct boot takes them at
/// once; one that was taken over may take none.
const MAX_UNSENT: usize = 4096;

/// The options that a node's administrator chose: `docs/options.md`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The rule by which a sandbox gets a user namespace or not.
    pub userns: Userns,
    /// The host IDs from which each sandbox gets its own.
    pub id_pool: IdPool,
    /// The directory of the state: `/run/palisade`.
    pub state_root: PathBuf,
    /// The `palisade-sandbox` executable.
    pub palisade: PathBuf,
    /// Whether boot logs at debug level.
    pub debug: bool,
    /// Whether boot records refused system calls.
    pub user_log: bool,
}

/// The inputs of a new sandbox.
#[derive(Clone, Copy, Debug)]
pub struct NewSandbox<'a> {
    /// The ID of the sandbox and of its root container.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The address at which the shim serves.
    pub address: &'a str,
    /// The root container's plan.
    pub plan: &'a Plan,
    /// The sandbox's state, which is made first: [`StateDirectory::create`].
    pub directory: &'a StateDirectory,
    /// The root container's cgroup, which boot joins.
    pub cgroup: &'a Cgroup,
    /// The number of CPUs that the sandbox is told it has.
    pub cpus: u32,
    /// The bytes of memory that the sandbox is told it has.
    pub memory: u64,
    /// The node's configuration.
    pub config: &'a Config,
}

/// One running sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// `<namespace>/<id>`: the owner of an ID range.
    owner: String,
    directory: StateDirectory,
    counters: Counters,
    state_root: PathBuf,
    boot: HostPid,
    pidfd: OwnedFd,
    reaped: AtomicBool,
    /// Stays open until the shim ends: messages that were not received may hold
    /// descriptors, and closing those may block for ever (`control/packet.rs`).
    control: ManuallyDrop<OwnedFd>,
    mounts: OwnedFd,
    start_sync: OwnedFd,
    log: OwnedFd,
    panic_log: OwnedFd,
    user_log: Option<OwnedFd>,
    executable: Executable,
    user_namespace: Option<UserNamespace>,
    id_range: Option<PathBuf>,
    /// boot's own user on the host; `None` if it shares it with the containers' root.
    own_id: Option<u32>,
    /// Whether its processes have the host's PIDs, so that they outlive boot.
    host_pids: bool,
    /// Whether the shim is not root of the host.
    rootless: bool,
    next_number: AtomicU64,
    /// Requests that did not fit into the control channel, with their descriptors.
    unsent: Mutex<VecDeque<(Vec<u8>, Vec<OwnedFd>)>>,
    gofers_started: AtomicU64,
    /// The first gofer, which starts with boot.
    launched: Mutex<Option<LaunchedGofer>>,
    /// The gofers that are not collected yet.
    gofers: Mutex<Vec<Arc<Gofer>>>,
    /// The first gofer, whose end dissolves the executable's mount.
    first_gofer: OnceLock<Arc<Gofer>>,
    raw_sockets: Mutex<RawSockets>,
    /// boot's mounts, once it is up.
    boot_mounts: Mutex<Option<HeldMounts>>,
}

/// The result of [`Sandbox::receive`].
#[derive(Debug)]
pub enum ReceiveOutcome {
    /// A message.
    Message(Unchecked),
    /// No message is waiting.
    Nothing,
    /// boot has closed the channel: it is dying, or it was taken over and means
    /// to go on without the shim.
    Closed,
}

/// The sandbox's user namespace, as the host sees it.
#[derive(Debug)]
struct UserNamespace {
    /// Set once it is made.
    fd: OnceLock<OwnedFd>,
    mappings: Mappings,
    /// The IDs that stand for those beyond an allocated range.
    spares: Option<Mutex<Spares>>,
}

impl Sandbox {
    /// Clones boot into its namespaces and the root container's cgroup, gives
    /// it its descriptors and writes the state file. Does not wait until boot
    /// is up: [`Sandbox::gofer`] may run while boot starts.
    ///
    /// # Errors
    /// After an error, nothing is left of the sandbox but its directory.
    pub fn spawn(new: NewSandbox<'_>) -> Result<Sandbox> {
        spawn::spawn(new)
    }

    /// Returns a descriptor that is readable once boot is up or dead.
    pub fn start_sync(&self) -> BorrowedFd<'_> {
        self.start_sync.as_fd()
    }

    /// Opens the pod's user namespace, once the clone that becomes boot has made it. Only then
    /// is boot in its namespaces, and may [`Sandbox::gofer`] be called. Returns Ok at once if
    /// there is none.
    ///
    /// # Errors
    /// Fails with the reason if the clone could not make it.
    pub fn finish_namespaces(&self) -> Result<()> {
        spawn::finish_namespaces(self)
    }

    /// Returns Ok if boot is up, and otherwise the reason why it is not.
    pub fn finish_start(&self) -> Result<()> {
        self.expect_report(STARTED, || {
            format!("the sandbox process died while starting{}", self.describe_end())
        })?;
        *lock(&self.boot_mounts) = Some(HeldMounts::of_boot(self.boot));
        Ok(())
    }

    /// Returns a descriptor that is readable once no program of a container can change
    /// Palisade's executable. None may run before that. `None` if it is so already: as a rule,
    /// since a container takes longer to make.
    pub fn executable_protected(&self) -> Option<BorrowedFd<'_>> {
        let first_gofer = self.first_gofer.get()?;
        (!self.executable.is_dissolved()).then(|| first_gofer.as_fd())
    }

    /// Reads one report of start-sync, which must be `wanted`. Any other begins the sentence
    /// why boot cannot start. `died` describes an end without a report.
    fn expect_report(&self, wanted: u8, died: impl FnOnce() -> String) -> Result<()> {
        let read = |report: &mut [u8]| rustix::io::read(&self.start_sync, report);
        // One byte, since the next report may be there already.
        let mut first = [0];
        let length = read(&mut first).context(|| "read start-sync of the sandbox process")?;
        match first[..length] {
            [report] if report == wanted => Ok(()),
            [] => Err(Error::internal(died())),
            _ => {
                let mut rest = [0; 4096];
                let length = read(&mut rest).unwrap_or(0);
                let sentence = printable(&[&first, &rest[..length]].concat());
                Err(Error::internal(format!("the sandbox process could not start: {sentence}")))
            }
        }
    }

    /// Describes how boot ended, as far as that can be known: its panic
    /// message, else its last log line. Empty if there is neither.
    pub fn describe_end(&self) -> String {
        let panic = self.panic_log();
        let mut logged = vec![0; MAX_PACKET];
        let length = rustix::io::read(&self.log, &mut logged).unwrap_or(0);
        let logged = printable(&logged[..length]);
        match panic.lines().chain(logged.lines().rev()).find(|line| !line.is_empty()) {
            Some(line) => format!(": {line}"),
            None => String::new(),
        }
    }

    /// Starts a gofer that waits for its request, so that it is ready when the request is. The
    /// first one is started with boot.
    pub fn launch_gofer(&self) -> Result<LaunchedGofer> {
        LaunchedGofer::launch(&self.executable)
    }

    /// Starts the gofer for one container's root file system and mounts, or takes the one that
    /// is launched. May be called before boot is up. Only one gofer runs at a time.
    pub fn gofer(
        &self,
        plan: &Plan,
        rootfs: Vec<RootfsMount>,
        launched: Option<LaunchedGofer>,
    ) -> Result<GoferRun> {
        let first = self.gofers_started.fetch_add(1, Ordering::Relaxed) == 0;
        gofer_run::start(self, plan, rootfs, launched, first)
    }

    /// Starts a gofer that attaches a container's root file system at `root.path` of its bundle,
    /// where containerd unpacks the files of a checkpoint. The gofer that then delivers the mounts
    /// takes it away. Only one gofer runs at a time.
    pub fn attach_rootfs(&self, plan: &Plan, rootfs: Vec<RootfsMount>) -> Result<GoferRun> {
        gofer_run::attach_rootfs(self, plan, rootfs)
    }

    /// Sends a request. Returns its number. If the control channel is full, the request waits
    /// for [`Sandbox::send_rest`].
    pub fn send(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<u64> {
        gofer_run::collect(self);
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let bytes = Numbered { number, request }.encode()?;
        let mut unsent = lock(&self.unsent);
        let what = || "send a request to the sandbox process";
        if unsent.is_empty() {
            match send_packet(&*self.control, &bytes, descriptors) {
                Err(full) if full.kind() == ErrorKind::WouldBlock => {}
                other => return other.map(|()| number).context(what),
            }
        }
        if unsent.len() == MAX_UNSENT {
            return Err(Errno::AGAIN).context(what);
        }
        let kept = descriptors.iter().map(|fd| fd.try_clone_to_owned());
        unsent.push_back((bytes, kept.collect::<std::io::Result<_>>().context(|| "dup")?));
        Ok(number)
    }

    /// Whether there are requests that did not fit into the control channel.
    pub fn has_unsent(&self) -> bool {
        !lock(&self.unsent).is_empty()
    }

    /// Sends the requests that did not fit into the control channel, in their order, as far as
    /// they fit now.
    pub fn send_rest(&self) -> Result<()> {
        let mut unsent = lock(&self.unsent);
        while let Some((bytes, kept)) = unsent.front() {
            let descriptors: Vec<_> = kept.iter().map(AsFd::as_fd).collect();
            match send_packet(&*self.control, bytes, &descriptors) {
                Err(full) if full.kind() == ErrorKind::WouldBlock => return Ok(()),
                sent => sent.context(|| "send a request to the sandbox process")?,
            }
            unsent.pop_front();
        }
        Ok(())
    }

    /// Returns the control channel, which is non-blocking.
    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Receives the next message from boot.
    ///
    /// # Errors
    /// boot sent something that is no message: it was taken over. Kill it and receive no more.
    pub fn receive(&self) -> Result<ReceiveOutcome> {
        let arrived = receive_packet_or_part(&*self.control, MAX_PACKET, MAX_DESCRIPTORS)
            .map_err(|e| Error::internal(format!("it sent {e}")))?;
        let (bytes, fds, process, is_whole) = match arrived {
            Arrived::Whole(Received::WouldBlock) => return Ok(ReceiveOutcome::Nothing),
            Arrived::Whole(Received::Closed) => return Ok(ReceiveOutcome::Closed),
            Arrived::Whole(Received::Packet { bytes, fds, process }) => (bytes, fds, process, true),
            Arrived::Part { bytes, fds, process } => (bytes, fds, process, false),
        };
        let message = Upward::decode(&bytes)
            .map_err(|e| Error::internal(format!("it sent what is no message: {e}")))?;
        let process = process.map(HostPid);
        Ok(ReceiveOutcome::Message(Unchecked { message, fds, process, is_whole }))
    }

    /// Returns what is counted of its shim's work.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns boot's process ID.
    pub fn pid(&self) -> HostPid {
        self.boot
    }

    /// Lets boot clone processes into a container's cgroup, if that is possible. If not, they
    /// are moved there, which takes longer.
    pub fn allow_births(&self, cgroup: &Cgroup, of_boot: &Cgroup) -> Result<bool> {
        match (self.own_id, self.user_namespace.is_some()) {
            // boot is root on the host.
            (_, false) => cgroup.open_birthplace().map(|()| true),
            (Some(own), true) => cgroup.allow_births(of_boot, own),
            // What boot may, the containers' root may.
            (None, true) => Ok(false),
        }
    }

    /// Takes back what [`Sandbox::allow_births`] gave of the cgroup above boot's.
    pub fn forbid_births(&self, of_boot: &Cgroup) -> Result<()> {
        self.own_id.map_or(Ok(()), |own| of_boot.forbid_births(own))
    }

    /// Returns a descriptor that is readable once boot has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether boot is ending or has ended.
    pub fn is_ending(&self) -> bool {
        ending::is_ending(self.boot, self.pidfd())
    }

    /// Sends SIGKILL to boot; the kernel then kills the whole pod. Idempotent.
    pub fn kill(&self) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e).context(|| format!("kill the sandbox process {}", self.boot.0)),
        }
    }

    /// Returns a pidfd of each gofer that has not ended yet. The mounts that it made, and that
    /// are no part of a container's, end with it.
    pub fn gofers_left(&self) -> Vec<OwnedFd> {
        gofer_run::collect(self);
        let gofers = lock(&self.gofers);
        gofers.iter().filter_map(|gofer| gofer.as_fd().try_clone_to_owned().ok()).collect()
    }

    /// Collects the exit status of boot if it has exited. Idempotent.
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

    /// Returns the pipe that boot logs into, non-blocking, for a relay by
    /// lines.
    pub fn log(&self) -> BorrowedFd<'_> {
        self.log.as_fd()
    }

    /// Returns the pipe of records of refused system calls, non-blocking, if there is a user
    /// log. What comes out of it is for [`Records`](crate::control::refusal::Records).
    pub fn user_log(&self) -> Option<BorrowedFd<'_>> {
        self.user_log.as_ref().map(AsFd::as_fd)
    }

    /// Returns the message of boot's panic, at most 16 KiB.
    pub fn panic_log(&self) -> String {
        let mut text = vec![0; PANIC_LOG_SIZE as usize];
        let length = rustix::io::pread(&self.panic_log, &mut text, 0).unwrap_or(0);
        let end = text[..length].iter().position(|b| *b == 0).unwrap_or(length);
        printable(&text[..end])
    }

    /// Gives a container that joins the sandbox a user namespace of its own, if it has IDs
    /// that the pod's lacks.
    ///
    /// # Errors
    /// Fails if there are more of these in the sandbox than a map has lines.
    pub fn map_foreign_ids(&self, plan: &mut Plan) -> Result<()> {
        let Some(user) = &self.user_namespace else { return Ok(()) };
        let mut missing = plan.host.foreign_ids.clone();
        missing.retain(|id| user.mappings.uid_outside(*id).is_none());
        if let (Some(spares), false) = (&user.spares, missing.is_empty()) {
            let mut spares = lock(spares);
            plan.container.mappings = Some(spares.add(&user.mappings, &missing)?);
        }
        Ok(())
    }

    /// Returns the host IDs of a user and a group of a container; the overflow ID for one
    /// that has none.
    pub fn host_ids(&self, plan: &Plan, uid: u32, gid: u32) -> (u32, u32) {
        let Some(mappings) = self.mappings_of(plan) else { return (uid, gid) };
        let known = |id: Option<u32>| id.unwrap_or(OVERFLOW_ID);
        (known(mappings.uid_outside(uid)), known(mappings.gid_outside(gid)))
    }

    /// Returns the user of a container that a user of the host is there.
    pub fn uid_inside(&self, plan: &Plan, outside: u32) -> u32 {
        let Some(mappings) = self.mappings_of(plan) else { return outside };
        mappings.uid_inside(outside).unwrap_or(OVERFLOW_ID)
    }

    /// Checks that a container can have all IDs that a checkpoint has.
    ///
    /// # Errors
    /// `Invalid` names what it lacks.
    pub fn check_ids(&self, plan: &Plan, manifest: &Manifest) -> Result<()> {
        match self.mappings_of(plan) {
            Some(mappings) => manifest.check_ids(mappings),
            None => Err(Error::invalid(
                "checkpoint: a container is restored into a user namespace, and this sandbox has \
                 none (option userns)",
            )),
        }
    }

    /// Returns the mappings of a container's user namespace, if it is in one.
    fn mappings_of<'a>(&'a self, plan: &'a Plan) -> Option<&'a Mappings> {
        let pods = self.user_namespace.as_ref().map(|user| &user.mappings);
        plan.container.mappings.as_ref().or(pods)
    }

    /// Returns the IDs that a container has, as an image names them: none without a user namespace.
    pub fn ids_of(&self, plan: &Plan) -> Ids {
        self.mappings_of(plan).map(Ids::from).unwrap_or_default()
    }

    /// Whether the sandbox's processes have the host's PIDs. The kernel does not kill them
    /// with boot then.
    pub fn has_host_pids(&self) -> bool {
        self.host_pids
    }

    /// Whether the sandbox has a user namespace of its own.
    pub fn has_user_namespace(&self) -> bool {
        self.user_namespace.is_some()
    }

    /// Opens the seccomp program that the gofer compiled for this plan, to be
    /// donated with Create and Exec, and returns the flags to load it with;
    /// `None` if the plan has no profile. The gofer must have finished.
    pub fn seccomp(&self, plan: &Plan) -> Result<Option<(OwnedFd, u32)>> {
        gofer_run::open_seccomp(&self.state_root, plan)
    }

    /// Opens a raw socket in the pod's network, for the root of its containers.
    ///
    /// # Errors
    /// `PERM` if the network is the host's; `NOBUFS` if there are too many.
    pub fn open_raw_socket(&self, socket: RawSocket) -> std::result::Result<OwnedFd, Errno> {
        let root = self.user_namespace.as_ref().and_then(|users| users.mappings.root_outside());
        let opened = lock(&self.raw_sockets).open(self.pidfd(), root.unwrap_or_default(), socket);
        opened.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::PERM))
    }

    /// Returns its state on disk, in which all is on record that `delete` takes away.
    pub fn directory(&self) -> &StateDirectory {
        &self.directory
    }

    /// Kills the processes that are left, waits until the kernel has removed
    /// them, gives the ID range back and removes the state. Idempotent.
    pub fn tear_down(&self) -> Result<()> {
        self.end()?;
        if let Some(link) = &self.id_range {
            users::release(link, &self.owner)?;
        }
        self.directory.remove()
    }

    /// Does as [`Sandbox::tear_down`] where something could not be removed: the state stays, and
    /// a note for [`finish`].
    pub fn leave_unfinished(&self) -> Result<()> {
        leave_unfinished(&self.directory)?;
        self.end()
    }

    fn end(&self) -> Result<()> {
        self.kill()?;
        gofer_run::end(self);
        self.collect(WaitIdOptions::empty())?;
        drop(lock(&self.boot_mounts).take());
        Ok(())
    }
}

impl Sandbox {
    /// Moves the host's network devices that a plan names into the sandbox's network. The
    /// caller is in the host's.
    pub fn move_net_devices(&self, plan: &Plan) -> Result<()> {
        let devices = &plan.host.net_devices;
        if devices.is_empty() {
            return Ok(());
        }
        network::devices::move_all(devices, open_namespace(self.boot, "net")?.as_fd())
    }
}

/// The size of the panic log. The memfd is sealed at this size, since boot may
/// be hostile.
const PANIC_LOG_SIZE: u64 = 16 * 1024;

/// Cuts a text from an untrusted process and removes its control characters.
pub fn printable(text: &[u8]) -> String {
    let keep = |c: &char| *c == '\n' || !c.is_control();
    String::from_utf8_lossy(&text[..text.len().min(4096)]).chars().filter(keep).collect()
}

/// Locks a mutex that is never contended, since there is one thread.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a namespace file of a process: `/proc/<pid>/ns/<name>`.
fn open_namespace(pid: HostPid, name: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{}/ns/{name}", pid.0);
    std::fs::File::open(&path).map(Into::into).context(|| path)
}
