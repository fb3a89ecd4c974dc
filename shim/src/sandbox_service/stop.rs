//! StopSandbox: ends the sandbox process and all processes in it. Its record
//! stays until ShutdownSandbox.

use std::sync::Arc;

use containerd_shim_protos::sandbox_api::{StopSandboxRequest, StopSandboxResponse};

use crate::error::Result;
use crate::task::{Shim, stop_pod};

/// Kills at once, whatever `timeout_secs` allows: CRI has stopped the
/// containers of the sandbox one by one before.
pub(super) async fn stop(
    shim: Arc<Shim>,
    request: StopSandboxRequest,
) -> Result<StopSandboxResponse> {
    stop_pod(&shim, &request.sandbox_id).await?;
    Ok(StopSandboxResponse::default())
}
