//! The checked inputs of a Create or a CreateSandbox. They contain no message
//! of containerd.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Spec;
use sandbox_core::cgroup::{CapacityPolicy, Driver};
use sandbox_core::control::gofer::RootfsMount;
use sandbox_core::dump::criu_files::ProgramFile;
use sandbox_core::spec;
use sandbox_core::spec::plan::Plan;
use sandbox_core::types::HostPid;

use super::boot::BootClient;
use super::checkpoint_files::{self, Checkpoint};
use super::pod_files::PodFiles;
use crate::error::Result;
use crate::options::{CgroupDriver, Options, UserLog};
use crate::rootless;
use crate::stdio::Stdio;

/// A container, or a sandbox without a container, that is to be made.
pub(crate) struct CreatePlan {
    pub(super) id: String,
    pub(super) bundle: String,
    /// The mounts that make its root file system. If there are none, the spec's
    /// root is used.
    pub(super) rootfs: Vec<RootfsMount>,
    pub(super) stdio: Stdio,
    /// The node's options, with the changes of the pod's annotations.
    pub(super) options: Options,
    pub(super) plan: Arc<Plan>,
    /// The checkpoint that it is restored from, if it is.
    pub(super) checkpoint: Option<Checkpoint>,
}

/// The client's request.
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) bundle: String,
    pub(crate) rootfs: Vec<RootfsMount>,
    pub(crate) stdio: Stdio,
    /// The directory of the checkpoint to restore it from, and criu.
    pub(crate) checkpoint: Option<(PathBuf, Vec<ProgramFile>)>,
}

/// The inputs of a plan besides the request and its spec.
pub(crate) struct CreateContext<'a> {
    /// The sandbox that the container joins.
    pub(crate) boot: Option<&'a BootClient>,
    /// The containers that run in the sandbox.
    pub(crate) others: &'a [(String, HostPid)],
    /// The files that the pod provides, if the Sandbox service made it.
    pub(crate) files: Option<&'a PodFiles>,
    /// The node's options.
    pub(crate) options: Options,
}

impl CreatePlan {
    /// Resolves options, spec and annotations into a plan.
    pub(crate) fn resolve(wanted: Wanted, spec: &Spec, context: CreateContext<'_>) -> Result<Self> {
        let Wanted { id, bundle, rootfs, stdio, checkpoint } = wanted;
        let annotations = spec.annotations().clone().unwrap_or_default();
        let options = context.options.annotated(&annotations)?;
        let spec_context = spec::Context {
            id: &id,
            bundle: Path::new(&bundle),
            rootfs_mounts_given: !rootfs.is_empty(),
            userns: options.userns.into(),
            id_pool: options.id_pool(),
            baseline: options.baseline(),
            tells_refusals: options.user_log != UserLog::Off,
            views: options.views(),
            sandbox: context.boot.and_then(BootClient::facts),
            other_containers: context.others,
        };
        let mut plan = spec::plan(spec, &spec_context)?;
        if spec_context.id_pool.rootless.is_some() {
            rootless::check_visits(&plan, context.boot.is_none())?;
            rootless::without_refused_score(&mut plan);
        }
        if let Some(boot) = context.boot {
            boot.sandbox.map_foreign_ids(&mut plan)?;
        }
        if let Some(process) = &mut plan.container.process {
            // The request's flag counts: the client has made its FIFOs by it.
            process.terminal = stdio.terminal.then(|| process.terminal.unwrap_or_default());
        }
        if let Some(files) = context.files {
            files.share_memory(&mut plan);
        }
        let read = |(path, criu)| checkpoint_files::read(path, &plan.container, criu);
        let checkpoint = checkpoint.as_ref().map(|(path, criu)| (path.as_path(), criu.as_slice()));
        let checkpoint = checkpoint.map(read).transpose()?;
        plan.host.checkpoint = checkpoint.as_ref().map(|checkpoint| checkpoint.source.clone());
        Ok(Self { id, bundle, rootfs, stdio, options, plan: Arc::new(plan), checkpoint })
    }

    /// Returns the program that makes the cgroup.
    pub(super) fn driver(&self) -> Driver {
        match self.options.cgroup_driver {
            CgroupDriver::Systemd => Driver::Systemd,
            CgroupDriver::Auto if self.plan.host.cgroups_path.contains(':') => Driver::Systemd,
            CgroupDriver::Auto | CgroupDriver::Cgroupfs => Driver::Cgroupfs,
        }
    }

    /// Returns the rule by which the capacity is derived from the cgroup.
    pub(super) fn capacity_policy(&self) -> CapacityPolicy {
        CapacityPolicy {
            cpu_from_quota: self.options.cpu_from_quota,
            minimum: self.options.cpu_minimum(),
        }
    }
}
