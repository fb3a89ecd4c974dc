//! The making of a container, or of a sandbox alone: each step with its reason.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use sandbox_core::cgroup::{Cgroup, OomWatch};
use sandbox_core::control::message::{Done, Request};
use sandbox_core::sandbox::state::StateDirectory;
use sandbox_core::sandbox::{self, HeldMounts, NewSandbox, ReceivedFds};
use sandbox_core::spec::plan::Powerless;
use sandbox_core::types::Capacity;

use super::agent::Agent;
use super::boot::{BootClient, ExtraFds};
use super::container::{Container, MadeProcess, Process, pid_of};
use super::create_plan::CreatePlan;
use super::joining::CgroupsToJoin;
use super::lifecycle::Program;
use super::listen::listen;
use super::relay::relay_log;
use super::rollback::Rollback;
use super::shim::Shim;
use super::{hooks, let_go, oom, powerless, user_log};
use crate::error::{Error, Result};
use crate::options::{self, UserLog};
use crate::ready::readable;
use crate::rootless;
use crate::spans::step;
use crate::stdio::{self, CutAt, Donated, Io, Owner};

/// Makes a container up to its gate, or rolls back what there is by the time that it
/// fails or is cancelled.
pub(super) async fn make_container(
    shim: &Arc<Shim>,
    plan: &Arc<CreatePlan>,
    existing: Option<&Arc<BootClient>>,
    cancelled: impl Future<Output = ()>,
) -> Result<Container> {
    shim.descriptors.admit()?;
    let mut rollback = Rollback::default();
    let container = cancel_on(cancelled, take_steps(shim, plan, existing, &mut rollback)).await;
    let container = container.map_err(|error| rollback.explain(error));
    if let Err(error) = &container {
        make_room(shim, error);
        rollback.run(shim, plan).await;
    }
    container.map_err(|error| shim.descriptors.explain(error))
}

/// Lets a rollback have the reserve of descriptors, if there were no others.
fn make_room(shim: &Shim, error: &Error) {
    match error.is_for_want_of_descriptors() {
        true => shim.descriptors.run_out(),
        false => shim.descriptors.must_work(),
    }
}

/// Takes the steps to a container at its gate.
async fn take_steps(
    shim: &Arc<Shim>,
    plan: &Arc<CreatePlan>,
    existing: Option<&Arc<BootClient>>,
    rollback: &mut Rollback,
) -> Result<Container> {
    rollback.joined = existing.cloned();
    // The gofer of another container than the first gets ready meanwhile.
    let gofer = existing.map(|boot| boot.launch_gofer()).transpose()?.flatten();
    // First the state, in which all is written down before it is made.
    let state = match existing {
        None => rollback.state.insert(make_state(shim, plan)?).clone(),
        Some(boot) => boot.sandbox.directory().clone(),
    };
    // Then the cgroup: boot, or the init, starts in it.
    let span = step("make the cgroup");
    let cgroup = rollback.cgroup.insert(make_cgroup(plan, &state)?).clone();
    drop(span);
    settle(shim, plan, &cgroup.powerless(&plan.plan.container)?)?;
    check_members(plan, &cgroup)?;
    // The CPUs and the memory that the container is told it has.
    let capacity = cgroup.capacity(plan.capacity_policy())?;
    // The kills are counted from before there is a process, so that none is missed.
    let oom = oom::count(&plan.id, &cgroup);
    if plan.checkpoint.is_some() {
        // Start makes the rest.
        let boot = make_unrestored(shim, plan, existing, &state, (&cgroup, capacity), rollback);
        return unrestored(plan, boot.await?, cgroup, oom);
    }
    // The gofer runs the createContainer hooks.
    rollback.hooked = !plan.plan.host.hooks.create_container.is_empty();
    let (boot, prepared) = match existing {
        // The first container makes the sandbox, and is its root.
        None => {
            let boot = spawn_boot(shim, plan, &state, &cgroup, capacity).await?;
            let boot = &*rollback.made.insert(boot);
            let up = start_boot(shim, plan, boot);
            let ((), prepared) = tokio::try_join!(up, prepare(shim, plan, boot, &cgroup))?;
            (boot, prepared)
        }
        // Any other joins it, and waits for its turn to receive its mounts.
        Some(boot) => {
            rollback.recorded = true;
            state.add_container(&plan.id)?;
            let _span = step("open mounts");
            let delivered = boot.deliver_mounts(&plan.plan, plan.rootfs.clone(), gofer);
            let (found, prepared) =
                tokio::try_join!(delivered, prepare(shim, plan, boot, &cgroup))?;
            settle(shim, plan, &found)?;
            (boot, prepared)
        }
    };
    // Now the mounts are there, and boot makes the process.
    boot.sandbox.move_net_devices(&plan.plan)?;
    let init = create_init(shim, plan, boot, &cgroup, prepared, capacity).await?;
    let container = Container::new(plan, boot.clone(), cgroup, oom, init);
    // Last the hooks, which may need the process, e.g. to give it a network.
    rollback.hooked = true;
    let _span = step("run hooks");
    run_hooks(&container).await?;
    Ok(container)
}

