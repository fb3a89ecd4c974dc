//! Runs the gofer, as the shim.

use std::ffi::CString;
use std::iter;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use oci_spec::runtime::LinuxSeccomp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::executable::Executable;
use super::{Sandbox, lock, open_namespace};
use crate::control::encoding::Message;
use crate::control::gofer::{
    GoferAnswer, GoferRequest, HookJob, HookMount, RequestedMount, RootfsMount, RootfsSource,
    SeccompJob,
};
use crate::control::message::MAX_PACKET;
use crate::control::packet::{Received, pair, receive_packet, send_packet};
use crate::error::{Context, Error, FailureKind, Result};
use crate::spec::baseline::Confined;
use crate::spec::plan::{MountSource, Plan, Powerless};
use crate::spec::seccomp;
use crate::sys::child::KillOnDrop;
use crate::sys::mount::PropagationKind;
use crate::sys::open_files;
use crate::sys::spawn::spawn;

/// The time that a gofer has to end, once boot is gone.
const GOFER_EXIT_TIMEOUT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The time that is left to a gofer that was killed. It may hang in a file system.
const KILLED_GOFER_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A gofer that has its request.
#[derive(Debug)]
pub(super) struct Gofer {
    pidfd: OwnedFd,
    answered: AtomicBool,
}

impl Gofer {
    fn has_ended(&self, timeout: Timespec) -> bool {
        let mut exit = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut exit, Some(&timeout)).is_ok_and(|ready| ready > 0)
    }

    /// Whether a system call has ended it that is not among those of `gofer/confine.rs`.
    fn was_stopped_by_its_filter(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended = self.has_ended(GOFER_EXIT_TIMEOUT);
        let status = ended.then(|| waitid(WaitId::PidFd(self.as_fd()), options));
        let Some(Ok(Some(status))) = status else { return false };
        status.terminating_signal() == Some(libc::SIGSYS)
    }

    fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

impl AsFd for Gofer {
    /// Returns its pidfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A running gofer. Dropping this value kills it, unless it has replied: mounts
/// that it delivered late could be taken for those of another container of the
/// same name.
#[derive(Debug)]
pub struct GoferRun {
    socket: OwnedFd,
    gofer: Arc<Gofer>,
}

impl Drop for GoferRun {
    fn drop(&mut self) {
        if !self.gofer.answered.load(Ordering::Relaxed) {
            self.gofer.kill();
            // It may be just sending a mount.
            self.gofer.has_ended(KILLED_GOFER_TIMEOUT);
        }
    }
}

impl AsFd for GoferRun {
    /// Returns a descriptor that is readable once the gofer has replied or died.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl GoferRun {
    /// Reads the gofer's reply, and returns what it found to be without effect. The gofer then
    /// ends by itself and is collected later, since the kernel takes long to remove its mounts.
    pub fn finish(self) -> Result<Vec<Powerless>> {
        self.gofer.answered.store(true, Ordering::Relaxed);
        let received = receive_packet(&self.socket, MAX_PACKET, 0);
        let bytes = match received.context(|| "receive the gofer's answer")? {
            Received::Packet { bytes, .. } => bytes,
            _ => {
                let why = if self.gofer.was_stopped_by_its_filter() {
                    ": it made a system call that its filter does not allow, which is a fault of \
                     Palisade's (the kernel's log has its number)"
                } else {
                    ""
                };
                return Err(Error::internal(format!("the gofer died before it answered{why}")));
            }
        };
        GoferAnswer::decode(&bytes)?.map_err(|e| {
            let kind = match e.kind {
                kind @ (FailureKind::Invalid | FailureKind::NoDescriptors) => kind,
                _ => FailureKind::Internal,
            };
            Error::new(kind, e.message)
        })
    }
}

/// Collects the gofers that have ended.
pub(super) fn collect(sandbox: &Sandbox) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let mut gofers = lock(&sandbox.gofers);
    gofers.retain(|gofer| matches!(waitid(WaitId::PidFd(gofer.as_fd()), options), Ok(None)));
}

/// Ends the gofers that are left, when boot is gone. One that has replied does nothing any
/// more but end, for which the kernel may need a while. Any other ends by itself,
/// unless a process of the pod keeps the other end of its mounts channel open.
pub(super) fn end(sandbox: &Sandbox) {
    drop(lock(&sandbox.launched).take());
    let left = lock(&sandbox.gofers).clone();
    for gofer in left.iter().filter(|gofer| !gofer.answered.load(Ordering::Relaxed)) {
        if !gofer.has_ended(GOFER_EXIT_TIMEOUT) {
            gofer.kill();
            gofer.has_ended(GOFER_EXIT_TIMEOUT);
        }
    }
    collect(sandbox);
}

