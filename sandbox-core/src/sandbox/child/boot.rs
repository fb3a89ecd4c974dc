//! The clone of the shim that becomes boot.

use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::{clocks, inherited, pod_namespaces};
use crate::control::donation::{BootFlags, PREPARED};
use crate::error::{Context, Error, Result};
use crate::network;
use crate::sandbox::NewSandbox;
use crate::sandbox::executable::Executable;
use crate::spec::plan::Mappings;
use crate::sys::descriptor::{cloexec_from, detach_stdio, donate};
use crate::sys::process::{
    become_user, die_with_parent, execute_descriptor, exit_now, keep_capabilities_over_execve,
    separate_ids_from_capabilities,
};

/// The inputs of the clone that becomes boot.
#[derive(Clone, Copy)]
pub(in crate::sandbox) struct ChildArgs<'a> {
    pub(in crate::sandbox) new: &'a NewSandbox<'a>,
    pub(in crate::sandbox) executable: &'a Executable,
    pub(in crate::sandbox) certificate: &'a OwnedFd,
    /// The open `tasks` files of the root container's cgroup on version 1, to
    /// write "0" to.
    pub(in crate::sandbox) cgroup_procs: &'a [OwnedFd],
    /// `/dev/fuse`, if the shim has opened it. A clone in a user namespace opens it itself: the
    /// kernel takes it there only from one who did.
    pub(in crate::sandbox) device: Option<&'a OwnedFd>,
    /// The time since the host's start, in seconds.
    pub(in crate::sandbox) now: i64,
}

/// boot's ends of the channels. The shim holds them until the clone.
pub(in crate::sandbox) struct BootEnds {
    pub(in crate::sandbox) control: OwnedFd,
    pub(in crate::sandbox) mounts: OwnedFd,
    pub(in crate::sandbox) start_sync: OwnedFd,
    pub(in crate::sandbox) log: OwnedFd,
    pub(in crate::sandbox) panic_log: OwnedFd,
    pub(in crate::sandbox) go: OwnedFd,
    pub(in crate::sandbox) user_log: Option<OwnedFd>,
}

/// Runs the clone from its first step to execve. It reports an error on
/// start-sync, where the shim waits.
pub(in crate::sandbox) fn become_boot(
    args: ChildArgs<'_>,
    ends: &BootEnds,
    go_of_shim: Option<OwnedFd>,
    users: Option<&Mappings>,
    own: Option<u32>,
) -> ! {
    let error = match prepare(args, ends, go_of_shim, users, own) {
        Ok(command_line) => execute(args.executable, &command_line),
        Err(error) => error,
    };
    let _ = rustix::io::write(&ends.start_sync, error.to_string().as_bytes());
    exit_now(1)
}

/// Executes `palisade` with an empty environment. Returns only if that failed, with the error.
fn execute(palisade: &Executable, args: &[CString]) -> Error {
    match execute_descriptor(palisade.file(), args, &[]) {
        Err(e) => Error::internal(format!("execveat palisade: {e}")),
        Ok(never) => match never {},
    }
}

fn prepare(
    args: ChildArgs<'_>,
    ends: &BootEnds,
    go_of_shim: Option<OwnedFd>,
    users: Option<&Mappings>,
    own: Option<u32>,
) -> Result<Vec<CString>> {
    // The shim may die before it has written the maps, or have died before this child asks for
    // the signal: then there is nobody left who could let it go on.
    die_with_parent().context(|| "prctl PR_SET_PDEATHSIG")?;
    drop(go_of_shim);
    // The gofer's must be the last one, and it may end before boot's execve.
    args.executable.leave_mount();
    // boot inherits no descriptor of the shim, whatever flags it was opened with.
    cloexec_from(3).context(|| "close_range")?;
    inherited::reset()?;
    // Before it joins a cgroup, whose devices are a container's. The owner of the node may be
    // the host's root, who this process still is for files.
    let own_device = ManuallyDrop::new(match args.device {
        None if args.new.plan.host.views => open_fuse().ok(),
        _ => None,
    });
    // Wait until the maps are written: before that no ID is valid.
    if rustix::io::read(&ends.go, &mut [0]).unwrap_or(0) == 0 {
        exit_now(1);
    }
    for procs in args.cgroup_procs {
        rustix::io::write(procs, b"0").context(|| "join the root container's cgroup")?;
    }
    if let Some(users) = users {
        let new_network = network::is_new(&args.new.plan.host.network);
        enter_pod(users, own, new_network, &ends.start_sync)?;
    }
    if clocks::are_the_pods(&args.new.plan.host) && args.new.plan.host.views {
        clocks::begin_at(args.now);
    }
    rustix::process::setsid().context(|| "setsid")?;
    detach_stdio().context(|| "put /dev/null into the place of stdio")?;
    let flags = donate_all(args, ends, own_device.as_ref().or(args.device))?;
    let to_c = |arg| CString::new(arg).map_err(|e| Error::internal(format!("argument: {e}")));
    flags.to_args().into_iter().map(to_c).collect()
}

/// Opens the device by which boot serves views: fuse(4).
pub(in crate::sandbox) fn open_fuse() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/dev/fuse", flags, Mode::empty())
}

/// Becomes boot's user in boot's user namespace, and enters the pod's other namespaces.
/// Reports that on start-sync.
fn enter_pod(
    users: &Mappings,
    own: Option<u32>,
    new_network: bool,
    start_sync: &OwnedFd,
) -> Result<()> {
    let root = || Error::internal("the mappings have no root");
    let (root_uid, root_gid) = users.root_outside().ok_or_else(root)?;
    let (uid, gid) = own.map_or((root_uid, root_gid), |id| (id, id));
    // Where the shim is not root of the host, its own ID is 0 here as well, and to leave it
    // would take the capabilities.
    separate_ids_from_capabilities().context(|| "prctl PR_SET_SECUREBITS")?;
    become_user(uid, gid).context(|| format!("become user {uid} of the user namespace"))?;
    let maker = pod_namespaces::enter_new(users, new_network)?;
    rustix::io::write(start_sync, &[PREPARED])
        .context(|| "report that the sandbox process is in its namespaces")?;
    // The shim goes on while this child ends.
    drop(maker);
    // execve takes the capabilities of any user but 0, except for ambient ones.
    keep_capabilities_over_execve().context(|| "raise ambient capabilities")
}

/// Makes the descriptors that are donated to boot survive execve. Returns the
/// flags that announce them.
fn donate_all(args: ChildArgs<'_>, ends: &BootEnds, device: Option<&OwnedFd>) -> Result<BootFlags> {
    let give = |fd: &OwnedFd| donate(fd).context(|| "donate a descriptor");
    let new = args.new;
    let log_fd = give(&ends.log)?;
    Ok(BootFlags {
        log_fd,
        debug: new.config.debug,
        panic_log_fd: give(&ends.panic_log)?,
        controller_fd: give(&ends.control)?,
        mounts_fd: give(&ends.mounts)?,
        birth_fd: give(args.certificate)?,
        start_sync_fd: give(&ends.start_sync)?,
        user_log_fd: ends.user_log.as_ref().map(give).transpose()?,
        device_fd: device.map(give).transpose()?,
        apply_caps: new.plan.container.user_namespace,
        cpu_num: new.cpus,
        total_memory: new.memory,
        id: new.id.to_owned(),
    })
}
