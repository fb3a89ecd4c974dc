//! WaitSandbox: waits until the sandbox has ended. Any number of clients may wait.

use containerd_shim_protos::sandbox_api::{WaitSandboxRequest, WaitSandboxResponse};

use crate::error::{Error, Result};
use crate::exit::timestamp;
use crate::task::Shim;

pub(super) async fn wait(shim: &Shim, request: &WaitSandboxRequest) -> Result<WaitSandboxResponse> {
    let mut exit = shim.table().pod(&request.sandbox_id)?.exit();
    let exit = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
    let exit = exit.ok_or_else(|| Error::not_found("the sandbox was shut down"))?;
    Ok(WaitSandboxResponse {
        exit_status: exit.status,
        exited_at: timestamp(exit.at),
        ..Default::default()
    })
}
