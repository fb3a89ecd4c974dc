//! CreateSandbox: reads and checks the request, and makes nothing yet, so that
//! a refusal leaves nothing behind.

use std::path::Path;
use std::sync::Arc;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{CreateSandboxRequest, CreateSandboxResponse};
use oci_spec::runtime::Spec;

use super::cri::cri::PodSandboxConfig;
use super::dns::resolv_conf;
use super::spec;
use crate::error::{Context, Error, Result};
use crate::stdio::Stdio;
use crate::task::{CreateContext, CreatePlan, Pod, PodFiles, Shim, Wanted, WantedFiles};

/// The type of CRI's configuration, as containerd's typeurl writes it.
const POD_CONFIG: &str = "runtime.v1.PodSandboxConfig";

pub(super) fn create(
    shim: &Arc<Shim>,
    request: CreateSandboxRequest,
) -> Result<CreateSandboxResponse> {
    let mut table = shim.table();
    table.check_lives()?;
    if table.pod.is_some() || table.has_any_sandbox() {
        return Err(Error::exists("this shim has a sandbox already"));
    }
    if !request.rootfs.is_empty() {
        return Err(Error::invalid(
            "rootfs: expected none: a sandbox without a container has no use for one",
        ));
    }
    let config = config(&request)?;
    let bundle = Path::new(&request.bundle_path);
    let mut spec = match &config {
        Some(config) => spec::of_pod(&request.sandbox_id, config)?,
        None if bundle.join("config.json").exists() => sandbox_core::spec::load(bundle)?,
        None => Spec::default(),
    };
    spec::complete(&mut spec, &request)?;
    let wanted = Wanted {
        id: request.sandbox_id.clone(),
        bundle: request.bundle_path.clone(),
        rootfs: Vec::new(),
        stdio: Stdio::default(),
        checkpoint: None,
    };
    let options = shim.options.clone();
    let context = CreateContext { boot: None, others: &[], files: None, options };
    let plan = CreatePlan::resolve(wanted, &spec, context)?;
    let files = PodFiles::new(bundle, config.as_ref().map(files));
    let has_cgroup = config.is_some_and(|config| !config.linux.cgroup_parent.is_empty());
    let spec = as_any(&spec)?;
    table.pod = Some(Pod::new(&request.sandbox_id, plan, files, has_cgroup, spec));
    Ok(CreateSandboxResponse::default())
}

/// Returns a pod's configuration of its files.
fn files(config: &PodSandboxConfig) -> WantedFiles {
    WantedFiles {
        hostname: config.hostname.clone(),
        resolv_conf: config.dns_config.as_ref().map(resolv_conf),
    }
}

/// Encodes a spec as containerd's typeurl does.
fn as_any(spec: &Spec) -> Result<Any> {
    let value = serde_json::to_vec(spec).context(|| "encode the sandbox's spec")?;
    let type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_string();
    Ok(Any { type_url, value, ..Default::default() })
}

/// Decodes CRI's configuration, if the request has one.
fn config(request: &CreateSandboxRequest) -> Result<Option<PodSandboxConfig>> {
    let Some(any) = request.options.as_ref().filter(|any| !any.type_url.is_empty()) else {
        return Ok(None);
    };
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name != POD_CONFIG {
        return Err(Error::invalid(format!("options: are a {name}; expected a {POD_CONFIG}")));
    }
    PodSandboxConfig::parse_from_bytes(&any.value)
        .map(Some)
        .map_err(|e| Error::invalid(format!("options: are no {POD_CONFIG}: {e}")))
}