/// See [`Sandbox::gofer`].
pub(super) fn start(
    sandbox: &Sandbox,
    plan: &Plan,
    rootfs: Vec<RootfsMount>,
    launched: Option<LaunchedGofer>,
    first: bool,
) -> Result<GoferRun> {
    run(sandbox, launched, &request(sandbox, plan, rootfs, first)?)
}

/// See [`Sandbox::attach_rootfs`].
pub(super) fn attach_rootfs(
    sandbox: &Sandbox,
    plan: &Plan,
    rootfs: Vec<RootfsMount>,
) -> Result<GoferRun> {
    let request = GoferRequest {
        user_namespace: None,
        own_user_namespace: false,
        mounts: Vec::new(),
        devices: Vec::new(),
        seccomp: None,
        hooks: None,
        checkpoint: None,
        attach_at: Some(plan.host.rootfs.clone()),
        attached_at: None,
        ..request(sandbox, plan, rootfs, false)?
    };
    run(sandbox, None, &request)
}

fn run(
    sandbox: &Sandbox,
    launched: Option<LaunchedGofer>,
    request: &GoferRequest,
) -> Result<GoferRun> {
    // The first gofer first: its end lets go of the executable's mount.
    let first = lock(&sandbox.launched).take();
    let launched = match first.or(launched) {
        Some(launched) => launched,
        None => LaunchedGofer::launch(&sandbox.executable)?,
    };
    send_request(sandbox, &launched.socket, request)?;
    let LaunchedGofer { socket, process } = launched;
    let gofer = Arc::new(Gofer { pidfd: process.keep(), answered: AtomicBool::new(false) });
    let _ = sandbox.first_gofer.set(gofer.clone());
    lock(&sandbox.gofers).push(gofer.clone());
    Ok(GoferRun { socket, gofer })
}

/// A gofer that waits for its request. Dropping this value kills it.
#[derive(Debug)]
pub struct LaunchedGofer {
    socket: OwnedFd,
    process: KillOnDrop,
}

impl LaunchedGofer {
    /// Starts a gofer. The first one starts while boot does, and leaves the last the mount of the
    /// executable.
    pub(super) fn launch(executable: &Executable) -> Result<Self> {
        let (socket, theirs) = pair().context(|| "socketpair for the gofer")?;
        let flag = CString::new(format!("--request-fd={}", theirs.as_raw_fd()))
            .map_err(|e| Error::internal(format!("the gofer's argument: {e}")))?;
        let args = [c"palisade-sandbox", c"gofer", &flag];
        let mount = executable.leave_mount();
        let donated = iter::once(&theirs).chain(&mount).map(AsFd::as_fd).collect::<Vec<_>>();
        let pidfd = spawn(executable.file(), &args, &donated).context(|| "start the gofer")?;
        Ok(Self { socket, process: KillOnDrop::new(pidfd) })
    }
}

fn request(
    sandbox: &Sandbox,
    plan: &Plan,
    rootfs: Vec<RootfsMount>,
    first: bool,
) -> Result<GoferRequest> {
    let runs = plan.container.process.is_some();
    let attached = plan.host.checkpoint.is_some() && !rootfs.is_empty();
    let rootfs = match rootfs.is_empty() {
        _ if !runs => RootfsSource::None,
        true => RootfsSource::Directory(plan.host.rootfs.clone()),
        false => RootfsSource::Mounts(rootfs),
    };
    Ok(GoferRequest {
        container: plan.container.id.clone(),
        user_namespace: sandbox.mappings_of(plan).cloned(),
        own_user_namespace: plan.container.mappings.is_some(),
        sandbox_proc: first,
        default_devices: first,
        rootless: sandbox.rootless,
        rootfs,
        attach_at: None,
        attached_at: attached.then(|| plan.host.rootfs.clone()),
        mounts: if runs { requested_mounts(plan) } else { Vec::new() },
        devices: if runs { plan.host.devices.clone() } else { Vec::new() },
        seccomp: if runs { seccomp_job(&sandbox.state_root, plan)? } else { None },
        hooks: if runs { hook_job(sandbox, plan)? } else { None },
        checkpoint: plan.host.checkpoint.clone(),
    })
}

