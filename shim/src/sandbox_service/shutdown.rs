//! ShutdownSandbox: ends the shim, with its sandbox and all containers.

use std::sync::Arc;

use containerd_shim_protos::sandbox_api::{ShutdownSandboxRequest, ShutdownSandboxResponse};

use crate::error::Result;
use crate::task::{Shim, shut_down_pod};

pub(super) async fn shutdown(
    shim: Arc<Shim>,
    request: ShutdownSandboxRequest,
) -> Result<ShutdownSandboxResponse> {
    shut_down_pod(&shim, &request.sandbox_id).await;
    Ok(ShutdownSandboxResponse::default())
}
