//! CreateSandbox: reads and checks what is wanted, and makes nothing yet, so
//! that a refusal leaves nothing behind.

use std::path::Path;
use std::sync::Arc;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{CreateSandboxRequest, CreateSandboxResponse};
use oci_spec::runtime::Spec;

use super::cri::cri::PodSandboxConfig;
use super::files::Files;
use super::{Pod, spec};
use crate::error::{Context, Error, Result};
use crate::task::{Around, Order, Shim};

/// The type of CRI's configuration, as containerd's typeurl writes it.
const POD_CONFIG: &str = "runtime.v1.PodSandboxConfig";

pub(super) fn create(
    shim: &Arc<Shim>,
    request: CreateSandboxRequest,
) -> Result<CreateSandboxResponse> {
    let mut table = shim.table();
    if table.pod.is_some() || table.has_root() {
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
    let task = CreateTaskRequest {
        id: request.sandbox_id.clone(),
        bundle: request.bundle_path.clone(),
        ..Default::default()
    };
    let options = shim.options.clone();
    let around = Around { boot: None, neighbours: &[], files: None, options };
    let order = Order::resolve(task, &spec, around)?;
    let files = Files::of(bundle, config.as_ref());
    let spec = as_any(&spec)?;
    table.pod = Some(Pod::new(&request.sandbox_id, order, files, spec));
    Ok(CreateSandboxResponse::default())
}

/// A spec as containerd's typeurl writes it.
fn as_any(spec: &Spec) -> Result<Any> {
    let value = serde_json::to_vec(spec).context(|| "encode the sandbox's spec")?;
    let type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_string();
    Ok(Any { type_url, value, ..Default::default() })
}

/// CRI's configuration, if that is what came along.
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
