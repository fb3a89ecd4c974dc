//! Makes boot, as the shim: from the plan of the root container to a process in
//! its own namespaces. `child/boot.rs` holds the code that the clone runs.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock};

use nix::sched::CloneFlags;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::{ClockId, clock_gettime};

use super::child::boot::{BootEnds, ChildArgs, become_boot, open_fuse};
use super::executable::Executable;
use super::gofer_run::LaunchedGofer;
use super::state::{Identity, State};
use super::time_visit::TimeVisit;
use super::users::{self, IdRange, Spares};
use super::{NewSandbox, PANIC_LOG_SIZE, Sandbox, UserNamespace, open_namespace};
use crate::control::donation::{Birth, PREPARED};
use crate::control::packet::{self, ask_for_processes, sealed_memfd};
use crate::error::{Context, Result};
use crate::network;
use crate::spec::plan::{Mappings, Network};
use crate::sys::child::KillOnDrop;
use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
use crate::sys::namespace;
use crate::sys::open_files;
use crate::sys::process::EffectiveUser;
use crate::types::HostPid;

/// See [`Sandbox::spawn`].
pub(super) fn spawn(new: NewSandbox<'_>) -> Result<Sandbox> {
    let executable = Executable::open(&new.config.palisade)?;
    let claim = Claim::make(&new)?;
    let counters = new.directory.make_counters()?;
    let channels = Channels::make(new.config.user_log)?;
    let birth = birth(&new, &claim)?;
    let certificate =
        sealed_memfd(&birth.encode()?).context(|| "memfd for the birth certificate")?;
    let cgroup = JoinCgroup::prepare(&new)?;
    let opens_device = new.plan.host.views && !new.plan.container.user_namespace;
    let device = opens_device.then(open_fuse).and_then(std::result::Result::ok);
    let args = ChildArgs {
        new: &new,
        executable: &executable,
        certificate: &certificate,
        cgroup_procs: &cgroup.procs,
        device: device.as_ref(),
        now: clock_gettime(ClockId::Boottime).tv_sec,
    };
    let directory = cgroup.directory.as_ref().map(AsFd::as_fd);
    let (boot, pidfd) = clone_boot(args, directory, &channels, &claim)?;
    let boot_process = KillOnDrop::new(pidfd);
    let_go_on(&new, boot, &claim, &channels)?;
    // Nothing here waits for the clone, which may be frozen with its cgroup.
    let gofer = LaunchedGofer::launch(&executable)?;
    let original = set_oom_score_adj(boot, new.plan.host.oom_score_adj)?;
    let range = claim.range_link();
    let identity = Identity::of(boot, &boot_process)?;
    let (id_range, own_id) = (range.clone(), claim.own());
    let shim = Some(Identity::of_this_process()?);
    let address = new.address.to_owned();
    let state = State { id_range, own_id, shim, address, ..State::new(new.id, identity, original) };
    new.directory.write(&state)?;
    let user_namespace = user_namespace(&claim);
    Ok(Sandbox {
        owner: claim.keep(),
        directory: new.directory.clone(),
        counters,
        state_root: new.config.state_root.clone(),
        boot,
        pidfd: boot_process.keep(),
        reaped: false.into(),
        control: ManuallyDrop::new(channels.shim.control),
        mounts: channels.shim.mounts,
        start_sync: channels.shim.start_sync,
        log: channels.shim.log,
        panic_log: channels.boot.panic_log,
        user_log: channels.shim.user_log,
        executable,
        user_namespace,
        id_range: range,
        own_id,
        host_pids: new.plan.host.host_namespaces.pid,
        rootless: new.config.id_pool.rootless.is_some(),
        next_number: 1.into(),
        unsent: Mutex::default(),
        gofers_started: 0.into(),
        launched: Some(gofer).into(),
        gofers: Mutex::default(),
        first_gofer: OnceLock::new(),
        raw_sockets: Mutex::default(),
        boot_mounts: Mutex::default(),
    })
}

