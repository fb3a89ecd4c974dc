//! Create: from a bundle to a process that waits at its gate.

use std::path::Path;
use std::sync::Arc;

use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse, Mount};
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::protobuf::MessageField;
use sandbox_core::control::gofer::RootfsMount;
use sandbox_core::spec;
use sandbox_core::types::ProcessId;

use super::boot::BootClient;
use super::create_plan::{CreateContext, CreatePlan, Wanted};
use super::make::make_container;
use super::pod::Pod;
use super::reservation::Reservation;
use super::shim::Shim;
use super::{exits, oom, powerless};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::stdio::Stdio;

pub(super) async fn create(
    shim: Arc<Shim>,
    request: CreateTaskRequest,
) -> Result<CreateTaskResponse> {
    shim.events.has_room()?;
    let reservation = Reservation::take(&shim, &request.id)?;
    let plan = read_plan(&shim, &request, reservation.boot());
    let plan = plan.map_err(|error| match reservation.boot() {
        Some(boot) => boot.explain(error),
        None => error,
    })?;
    powerless::check(plan.options.on_powerless, &plan.plan.host.powerless)?;
    let cancelled = reservation.cancelled();
    let container = make_container(&shim, &plan, reservation.boot(), cancelled).await?;
    let pid = container.init.pid;
    shim.events.publish(&created(request, pid));
    powerless::tell(&shim, &plan.id, &plan.plan.host.powerless);
    let kills = oom::watched(&container);
    if let Some(status) = reservation.fill(container) {
        exits::report(&shim, &ProcessId::init(&plan.id), status);
    }
    if let Some(kills) = kills {
        tokio::spawn(oom::watch(shim, plan.id, kills));
    }
    Ok(CreateTaskResponse { pid, ..Default::default() })
}

/// Reads config.json, and adds the files that a pod provides.
fn read_plan(
    shim: &Shim,
    request: &CreateTaskRequest,
    boot: Option<&Arc<BootClient>>,
) -> Result<CreatePlan> {
    if !request.checkpoint.is_empty() {
        return Err(Error::unimplemented("Palisade cannot restore checkpoints"));
    }
    let table = shim.table();
    let files = table.pod.as_ref().map(Pod::files).transpose()?;
    let mut spec = spec::load(Path::new(&request.bundle))?;
    if let Some(files) = files {
        files.provide(&mut spec)?;
    }
    let options = Options::read(request.options.as_ref())?;
    let others = &table.inits();
    let context = CreateContext { boot: boot.map(Arc::as_ref), others, files, options };
    CreatePlan::resolve(wanted(request), &spec, context)
}

fn wanted(request: &CreateTaskRequest) -> Wanted {
    let mount = |mount: &Mount| RootfsMount {
        fs_type: mount.type_.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    };
    Wanted {
        id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.iter().map(mount).collect(),
        stdio: Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        },
    }
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
