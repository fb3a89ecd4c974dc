//! Create: from a bundle to a process that waits at its gate.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse, Mount};
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::protobuf::MessageField;
use sandbox_core::control::gofer::RootfsMount;
use sandbox_core::dump::criu;
use sandbox_core::dump::criu_files::{self, ProgramFile};
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
use crate::ready::readable;
use crate::stdio::Stdio;

/// The time that criu's loader has to list the libraries.
const LOADER_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn create(
    shim: Arc<Shim>,
    request: CreateTaskRequest,
) -> Result<CreateTaskResponse> {
    shim.events.has_room()?;
    let reservation = Reservation::take(&shim, &request.id)?;
    let criu = find_criu(&request).await?;
    let plan = read_plan(&shim, &request, reservation.boot(), criu);
    let plan = plan.map_err(|error| match reservation.boot() {
        Some(boot) => boot.explain(error),
        None => error,
    })?;
    powerless::check(plan.options.on_powerless, &plan.plan.host.powerless)?;
    let cancelled = reservation.cancelled();
    let plan = Arc::new(plan);
    let container = make_container(&shim, &plan, reservation.boot(), cancelled).await?;
    let pid = container.init.pid;
    shim.events.publish(&created(request, pid));
    powerless::tell(&shim, &plan.id, &plan.plan.host.powerless);
    let kills = oom::watched(&container);
    if let Some(status) = reservation.fill(container) {
        exits::report(&shim, &ProcessId::init(&plan.id), status);
    }
    if let Some(kills) = kills {
        tokio::spawn(oom::watch(shim, plan.id.clone(), kills));
    }
    Ok(CreateTaskResponse { pid, ..Default::default() })
}

/// Finds criu and what it needs to run, if the container is restored from a checkpoint.
async fn find_criu(request: &CreateTaskRequest) -> Result<Option<Vec<ProgramFile>>> {
    if request.checkpoint.is_empty() {
        return Ok(None);
    }
    let options = Options::read(request.options.as_ref())?;
    let criu = criu::find(&options.criu, std::env::var_os("PATH").as_deref())?;
    let mut listing = criu_files::ask_loader(&criu)?;
    let report = loop {
        match tokio::time::timeout(LOADER_TIMEOUT, readable(listing.as_fd())).await {
            Ok(came) => came?,
            Err(_) => {
                let criu = criu.display();
                return Err(Error::internal(format!(
                    "the loader of {criu} does not list its libraries within {LOADER_TIMEOUT:?}"
                )));
            }
        }
        if let Some(report) = listing.take()? {
            break report;
        }
    };
    Ok(Some(criu_files::files(&criu, &report)?))
}

/// Reads config.json, and adds the files that a pod provides.
fn read_plan(
    shim: &Shim,
    request: &CreateTaskRequest,
    boot: Option<&Arc<BootClient>>,
    criu: Option<Vec<ProgramFile>>,
) -> Result<CreatePlan> {
    let table = shim.table();
    let files = table.pod.as_ref().map(Pod::files).transpose()?;
    let mut spec = spec::load(Path::new(&request.bundle))?;
    if let Some(files) = files {
        files.provide(&mut spec)?;
    }
    let options = Options::read(request.options.as_ref())?;
    let others = &table.inits();
    let context = CreateContext { boot: boot.map(Arc::as_ref), others, files, options };
    CreatePlan::resolve(wanted(request, criu), &spec, context)
}

fn wanted(request: &CreateTaskRequest, criu: Option<Vec<ProgramFile>>) -> Wanted {
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
        checkpoint: criu.map(|criu| (request.checkpoint.clone().into(), criu)),
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