/// A new sandbox's ID range. Dropping it gives that back, unless it is kept.
struct Claim {
    range: Option<IdRange>,
    /// The IDs of a sandbox with a user namespace.
    ids: Option<Ids>,
    owner: String,
    kept: bool,
}

/// The IDs of a sandbox, and what they are where.
struct Ids {
    /// The mappings of the pod's user namespace.
    mappings: Mappings,
    /// The spare IDs, if the mappings are of an allocated range.
    spares: Option<Spares>,
    /// The mappings of boot's user namespace: all IDs that the sandbox may have.
    all: Mappings,
    /// boot's own ID.
    own: Option<u32>,
}

impl Claim {
    fn make(new: &NewSandbox<'_>) -> Result<Self> {
        let owner = format!("{}/{}", new.namespace, new.id);
        let mut claim = Self { range: None, ids: None, owner, kept: false };
        if new.plan.container.user_namespace {
            claim.take_ids(new)?;
        }
        Ok(claim)
    }

    fn take_ids(&mut self, new: &NewSandbox<'_>) -> Result<()> {
        let (host, pool) = (&new.plan.host, new.config.id_pool);
        if let (Some(rootless), Some(given)) = (pool.rootless, &host.mappings) {
            let own = users::rootless_boot_id(rootless, given, &self.owner);
            let all = given.one_to_one(own).cut_at(rootless.lines);
            self.ids = Some(Ids { mappings: given.clone(), spares: None, all, own });
            return Ok(());
        }
        let range = IdRange::allocate(&new.config.state_root, pool, &self.owner)?;
        let range = self.range.insert(range);
        let (mappings, spares, all) = match &host.mappings {
            Some(given) => (given.clone(), None, given.clone()),
            None => {
                let mut spares = range.spares();
                let mappings = spares.add(&range.mappings(), &host.foreign_ids)?;
                (mappings, Some(spares), range.all())
            }
        };
        let own = range.boot_id(&all);
        self.ids = Some(Ids { mappings, spares, all: all.one_to_one(own), own });
        Ok(())
    }

    /// Returns the mappings of the pod's user namespace, if it has one.
    fn mappings(&self) -> Option<&Mappings> {
        self.ids.as_ref().map(|ids| &ids.mappings)
    }

    /// Returns boot's own ID, if it has one.
    fn own(&self) -> Option<u32> {
        self.ids.as_ref()?.own
    }

    /// Returns the ID that makes the user namespaces, if there are any.
    fn maker(&self) -> Option<u32> {
        self.range.as_ref().map(IdRange::maker).or(self.own())
    }

    fn range_link(&self) -> Option<std::path::PathBuf> {
        self.range.as_ref().map(|range| range.link().to_owned())
    }

