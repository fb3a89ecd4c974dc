//! Create: from a bundle to a process that waits at its gate.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse, Mount};
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::protobuf::MessageField;
use oci_spec::runtime::Spec;
use sandbox_core::cgroup::{CapacityPolicy, Cgroup, Driver, OomWatch, ResourcesInForce};
use sandbox_core::control::gofer::RootfsMount;
use sandbox_core::control::message::Request;
use sandbox_core::sandbox::{self, NewSandbox};
use sandbox_core::spec;
use sandbox_core::spec::plan::Plan;
use sandbox_core::types::{Capacity, HostPid};

use super::relay::relay_log;
use super::sandbox::{Boot, Gifts, listen};
use super::table::{Container, Process, Reservation, Shim};
use super::{exec, exits, hooks, oom};
use crate::error::{Error, Result};
use crate::options::{self, CgroupDriver, Options};
use crate::ready::readable;
use crate::sandbox_service::Pod;
use crate::sandbox_service::files::Files;
use crate::stdio::{self, Donated, Io, Owner, Stdio};

/// How long poststop hooks may hold up the news that a Create has failed.
const TIDYING: Duration = Duration::from_secs(10);

pub(super) async fn create(
    shim: Arc<Shim>,
    request: CreateTaskRequest,
) -> Result<CreateTaskResponse> {
    shim.events.has_room()?;
    let reservation = Reservation::take(&shim, &request.id)?;
    let order = Order::read(&shim, request, reservation.boot())?;
    let mut made = Made::default();
    let making = make(&shim, &order, reservation.boot(), &mut made);
    let outcome = unless(reservation.given_up(), making).await;
    let (container, pid) = match outcome {
        Ok(container) => container,
        Err(error) => {
            made.undo(&shim, &order).await;
            return Err(error);
        }
    };
    let id = order.request.id.clone();
    shim.events.publish(&created(order.request, pid));
    let oom = container.oom.as_ref().map(oom::descriptor);
    reservation.fill(container);
    exits::catch_up(&shim, &id, "");
    tokio::spawn(oom::watch(shim, id, oom));
    Ok(CreateTaskResponse { pid, ..Default::default() })
}

/// Makes something unless its client gives up first. What there is by then is for
/// whoever asked to undo.
async fn unless<T>(
    given_up: impl Future<Output = ()>,
    making: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        () = given_up => Err(Error::state("the client has given up")),
        made = making => made,
    }
}

/// What was asked, read and checked.
pub(crate) struct Order {
    request: CreateTaskRequest,
    options: Options,
    plan: Arc<Plan>,
}

/// What an order depends on besides the request and its spec.
pub(crate) struct Around<'a> {
    /// The sandbox that the container goes into.
    pub(crate) boot: Option<&'a Boot>,
    /// What runs in it already.
    pub(crate) neighbours: &'a [(String, HostPid)],
    /// What its sandbox provides, if that was asked for itself.
    pub(crate) files: Option<&'a Files>,
    /// The node's options.
    pub(crate) options: Options,
}

impl Order {
    /// From config.json, and what a sandbox that was asked for itself adds.
    fn read(shim: &Shim, mut request: CreateTaskRequest, boot: Option<&Arc<Boot>>) -> Result<Self> {
        if !request.checkpoint.is_empty() {
            return Err(Error::unimplemented("Palisade cannot restore checkpoints"));
        }
        let table = shim.table();
        let files = table.pod.as_ref().map(Pod::files).transpose()?;
        let mut spec = spec::load(Path::new(&request.bundle))?;
        if let Some(files) = files {
            files.provide(&mut spec)?;
        }
        let options = Options::read(request.options.take().as_ref())?;
        let neighbours = &table.neighbours();
        let around = Around { boot: boot.map(Arc::as_ref), neighbours, files, options };
        Self::resolve(request, &spec, around)
    }

    /// Options, spec and annotations, resolved into a plan.
    pub(crate) fn resolve(
        request: CreateTaskRequest,
        spec: &Spec,
        around: Around<'_>,
    ) -> Result<Self> {
        let annotations = spec.annotations().clone().unwrap_or_default();
        let options = around.options.annotated(&annotations)?;
        let context = spec::Context {
            id: &request.id,
            bundle: Path::new(&request.bundle),
            rootfs_mounts_given: !request.rootfs.is_empty(),
            userns: options.userns.into(),
            sandbox: around.boot.map(|boot| &boot.facts),
            other_containers: around.neighbours,
        };
        let mut plan = spec::plan(spec, &context)?;
        if let Some(process) = &mut plan.container.process {
            // The request's flag counts: by it the client has made its FIFOs.
            process.terminal = request.terminal.then(|| process.terminal.unwrap_or_default());
        }
        if let Some(files) = around.files {
            files.share_memory(&mut plan);
        }
        Ok(Self { request, options, plan: Arc::new(plan) })
    }

