//! boot: the sandbox process. It is PID 1 of the pod, blocking and single-threaded, and
//! holds only the descriptors that it was donated.
//!
//! There is one file for each request, named as in the shim: `create.rs`, `start.rs`,
//! `exec.rs`, `update.rs`, `delete.rs`. The parts of a container are in `container/`.

mod create;
mod delete;
mod descriptors;
mod events;
mod exec;
mod heap_profile;
mod listener;
mod logger;
mod mounts_channel;
mod pending;
mod privileges;
mod raw_sockets;
mod reap;
mod refusals;
mod restore;
mod root;
mod set_log_level;
mod start;
mod supervise;
mod table;
mod thread_status;
mod update;
mod user_log;
mod view_calls;
mod view_writer;
mod views;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use descriptors::Descriptors;
use mounts_channel::MountsChannel;
use privileges::Stage;
use table::Table;
use user_log::UserLog;

use crate::container::outside_ids::OutsideIds;
use crate::container::own_id::OwnId;
use crate::control::donation::{Birth, BootFlags, STARTED};
use crate::control::encoding::Message;
use crate::control::message::{Done, Upward};
use crate::control::packet::send_packet_for;
use crate::error::{Context, Error, Failure, Result};
use crate::sys::clone::SingleThreaded;
use crate::sys::confine::refuse_new_code;
use crate::sys::namespace;
use crate::sys::network::{bring_loopback_up, write_sysctl};
use crate::sys::process::{Rlimit, die_with_parent, own_rlimits, set_child_subreaper};
use crate::types::PodPid;

/// The sandbox process once it is up.
pub(crate) struct Boot {
    control: OwnedFd,
    log: Arc<OwnedFd>,
    mounts: MountsChannel,
    containers: Table,
    /// The containers that criu restores at the moment.
    restores: restore::Restores,
    /// The containers about whose system calls boot is asked.
    supervised: supervise::Supervised,
    events: events::Events,
    own_pid_namespace: OwnedFd,
    /// The user namespace of the pod's containers, if the sandbox has one.
    users: Option<OwnedFd>,
    own_id: OwnId,
    /// The containers' IDs outside, likewise.
    ids: Option<OutsideIds>,
    alone: SingleThreaded,
    /// The resource limits of processes whose specs name none: containerd's.
    limits: Vec<Rlimit>,
    /// Whether boot has the host's PIDs.
    host_pids: bool,
    user_log: UserLog,
    views: views::Views,
}