/// Lists the mounts that the gofer opens, with the propagation that the plan asks for, by
/// the mount or by its root. As under runc, mounts made inside appear on the host only if the
/// root is shared as well.
fn requested_mounts(plan: &Plan) -> Vec<RequestedMount> {
    let root = plan.container.root_propagation.map(|root| root.kind);
    let leaving = |kind| match kind {
        PropagationKind::Shared if root != Some(PropagationKind::Shared) => PropagationKind::Slave,
        kind => kind,
    };
    let requested = plan.host.delivered.iter().map(|(index, source)| RequestedMount {
        index: *index,
        source: source.clone(),
        propagation: plan.container.mounts[*index]
            .propagation
            .map(|p| p.kind)
            .or(root)
            .map(leaving),
    });
    requested.collect()
}

/// Returns the createContainer hooks to run, with the mounts that they see.
fn hook_job(sandbox: &Sandbox, plan: &Plan) -> Result<Option<HookJob>> {
    let hooks = plan.host.hooks.create_container.clone();
    if hooks.is_empty() {
        return Ok(None);
    }
    // The container has no process yet. boot is in the namespaces of the pod.
    let state = serde_json::json!({
        "ociVersion": "1.2.0",
        "id": plan.container.id,
        "status": "creating",
        "pid": sandbox.boot.0,
        "bundle": plan.host.bundle,
        "annotations": plan.host.annotations,
    });
    let delivered = |index| plan.host.delivered.iter().any(|(delivered, _)| *delivered == index);
    let all = plan.container.mounts.iter().enumerate();
    let seen = all.filter(|(index, m)| delivered(*index) || m.source == MountSource::Proc);
    let mounts = seen.map(|(index, mount)| HookMount {
        index,
        destination: mount.destination.clone(),
        attributes: mount.attributes,
    });
    Ok(Some(HookJob {
        hooks,
        state: state.to_string(),
        root: plan.host.rootfs.clone(),
        mounts: mounts.collect(),
        devices: plan.container.devices.clone(),
        open_files: open_files::inherited().context(|| "prlimit RLIMIT_NOFILE")?.soft,
    }))
}

/// Returns the seccomp program to compile, unless an earlier container had the
/// same profile.
fn seccomp_job(state_root: &Path, plan: &Plan) -> Result<Option<SeccompJob>> {
    let Some(profile) = &plan.host.seccomp else {
        return Ok(None);
    };
    let baseline = plan.host.confined;
    let output = seccomp_file(state_root, profile, baseline.as_ref())?;
    Ok((!output.exists()).then(|| SeccompJob { profile: profile.clone(), baseline, output }))
}

fn seccomp_file(
    state_root: &Path,
    profile: &LinuxSeccomp,
    baseline: Option<&Confined>,
) -> Result<PathBuf> {
    Ok(state_root.join("seccomp").join(seccomp::key(profile, baseline)?))
}

/// See [`Sandbox::seccomp`].
pub(super) fn open_seccomp(state_root: &Path, plan: &Plan) -> Result<Option<(OwnedFd, u32)>> {
    // A pause container runs nothing that could be filtered, and the gofer
    // compiles nothing for it.
    let runs = plan.container.process.is_some();
    let Some(profile) = plan.host.seccomp.as_ref().filter(|_| runs) else {
        return Ok(None);
    };
    let path = seccomp_file(state_root, profile, plan.host.confined.as_ref())?;
    let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("open {}", path.display()))?;
    Ok(Some((file, seccomp::flags(profile))))
}

/// Sends the request with its descriptors, in the order that [`GoferRequest`]
/// documents.
fn send_request(sandbox: &Sandbox, socket: &OwnedFd, request: &GoferRequest) -> Result<()> {
    let network =
        request.wants_network().then(|| open_namespace(sandbox.boot, "net")).transpose()?;
    let pids = request.sandbox_proc.then(|| open_namespace(sandbox.boot, "pid")).transpose()?;
    let mut descriptors = vec![sandbox.mounts.as_fd()];
    let is_in_pods = request.user_namespace.is_some() && !request.own_user_namespace;
    let pods = sandbox.user_namespace.as_ref().filter(|_| is_in_pods);
    let unmade = || Error::internal("the pod's user namespace is not made yet");
    let pods = pods.map(|user| user.fd.get().ok_or_else(unmade)).transpose()?;
    descriptors.extend(pods.map(AsFd::as_fd));
    descriptors.extend(network.as_ref().map(AsFd::as_fd));
    descriptors.extend(pids.as_ref().map(AsFd::as_fd));
    send_packet(socket, &request.encode()?, &descriptors).context(|| "send the gofer its request")
}
