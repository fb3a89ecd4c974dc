//! StartSandbox: the sandbox process, in its cgroup, with nothing in it yet.

use std::sync::Arc;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api::{StartSandboxRequest, StartSandboxResponse};

use super::{Step, pod, timestamp};
use crate::error::Result;
use crate::task::{Boot, Sandbox, Shim, make_sandbox, raised};

pub(super) async fn start(
    shim: Arc<Shim>,
    request: StartSandboxRequest,
) -> Result<StartSandboxResponse> {
    let id = &request.sandbox_id;
    let turn = pod(&mut shim.table(), id)?.turn.clone();
    let _ours = turn.lock().await;
    let (order, files, stopping) = {
        let mut table = shim.table();
        let pod = pod(&mut table, id)?;
        let order = pod.step(Step::Start)?;
        let (files, stopping) = (pod.files.clone(), pod.stopping.subscribe());
        table.sandbox = Sandbox::Making;
        (order, files, stopping)
    };
    let made = match (order, files.write()) {
        (Some(order), Ok(())) => make_sandbox(&shim, &order, raised(stopping)).await,
        (_, Err(error)) => Err(error),
        (None, _) => unreachable!("Start hands out what was ordered"),
    };
    let mut table = shim.table();
    match made {
        Ok(boot) => {
            table.sandbox = Sandbox::Made(boot.clone());
            let pod = pod(&mut table, id)?;
            pod.step(Step::Started(boot.clone()))?;
            tokio::spawn(watch(shim.clone(), id.clone(), boot.clone()));
            Ok(StartSandboxResponse {
                pid: boot.pid(),
                created_at: timestamp(pod.created),
                // containerd from 2.3 on shows it to its plugins.
                spec: MessageField::some(std::mem::take(&mut pod.spec)),
                ..Default::default()
            })
        }
        Err(error) => {
            table.sandbox = Sandbox::None;
            pod(&mut table, id)?.step(Step::End)?;
            Err(error)
        }
    }
}

/// Notes the sandbox's end, whoever brings it about, and has what is left taken
/// away.
async fn watch(shim: Arc<Shim>, id: String, boot: Arc<Boot>) {
    boot.ended().await;
    let ended = pod(&mut shim.table(), &id).and_then(|pod| pod.step(Step::End));
    debug_assert!(ended.is_ok(), "any state may end");
    shim.let_go(&boot);
}