/// Makes a container whose processes Start restores.
fn unrestored(
    plan: &Arc<CreatePlan>,
    boot: Arc<BootClient>,
    cgroup: Arc<Cgroup>,
    oom: Option<OomWatch>,
) -> Result<Container> {
    let process = plan.plan.container.process.clone().ok_or_else(|| {
        Error::invalid("checkpoint: a pause container runs no process that could be restored")
    })?;
    let init = Process::planned(plan.stdio.clone(), process);
    let mut container = Container::new(plan, boot, cgroup, oom, (init, HeldMounts::default()));
    container.restore = Some(plan.clone());
    Ok(container)
}

/// Makes the sandbox of a container that Start restores, or has the container join it.
async fn make_unrestored(
    shim: &Arc<Shim>,
    plan: &CreatePlan,
    existing: Option<&Arc<BootClient>>,
    state: &StateDirectory,
    (cgroup, capacity): (&Arc<Cgroup>, Capacity),
    rollback: &mut Rollback,
) -> Result<Arc<BootClient>> {
    let boot = match existing {
        None => {
            let boot = spawn_boot(shim, plan, state, cgroup, capacity).await?;
            let boot = &*rollback.made.insert(boot);
            start_boot(shim, plan, boot).await?;
            boot
        }
        Some(boot) => {
            rollback.recorded = true;
            state.add_container(&plan.id)?;
            boot
        }
    };
    boot.sandbox.move_net_devices(&plan.plan)?;
    if !plan.rootfs.is_empty() {
        boot.attach_rootfs(&plan.plan, plan.rootfs.clone()).await?;
    }
    Ok(boot.clone())
}

/// Waits for `making`, unless the client goes first. The caller then rolls back
/// the things that exist.
async fn cancel_on<T>(
    cancelled: impl Future<Output = ()>,
    making: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        () = cancelled => Err(Error::state("the request was cancelled")),
        made = making => made,
    }
}

/// Makes the sandbox alone, for the Sandbox service, in which boot stands in for a
/// root container that no client creates.
pub(crate) async fn make_sandbox(
    shim: &Arc<Shim>,
    plan: &CreatePlan,
    cancelled: impl Future<Output = ()>,
) -> Result<Arc<BootClient>> {
    let mut rollback = Rollback::default();
    let boot = cancel_on(cancelled, make_alone(shim, plan, &mut rollback)).await;
    let boot = boot.map_err(|error| rollback.explain(error));
    if let Err(error) = &boot {
        make_room(shim, error);
        rollback.run(shim, plan).await;
    }
    boot.map_err(|error| shim.descriptors.explain(error))
}

async fn make_alone(
    shim: &Arc<Shim>,
    plan: &CreatePlan,
    rollback: &mut Rollback,
) -> Result<Arc<BootClient>> {
    let state = rollback.state.insert(make_state(shim, plan)?).clone();
    let cgroup = rollback.cgroup.insert(make_cgroup(plan, &state)?).clone();
    settle(shim, plan, &cgroup.powerless(&plan.plan.container)?)?;
    let capacity = cgroup.capacity(plan.capacity_policy())?;
    let boot = spawn_boot(shim, plan, &state, &cgroup, capacity).await?;
    let boot = rollback.made.insert(boot);
    start_boot(shim, plan, boot).await?;
    boot.sandbox.move_net_devices(&plan.plan)?;
    ask_to_create(shim, plan, boot, CgroupsToJoin::default(), &Donated::default(), capacity)
        .await?;
    cgroup.settled();
    Ok(boot.clone())
}

/// Makes the state of a new sandbox, which also makes its ID unique.
fn make_state(shim: &Shim, plan: &CreatePlan) -> Result<StateDirectory> {
    let root = options::state_root();
    let state = StateDirectory::locate(&root, &shim.namespace, &plan.id)?;
    state.create()?;
    Ok(state)
}

