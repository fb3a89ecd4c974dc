//! StopSandbox: the end of the sandbox process and of all in it. What is known
//! of it stays until ShutdownSandbox.

use std::sync::Arc;

use containerd_shim_protos::sandbox_api::{StopSandboxRequest, StopSandboxResponse};

use crate::error::Result;
use crate::task::{Shim, stop_pod};

/// Kills at once, whatever `timeout_secs` grants: what runs in the sandbox was
/// asked to end before, container by container, as CRI does.
pub(super) async fn stop(
    shim: Arc<Shim>,
    request: StopSandboxRequest,
) -> Result<StopSandboxResponse> {
    stop_pod(&shim, &request.sandbox_id).await?;
    Ok(StopSandboxResponse::default())
}
