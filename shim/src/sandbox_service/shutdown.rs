//! ShutdownSandbox: the end of the shim, with whatever is left.

use std::sync::Arc;

use containerd_shim_protos::sandbox_api::{ShutdownSandboxRequest, ShutdownSandboxResponse};

use super::stop;
use crate::error::Result;
use crate::serve::Ending;
use crate::task::Shim;

pub(super) async fn shutdown(
    shim: Arc<Shim>,
    request: ShutdownSandboxRequest,
) -> Result<ShutdownSandboxResponse> {
    end_shim(&shim, &request.sandbox_id).await;
    Ok(ShutdownSandboxResponse::default())
}

/// It may never have been created: containerd wants the shim gone all the same.
pub(crate) async fn end_shim(shim: &Arc<Shim>, id: &str) {
    if let Err(error) = stop::end(shim, id).await {
        log::debug!("shutdown: {error}");
    }
    shim.kill_sandbox().await;
    shim.end(Ending::OnceAlone).await;
}