/// Makes the container's cgroup. If this process ends at any moment, its `delete` finds it.
fn make_cgroup(plan: &CreatePlan, state: &StateDirectory) -> Result<Arc<Cgroup>> {
    let host = &plan.plan.host;
    let (driver, path) = (plan.driver(), &host.cgroups_path);
    let mut planned = match rootless::of_this_process() {
        None => Cgroup::plan(&plan.id, path, driver),
        Some(_) => Cgroup::plan_where_delegated(&plan.id, path, driver),
    }?;
    if let Some(rdt) = &host.intel_rdt {
        planned = planned.with_resctrl(rdt)?;
    }
    let bundle = Path::new(&plan.bundle);
    // One that is there may be another container's, and is only taken if it is not.
    let is_new = !planned.exists();
    if is_new {
        state.plan_container(&plan.id, bundle, planned.saved())?;
    }
    let cgroup = Cgroup::make(&planned, &host.resources, &host.unit_properties)?;
    if (!is_new || cgroup.saved() != planned.saved())
        && let Err(error) = state.correct_container(&plan.id, bundle, cgroup.saved())
    {
        if let Err(left) = cgroup.remove() {
            log::warn!("container {}: {left}", plan.id);
        }
        return Err(error.into());
    }
    Ok(Arc::new(cgroup))
}

/// Refuses a container whose processes could not be told from others: they are neither in a
/// PID namespace nor in a cgroup of its own.
fn check_members(plan: &CreatePlan, cgroup: &Cgroup) -> Result<()> {
    let container = &plan.plan.container;
    if !cgroup.is_absent() || container.namespaces.pid || container.process.is_none() {
        return Ok(());
    }
    Err(Error::invalid(
        "linux.namespaces: pid: expected a namespace of the container's own: without a cgroup, \
         which containerd's user could not make, nothing else tells its processes from others",
    ))
}

/// Spawns boot into the first container's cgroup.
async fn spawn_boot(
    shim: &Shim,
    plan: &CreatePlan,
    state: &StateDirectory,
    cgroup: &Arc<Cgroup>,
    capacity: Capacity,
) -> Result<Arc<BootClient>> {
    let _span = step("spawn the sandbox process");
    let mut config = plan.options.config(options::palisade()?);
    config.debug |= log::max_level() >= log::LevelFilter::Debug;
    let new = NewSandbox {
        id: &plan.id,
        namespace: &shim.namespace,
        address: &shim.address,
        plan: &plan.plan,
        directory: state,
        cgroup,
        cpus: capacity.cpus,
        memory: capacity.memory,
        config: &config,
    };
    if plan.plan.host.time_namespace.is_some() {
        // Only a process whose memory is its own enters one (setns(2)).
        let_go::wait(let_go::ever_let_go()).await;
    }
    let sandbox = sandbox::Sandbox::spawn(new)?;
    Ok(Arc::new(BootClient::new(sandbox, &plan.id, cgroup.clone())))
}

/// Waits until boot is up. At the same time a gofer opens the first container's
/// mounts.
async fn start_boot(shim: &Arc<Shim>, plan: &CreatePlan, boot: &Arc<BootClient>) -> Result<()> {
    let _span = step("start the sandbox process and open mounts");
    boot.enter_namespaces(&plan.plan).await?;
    // The mounts of a container that Start restores come with that.
    let opens_mounts = plan.checkpoint.is_none();
    let gofer = opens_mounts.then(|| boot.sandbox.gofer(&plan.plan, plan.rootfs.clone(), None));
    let gofer = gofer.transpose()?;
    boot.sandbox.directory().add_container(&plan.id)?;
    readable(boot.sandbox.start_sync()).await?;
    boot.sandbox.finish_start()?;
    if let Some(gofer) = gofer {
        readable(gofer.as_fd()).await?;
        settle(shim, plan, &gofer.finish()?)?;
    }
    tokio::spawn(listen(shim.clone(), boot.clone()));
    tokio::spawn(relay_log(boot.clone()));
    if boot.sandbox.user_log().is_some() {
        tokio::spawn(user_log::relay(shim.clone(), boot.clone()));
    }
    Ok(())
}

/// Tells or refuses what was found to be without effect.
pub(super) fn settle(shim: &Shim, plan: &CreatePlan, found: &[Powerless]) -> Result<()> {
    powerless::check(plan.options.on_powerless, found)?;
    powerless::tell(shim, &plan.id, found);
    Ok(())
}

/// What a container's init is made with.
pub(super) struct Prepared {
    pub(super) io: Io,
    pub(super) donated: Donated,
    pub(super) cgroups: CgroupsToJoin,
}