    /// Keeps it, and returns its owner.
    fn keep(mut self) -> String {
        self.kept = true;
        std::mem::take(&mut self.owner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Some(range) = &self.range {
            let _ = users::release(range.link(), &self.owner);
        }
    }
}

/// The two ends of each channel.
struct Channels {
    shim: ShimEnds,
    boot: BootEnds,
}

struct ShimEnds {
    control: OwnedFd,
    mounts: OwnedFd,
    start_sync: OwnedFd,
    log: OwnedFd,
    /// Taken by the one who writes or closes it: the clone has a copy.
    go: Cell<Option<OwnedFd>>,
    user_log: Option<OwnedFd>,
}

impl Channels {
    fn make(with_user_log: bool) -> Result<Self> {
        let pair = || packet::pair().context(|| "socketpair");
        let pipe = || pipe_with(PipeFlags::CLOEXEC).context(|| "pipe");
        let (control, boot_control) = pair()?;
        let (mounts, boot_mounts) = pair()?;
        let (start_sync, boot_start_sync) = pipe()?;
        let (log, boot_log) = pipe()?;
        let (boot_go, go) = pipe()?;
        let (user_log, boot_user_log) = with_user_log.then(pipe).transpose()?.unzip();
        // boot only receives there: descriptors that it sent would stay until the shim
        // closed them.
        shutdown(&mounts, Shutdown::Read).context(|| "shut the mounts channel for boot")?;
        for fd in [&control, &start_sync, &log].into_iter().chain(&user_log) {
            rustix::io::ioctl_fionbio(fd, true).context(|| "make a channel non-blocking")?;
        }
        ask_for_processes(&control).context(|| "setsockopt SO_PASSCRED")?;
        Ok(Self {
            shim: ShimEnds { control, mounts, start_sync, log, go: Some(go).into(), user_log },
            boot: BootEnds {
                control: boot_control,
                mounts: boot_mounts,
                start_sync: boot_start_sync,
                log: boot_log,
                panic_log: panic_log()?,
                go: boot_go,
                user_log: boot_user_log,
            },
        })
    }
}

/// Makes a file of fixed size: a hostile boot can fill it, but not grow it.
fn panic_log() -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("palisade-panic", flags).context(|| "memfd_create")?;
    rustix::fs::ftruncate(&file, PANIC_LOG_SIZE).context(|| "size the panic log")?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).context(|| "seal the panic log")?;
    Ok(file)
}

fn birth(new: &NewSandbox<'_>, claim: &Claim) -> Result<Birth> {
    let mappings = claim.mappings();
    let new_network = network::is_new(&new.plan.host.network);
    let wanted = &new.plan.host.network_sysctls;
    let sysctls = || network::sysctls(wanted, mappings);
    Ok(Birth {
        mappings: mappings.cloned(),
        own_id: claim.own(),
        host_pids: new.plan.host.host_namespaces.pid,
        new_network,
        network_sysctls: if new_network { sysctls() } else { Vec::new() },
        cgroup_v2: new.cgroup.is_v2(),
        views: new.plan.host.views,
        open_files: open_files::inherited().context(|| "prlimit RLIMIT_NOFILE")?.soft,
    })
}

/// The means by which boot joins the root container's cgroup, which its children
/// inherit: the clone itself on version 2, boot's own writes on version 1.
struct JoinCgroup {
    directory: Option<OwnedFd>,
    procs: Vec<OwnedFd>,
}

impl JoinCgroup {
    fn prepare(new: &NewSandbox<'_>) -> Result<Self> {
        let cgroup = new.cgroup;
        let directory = match cgroup.is_divided_by(&new.plan.container) {
            true => cgroup.boot_dir_fd()?,
            false => cgroup.dir_fd()?,
        };
        let procs = if directory.is_some() { Vec::new() } else { cgroup.procs()? };
        Ok(Self { directory, procs })
    }
}

/// Clones boot into its namespaces. Enters an existing network namespace for the time
/// of the clone, so that boot starts in it.
fn clone_boot(
    args: ChildArgs<'_>,
    cgroup: Option<BorrowedFd<'_>>,
    channels: &Channels,
    claim: &Claim,
) -> Result<(HostPid, OwnedFd)> {
    let host = &args.new.plan.host;
    let shared = host.host_namespaces;
    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWPID, !shared.pid);
    match claim.mappings() {
        // The clone makes the others in the pod's user namespace.
        Some(_) => flags |= CloneFlags::CLONE_NEWUSER,
        None => {
            flags.set(CloneFlags::CLONE_NEWIPC, !shared.ipc);
            flags.set(CloneFlags::CLONE_NEWUTS, !shared.uts);
            flags.set(CloneFlags::CLONE_NEWNET, network::is_new(&host.network));
        }
    }
    let _visit = match &host.network {
        Network::Path(path) => {
            let visit = network::Visit::enter(path)?;
            let mappings = claim.mappings();
            network::write_sysctls(&network::sysctls_of_host(&host.network_sysctls, mappings))?;
            Some(visit)
        }
        Network::New | Network::Host => None,
    };
    let _times = host.time_namespace.as_deref().map(TimeVisit::enter).transpose()?;
    let alone = SingleThreaded::prove().context(|| "clone the sandbox process")?;
    // What a pod's processes use up of a user's limits (instances of inotify, signals, message
    // queues, namespaces), the kernel charges to the maker of their user namespace as well.
    // It must not be the host's root, on which all pods and containerd depend.
    let maker = claim.maker().map(EffectiveUser::begin).transpose();
    let maker = maker.context(|| "take the effective user of the sandbox")?;
    let cloned = clone_into(&alone, flags, cgroup);
    if !matches!(cloned, Ok(Cloned::Child)) {
        drop(maker);
    }
    match cloned.context(|| "clone3 of the sandbox process")? {
        Cloned::Parent { pid, pidfd } => Ok((HostPid(pid), pidfd)),
        Cloned::Child => {
            // Only the shim's end is left then, so that its end is seen.
            let go = channels.shim.go.take();
            become_boot(args, &channels.boot, go, claim.mappings(), claim.own())
        }
    }
}