/// Runs `palisade-sandbox boot` until its control channel closes or it is killed.
pub fn run(flags: &BootFlags) -> ExitCode {
    refuse_new_code();
    let (descriptors, start_sync) = match Descriptors::adopt(flags) {
        Ok(adopted) => adopted,
        Err(error) => {
            eprintln!("palisade-sandbox boot: {error}");
            return ExitCode::FAILURE;
        }
    };
    match start(flags, descriptors) {
        Ok(boot) => {
            // Fails only if the shim is gone.
            let _ = rustix::io::write(&start_sync, &[STARTED]);
            drop(start_sync);
            boot.serve()
        }
        Err(error) => {
            let _ = rustix::io::write(&start_sync, error.to_string().as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Turns this process, which was just executed, into boot.
fn start(flags: &BootFlags, descriptors: Descriptors) -> Result<Boot> {
    let log = logger::start(&descriptors, flags.debug)?;
    let birth = Birth::decode(&descriptors.read_certificate()?)?;
    let alone = SingleThreaded::prove().context(|| "start as the sandbox process")?;
    if flags.apply_caps {
        privileges::keep_for(Stage::Start)?;
    }
    set_up_network(&birth)?;
    let own_pid_namespace = open_own_pid_namespace(&birth)?;
    let users = birth.mappings.as_ref().map(|_| open_pod_user_namespace()).transpose()?;
    root::enter_empty(&alone)?;
    let own_id = OwnId::of(&birth);
    if flags.apply_caps {
        privileges::keep_for(Stage::Serve)?;
    }
    own_id.close_proc_files()?;
    die_with_parent().context(|| "prctl PR_SET_PDEATHSIG")?;
    let limits = containers_limits(&birth)?;
    log::debug!("up with {} CPUs and {} bytes of memory", flags.cpu_num, flags.total_memory);
    let boot = Boot {
        events: events::Events::new(&descriptors.control)?,
        control: descriptors.control,
        log,
        mounts: MountsChannel::new(descriptors.mounts)?,
        containers: Table::default(),
        restores: restore::Restores::default(),
        supervised: supervise::Supervised::default(),
        own_pid_namespace,
        users,
        own_id,
        views: views::Views::mount(descriptors.device, &birth, own_id),
        ids: birth.mappings.map(OutsideIds),
        alone,
        limits,
        host_pids: birth.host_pids,
        user_log: UserLog::new(descriptors.user_log)?,
    };
    boot.watch_views()?;
    Ok(boot)
}

/// Returns the limits that processes of containers get where their specs name none. boot has
/// them itself, but for the soft limit of open files, which the shim has raised to the hard one:
/// boot holds some for each process that it is asked about.
fn containers_limits(birth: &Birth) -> Result<Vec<Rlimit>> {
    let mut limits = own_rlimits().context(|| "prlimit")?;
    if let Some(files) = limits.iter_mut().find(|limit| limit.name() == "RLIMIT_NOFILE") {
        files.soft = birth.open_files.min(files.hard);
    }
    Ok(limits)
}

/// Sets up a new network namespace as a user expects it.
fn set_up_network(birth: &Birth) -> Result<()> {
    if !birth.new_network {
        return Ok(());
    }
    bring_loopback_up().context(|| "bring the loopback interface up")?;
    for (path, value) in &birth.network_sysctls {
        write_sysctl(path, value)
            .context(|| format!("linux.sysctl: write {value:?} to /proc/sys/{path}"))?;
    }
    Ok(())
}

/// Opens the namespace to which boot returns from a container's, and sees to it that boot
/// is the parent of all orphans there. The host's /proc must still be visible.
fn open_own_pid_namespace(birth: &Birth) -> Result<OwnedFd> {
    let pid = rustix::process::getpid();
    if birth.host_pids {
        set_child_subreaper(true).context(|| "prctl PR_SET_CHILD_SUBREAPER")?;
    } else if !pid.is_init() {
        return Err(Error::internal(format!(
            "boot is process {pid:?}, not PID 1 of a new PID namespace"
        )));
    }
    let path = "/proc/self/ns/pid";
    std::fs::File::open(path).map(OwnedFd::from).context(|| format!("open {path}"))
}

/// Opens the user namespace of the pod's containers, which owns the UTS namespace that
/// boot is in.
fn open_pod_user_namespace() -> Result<OwnedFd> {
    let path = "/proc/self/ns/uts";
    let uts = std::fs::File::open(path).context(|| format!("open {path}"))?;
    namespace::owner(uts).context(|| "open the pod's user namespace")
}

impl Boot {
    /// Sends a message to the shim. The event loop notices if the shim is gone.
    fn send(&self, message: &Upward) {
        self.send_for(None, message, &[]);
    }

    /// Sends a message to the shim in the name of a process, which exists at least until it
    /// is reaped.
    fn send_for(&self, process: Option<PodPid>, message: &Upward, descriptors: &[BorrowedFd<'_>]) {
        let process = process.map(|pid| pid.0);
        let sent = message.encode().and_then(|bytes| {
            send_packet_for(process, &self.control, &bytes, descriptors).context(|| "sendmsg")
        });
        if let Err(error) = sent {
            log::error!("cannot send to the shim: {error}");
        }
    }

    fn reply(&self, number: u64, outcome: Result<Done>) {
        let outcome = outcome.map_err(Failure::from);
        self.send(&Upward::Reply { number, outcome });
    }
}