/// Prepares all for a container's init that needs neither its mounts nor boot's help, while
/// those come.
pub(super) async fn prepare(
    shim: &Shim,
    plan: &CreatePlan,
    boot: &BootClient,
    cgroup: &Arc<Cgroup>,
) -> Result<Prepared> {
    let container = &plan.plan.container;
    let (uid, gid) = container.process.as_ref().map_or((0, 0), |p| (p.uid, p.gid));
    let (uid, gid) = boot.sandbox.host_ids(&plan.plan, uid, gid);
    let owner = Owner { uid, gid, namespace: &shim.namespace, container: &plan.id };
    // Processes of other containers that share its PIDs may hold its output.
    let cut_at = if container.namespaces.pid { CutAt::Never } else { CutAt::Exit };
    let (mut io, donated) = stdio::open(&plan.stdio, owner, cut_at).await?;
    user_log::begin(shim, boot, plan)?;
    if plan.options.user_log == UserLog::Pod {
        io.keep_notes(&donated)?;
    }
    cgroup.delegate(container, owner.uid, owner.gid)?;
    if joins_its_cgroup_alone(plan, boot, cgroup) {
        allow_births(boot, &plan.id, cgroup);
    }
    if let Some(agent) = Agent::of(&plan.plan, &plan.bundle) {
        boot.set_agent(&plan.id, agent);
    }
    if container.views.is_some() {
        boot.let_view(&plan.id, cgroup);
    }
    if container.watch.as_ref().is_some_and(|watch| watch.raw_sockets) {
        boot.let_make_raw_sockets(&plan.id);
    }
    let cgroups = CgroupsToJoin::of_init(boot.root == plan.id, &plan.plan, cgroup)?;
    Ok(Prepared { io, donated, cgroups })
}

/// Creates the container's init, up to its gate.
async fn create_init(
    shim: &Shim,
    plan: &CreatePlan,
    boot: &BootClient,
    cgroup: &Cgroup,
    prepared: Prepared,
    capacity: Capacity,
) -> Result<(Process, HeldMounts)> {
    let _span = step("create the init");
    let Prepared { io, donated, cgroups } = prepared;
    // Not before boot is up, which notes the limits that it was born with.
    if let Some(process) = &plan.plan.container.process {
        boot.sandbox.raise_limits(process)?;
    }
    let reply = ask_to_create(shim, plan, boot, cgroups, &donated, capacity).await?;
    cgroup.settled();
    if plan.plan.container.process.is_none() {
        return Ok((stand_in(plan, boot), HeldMounts::default()));
    }
    let MadeProcess { process, io, mounts } = MadeProcess::take(reply, io)?;
    shim.descriptors.took(&process.pidfd);
    let mounts = mounts.and_those_of(process.pidfd.as_fd(), process.pid);
    let pid = pid_of(&process);
    let init = Process::init(plan.stdio.clone(), pid, Program::Process(Arc::new(process)), io);
    Ok((init, mounts))
}

/// Whether the container's processes join one cgroup, in which boot is not, and nothing else.
fn joins_its_cgroup_alone(plan: &CreatePlan, boot: &BootClient, cgroup: &Cgroup) -> bool {
    let divided = cgroup.is_divided_by(&plan.plan.container);
    boot.root != plan.id && !divided && plan.plan.host.intel_rdt.is_none()
}

/// Lets boot clone the container's processes into their cgroup. Without it they are moved
/// there.
fn allow_births(boot: &BootClient, id: &str, cgroup: &Cgroup) {
    if let Err(error) = boot.sandbox.allow_births(cgroup, &boot.cgroup) {
        log::warn!("container {id}: its processes take longer to start: {error}");
    }
}

/// Returns the pause process that boot stands in for: it reads and writes nothing.
fn stand_in(plan: &CreatePlan, boot: &BootClient) -> Process {
    let pause = Program::Pause { exits_with: None };
    Process::init(plan.stdio.clone(), boot.pid(), pause, Io::default())
}

/// Requests a container from boot, even if boot itself stands in for the
/// container's process.
async fn ask_to_create(
    shim: &Shim,
    plan: &CreatePlan,
    boot: &BootClient,
    cgroups: CgroupsToJoin,
    donated: &Donated,
    capacity: Capacity,
) -> Result<(Done, ReceivedFds)> {
    let extra = ExtraFds::collect(cgroups, boot.sandbox.seccomp(&plan.plan)?, donated)?;
    let request = Request::Create {
        plan: Box::new(plan.plan.container.clone()),
        donations: extra.donations,
        capacity,
    };
    shim.ask(boot, request, &extra.descriptors(donated)).await
}

async fn run_hooks(container: &Container) -> Result<()> {
    let (plan, pid) = (&container.plan, container.init.pid);
    let state =
        hooks::State { id: &container.id, pid, status: "created", bundle: &container.bundle, plan };
    for hook in &plan.host.hooks.create_runtime {
        hooks::run(hook, &state).await?;
    }
    // The gofer has run those of a container that has a root file system.
    if plan.container.process.is_none() {
        for hook in &plan.host.hooks.create_container {
            hooks::run(hook, &state).await?;
        }
    }
    Ok(())
}