/// Writes the ID maps that the clone waits for, and lets it go on.
fn let_go_on(
    new: &NewSandbox<'_>,
    boot: HostPid,
    claim: &Claim,
    channels: &Channels,
) -> Result<()> {
    if let Some(ids) = &claim.ids {
        // Safe to do as root: the IDs are ones that the range or the spec grants,
        // and the process has run nothing but our own code.
        ids.all.write(format!("/proc/{}", boot.0))?;
        if new.config.id_pool.rootless.is_some() {
            log::warn!(
                "sandbox {}: this shim is not root of the host: the containers' users are those \
                 of containerd's user namespace, as in each of its other sandboxes",
                new.id
            );
        }
    } else {
        let reason = new.plan.host.no_user_namespace.as_deref().unwrap_or("the options say so");
        log::warn!("sandbox {} runs without a user namespace: {reason}", new.id);
    }
    let go = channels.shim.go.take();
    let gone_on = go.map_or(Err(Errno::BADF), |go| rustix::io::write(&go, b"!"));
    gone_on.map(drop).context(|| "let the sandbox process go on")
}

/// Returns the pod's user namespace, if there is to be one. The clone makes it.
fn user_namespace(claim: &Claim) -> Option<UserNamespace> {
    let Ids { mappings, spares, .. } = claim.ids.as_ref()?;
    let spares = spares.clone().map(Mutex::new);
    Some(UserNamespace { fd: OnceLock::new(), mappings: mappings.clone(), spares })
}

/// See [`Sandbox::finish_namespaces`].
pub(super) fn finish_namespaces(sandbox: &Sandbox) -> Result<()> {
    let Some(user) = &sandbox.user_namespace else { return Ok(()) };
    sandbox.expect_report(PREPARED, || {
        "the sandbox process died before it was in its namespaces".to_owned()
    })?;
    let _ = user.fd.set(pod_user_namespace(sandbox.boot)?);
    Ok(())
}

/// Opens the user namespace of the pod's containers, which owns boot's UTS namespace. boot
/// has run nothing but our own code.
fn pod_user_namespace(boot: HostPid) -> Result<OwnedFd> {
    namespace::owner(open_namespace(boot, "uts")?).context(|| "open the pod's user namespace")
}

/// Sets boot's `oom_score_adj` to the root container's, and returns the value that it
/// had. Only a privileged process may lower it: proc_pid_oom_score_adj(5).
fn set_oom_score_adj(boot: HostPid, wanted: Option<i32>) -> Result<i32> {
    let path = format!("/proc/{}/oom_score_adj", boot.0);
    let text = std::fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let original = text.trim().parse().unwrap_or(0);
    if let Some(wanted) = wanted.filter(|w| *w != original) {
        std::fs::write(&path, wanted.to_string()).context(|| {
            format!("process.oomScoreAdj: set {wanted} (it is {original}; going below needs CAP_SYS_RESOURCE)")
        })?;
    }
    Ok(original)
}