    fn rootfs(&self) -> Vec<RootfsMount> {
        let mount = |mount: &Mount| RootfsMount {
            fs_type: mount.type_.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
        };
        self.request.rootfs.iter().map(mount).collect()
    }

    fn driver(&self) -> Driver {
        match self.options.cgroup_driver {
            CgroupDriver::Systemd => Driver::Systemd,
            CgroupDriver::Auto if self.plan.host.cgroups_path.contains(':') => Driver::Systemd,
            CgroupDriver::Auto | CgroupDriver::Cgroupfs => Driver::Cgroupfs,
        }
    }

    fn policy(&self) -> CapacityPolicy {
        CapacityPolicy {
            cpu_from_quota: self.options.cpu_from_quota,
            minimum: self.options.cpu_minimum,
        }
    }

    fn stdio(&self) -> Stdio {
        Stdio {
            stdin: self.request.stdin.clone(),
            stdout: self.request.stdout.clone(),
            stderr: self.request.stderr.clone(),
            terminal: self.request.terminal,
        }
    }
}

/// What a Create has made so far, to be undone if it fails.
#[derive(Default)]
struct Made {
    cgroup: Option<Arc<Cgroup>>,
    /// A sandbox of its own.
    sandbox: Option<Arc<Boot>>,
    /// The sandbox that it joins.
    joined: Option<Arc<Boot>>,
    /// Hooks may have prepared something.
    hooked: bool,
}

impl Made {
    /// In the reverse order. Nothing of the container is left.
    async fn undo(self, shim: &Shim, order: &Order) {
        let hooked = self.hooked;
        self.remove(shim, order).await;
        if hooked {
            // runtime-spec, runtime.md, "Lifecycle": whatever step has failed.
            let poststop = hooks::poststop(&order.request.id, &order.request.bundle, &order.plan);
            if tokio::time::timeout(TIDYING, poststop).await.is_err() {
                log::warn!("container {}: its poststop hooks take too long", order.request.id);
            }
        }
    }

    async fn remove(self, shim: &Shim, order: &Order) {
        if let Some(boot) = self.sandbox {
            // Takes the root's cgroup along.
            return boot.tear_down().await;
        }
        if let Some(boot) = self.joined {
            boot.forget(shim, &order.request.id).await;
        }
        if let Some(cgroup) = self.cgroup {
            // All in there is the container's: what a boot that does not answer leaves.
            let killed = cgroup.kill_now();
            if let Err(error) = cgroup.remove().and(killed) {
                log::warn!("container {}: {error}", order.request.id);
            }
        }
    }
}

/// The container's cgroup, its sandbox if it is the first, its mounts and its
/// process. Returns its PID as well.
async fn make(
    shim: &Arc<Shim>,
    order: &Order,
    existing: Option<&Arc<Boot>>,
    made: &mut Made,
) -> Result<(Container, u32)> {
    let (id, plan) = (&order.request.id, &order.plan);
    let (cgroup, capacity) = make_cgroup(order, made)?;
    let oom = watch_oom(id, &cgroup);
    let boot = match existing {
        None => spawn(shim, order, cgroup.clone(), capacity, made).await?,
        Some(boot) => {
            made.joined = Some(boot.clone());
            let bundle = Path::new(&order.request.bundle);
            boot.handle.add_container(id, bundle, cgroup.saved().clone())?;
            boot.bring_mounts(plan, order.rootfs()).await?;
            boot.clone()
        }
    };
    let mut container = Container {
        id: id.clone(),
        bundle: order.request.bundle.clone(),
        plan: plan.clone(),
        boot,
        cgroup,
        policy: order.policy(),
        resources: ResourcesInForce::new(&plan.host.resources),
        oom,
        oom_kills: 0,
        init: Process::new(order.stdio()),
        execs: Default::default(),
        unsettled: Default::default(),
        last_stats: None,
    };
    give_birth(shim, &mut container, capacity).await?;
    let pid = container.init.pid;
    let state = hooks::State { id, pid, status: "created", bundle: &container.bundle, plan };
    made.hooked = true;
    for hook in plan.host.hooks.create_runtime.iter().chain(&plan.host.hooks.create_container) {
        hooks::run(hook, &state).await?;
    }
    Ok((container, pid))
}

/// The sandbox alone, for whoever asks for it by containerd's Sandbox service:
/// boot stands in for a root container that nobody created.
pub(crate) async fn make_sandbox(
    shim: &Arc<Shim>,
    order: &Order,
    given_up: impl Future<Output = ()>,
) -> Result<Arc<Boot>> {
    let mut made = Made::default();
    let boot = unless(given_up, make_alone(shim, order, &mut made)).await;
    if boot.is_err() {
        made.undo(shim, order).await;
    }
    boot
}

