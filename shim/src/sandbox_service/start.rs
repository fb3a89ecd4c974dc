//! StartSandbox: starts the sandbox process in its cgroup, without a container.

use std::sync::Arc;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api::{StartSandboxRequest, StartSandboxResponse};

use crate::error::Result;
use crate::exit::timestamp;
use crate::task::{BootClient, PodStart, Shim, make_sandbox, raised, tear_down_if_unused};

pub(super) async fn start(
    shim: Arc<Shim>,
    request: StartSandboxRequest,
) -> Result<StartSandboxResponse> {
    let id = &request.sandbox_id;
    let turn = shim.table().pod(id)?.turn();
    let _ours = turn.lock().await;
    let start = {
        let mut table = shim.table();
        table.check_lives()?;
        let start = table.pod(id)?.start()?;
        table.begin_sandbox();
        start
    };
    let made = make(&shim, start).await;
    let mut table = shim.table();
    match made {
        Ok(boot) => {
            table.sandbox_made(boot.clone());
            let pod = table.pod(id)?;
            let spec = pod.started(boot.clone())?;
            tokio::spawn(watch(shim.clone(), id.clone(), boot.clone()));
            Ok(StartSandboxResponse {
                pid: boot.pid(),
                created_at: timestamp(pod.created),
                // containerd from 2.3 on shows it to its plugins.
                spec: MessageField::some(spec),
                ..Default::default()
            })
        }
        Err(error) => {
            table.sandbox_failed();
            table.pod(id)?.end();
            Err(error)
        }
    }
}

async fn make(shim: &Arc<Shim>, start: PodStart) -> Result<Arc<BootClient>> {
    let PodStart { plan, files, stopping } = start;
    files.write()?;
    make_sandbox(shim, &plan, raised(stopping)).await
}

/// Records the sandbox's end, whatever causes it, and has the rest torn down.
async fn watch(shim: Arc<Shim>, id: String, boot: Arc<BootClient>) {
    boot.ended().await;
    if let Ok(pod) = shim.table().pod(&id) {
        pod.end();
    }
    tear_down_if_unused(&shim, &boot);
}
