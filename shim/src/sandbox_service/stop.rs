//! StopSandbox: the end of the sandbox process and of all in it. What is known
//! of it stays until ShutdownSandbox.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::sandbox_api::{StopSandboxRequest, StopSandboxResponse};

use super::{State, Step, pod};
use crate::error::{Error, Result};
use crate::task::Shim;

/// How long the start that is given up may hold up the stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills at once, whatever `timeout_secs` grants: what runs in the sandbox was
/// asked to end before, container by container, as CRI does.
pub(super) async fn stop(
    shim: Arc<Shim>,
    request: StopSandboxRequest,
) -> Result<StopSandboxResponse> {
    end(&shim, &request.sandbox_id).await?;
    Ok(StopSandboxResponse::default())
}

/// Idempotent. A start that is under way is given up.
pub(super) async fn end(shim: &Arc<Shim>, id: &str) -> Result<()> {
    let turn = {
        let mut table = shim.table();
        let pod = pod(&mut table, id)?;
        pod.stopping.send_replace(true);
        pod.turn.clone()
    };
    let turn = tokio::time::timeout(PATIENCE, turn.lock()).await;
    let _ours = turn.map_err(|_| {
        Error::state(format!("sandbox {id} is still being started or stopped after {PATIENCE:?}"))
    })?;
    let boot = {
        let mut table = shim.table();
        let pod = pod(&mut table, id)?;
        match &pod.state {
            State::Ready(boot) => boot.clone(),
            State::Created(_) => return pod.step(Step::End).map(drop),
            State::Starting => unreachable!("a start has its turn until it is over"),
            State::Ended => return Ok(()),
        }
    };
    shim.thaw_all();
    boot.end().await?;
    pod(&mut shim.table(), id)?.step(Step::End)?;
    shim.release(&boot).await;
    Ok(())
}