async fn make_alone(shim: &Arc<Shim>, order: &Order, made: &mut Made) -> Result<Arc<Boot>> {
    let (cgroup, capacity) = make_cgroup(order, made)?;
    let boot = spawn(shim, order, cgroup.clone(), capacity, made).await?;
    let nothing = Donated::default();
    let gifts = Gifts::collect(&boot, &order.plan, Vec::new(), &nothing)?;
    let request = Request::Create {
        plan: Box::new(order.plan.container.clone()),
        donations: gifts.donations,
        capacity,
    };
    boot.ask(shim, request, &gifts.descriptors(&nothing)).await?;
    cgroup.settled();
    Ok(boot)
}

fn make_cgroup(order: &Order, made: &mut Made) -> Result<(Arc<Cgroup>, Capacity)> {
    let (id, host) = (&order.request.id, &order.plan.host);
    let driver = order.driver();
    let (limits, properties) = (&host.resources, &host.unit_properties);
    let cgroup = Cgroup::create(id, &host.cgroups_path, driver, limits, properties)?;
    let cgroup = made.cgroup.insert(Arc::new(cgroup)).clone();
    let capacity = cgroup.capacity(order.policy())?;
    Ok((cgroup, capacity))
}

/// Before there is a process, so that no kill is missed. A host without a
/// memory cgroup has no such kills.
fn watch_oom(id: &str, cgroup: &Cgroup) -> Option<OomWatch> {
    cgroup.oom_watch().inspect_err(|error| log::info!("container {id}: {error}")).ok()
}

/// The first container's sandbox, while a gofer fetches its mounts.
async fn spawn(
    shim: &Arc<Shim>,
    order: &Order,
    cgroup: Arc<Cgroup>,
    capacity: Capacity,
    made: &mut Made,
) -> Result<Arc<Boot>> {
    let (id, plan) = (&order.request.id, &order.plan);
    let mut config = order.options.config(options::palisade()?);
    config.debug |= log::max_level() >= log::LevelFilter::Debug;
    let new = NewSandbox {
        id,
        namespace: &shim.namespace,
        plan,
        cgroup: &cgroup,
        cpus: capacity.cpus,
        memory: capacity.memory,
        config: &config,
    };
    let handle = sandbox::Sandbox::spawn(new)?;
    let boot = Boot::new(handle, id, cgroup.clone(), plan)?;
    let boot = made.sandbox.insert(Arc::new(boot)).clone();
    // The gofer and boot start side by side.
    let gofer = boot.handle.gofer(plan, order.rootfs())?;
    let bundle = Path::new(&order.request.bundle);
    boot.handle.add_container(id, bundle, cgroup.saved().clone())?;
    readable(boot.handle.start_sync()).await?;
    boot.handle.finish_start()?;
    readable(gofer.as_fd()).await?;
    gofer.finish()?;
    tokio::spawn(listen(shim.clone(), boot.clone()));
    tokio::spawn(relay_log(boot.clone()));
    Ok(boot)
}

/// The container's first process, up to its gate.
async fn give_birth(shim: &Shim, container: &mut Container, capacity: Capacity) -> Result<()> {
    let boot = container.boot.clone();
    let user = container.plan.container.process.as_ref().map_or((0, 0), |p| (p.uid, p.gid));
    let owner = Owner {
        uid: boot.handle.host_uid(user.0),
        gid: boot.handle.host_gid(user.1),
        namespace: &shim.namespace,
        container: &container.id,
    };
    let (io, donated) = stdio::open(&container.init.stdio, owner).await?;
    if container.cgroup.is_divided_by(&container.plan.container) {
        container.cgroup.delegate(owner.uid, owner.gid)?;
    }
    let gifts = Gifts::collect(&boot, &container.plan, container.procs_to_join()?, &donated)?;
    let request = Request::Create {
        plan: Box::new(container.plan.container.clone()),
        donations: gifts.donations,
        capacity,
    };
    let reply = boot.ask(shim, request, &gifts.descriptors(&donated)).await?;
    container.cgroup.settled();
    if container.is_pause() {
        container.init.pid = boot.pid();
        return Ok(());
    }
    let (handle, terminal) = exec::take_process(reply)?;
    container.init.run(handle, attached(io, terminal)?)
}

/// Standard input and output of a process that is there, its terminal's too.
pub(super) fn attached(mut io: Io, terminal: Option<OwnedFd>) -> Result<Io> {
    if let Some(terminal) = terminal {
        io.attach(terminal)?;
    }
    Ok(io)
}

fn created(request: CreateTaskRequest, pid: u32) -> TaskCreate {
    TaskCreate {
        container_id: request.id,
        bundle: request.bundle,
        rootfs: request.rootfs,
        io: MessageField::some(TaskIO {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
            ..Default::default()
        }),
        pid,
        ..Default::default()
    }
}
