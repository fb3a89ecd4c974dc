//! SandboxStatus, with CRI's names of states, and PingSandbox.

use std::collections::HashMap;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api::{
    PingRequest, PingResponse, SandboxStatusRequest, SandboxStatusResponse,
};
use serde_json::json;

use crate::error::Result;
use crate::exit::timestamp;
use crate::task::{Pod, PodState, Shim};

/// `PodSandboxState` of CRI.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

pub(super) fn status(shim: &Shim, request: &SandboxStatusRequest) -> Result<SandboxStatusResponse> {
    let mut table = shim.table();
    let pod = table.pod(&request.sandbox_id)?;
    let (state, pid, exited_at) = match pod.state() {
        PodState::Ready(boot) => (READY, boot.pid(), MessageField::none()),
        PodState::Created(_) | PodState::Starting => (NOT_READY, 0, MessageField::none()),
        PodState::Ended(exit) => (NOT_READY, 0, timestamp(exit.at)),
    };
    Ok(SandboxStatusResponse {
        sandbox_id: request.sandbox_id.clone(),
        pid,
        state: state.to_string(),
        info: if request.verbose { info(pod, pid) } else { HashMap::new() },
        created_at: timestamp(pod.created),
        exited_at,
        ..Default::default()
    })
}

/// Returns what `crictl inspectp` shows beyond the API, with the key and the names of
/// containerd's own sandboxes (`internal/cri/types/sandbox_info.go`).
fn info(pod: &Pod, pid: u32) -> HashMap<String, String> {
    let info = json!({
        "pid": pid,
        "processStatus": pod.state().name(),
        "runtimeType": crate::RUNTIME,
    });
    HashMap::from([("info".to_string(), info.to_string())])
}

/// Succeeds if the sandbox runs.
pub(super) fn ping(shim: &Shim, request: &PingRequest) -> Result<PingResponse> {
    shim.table().pod(&request.sandbox_id)?.files()?;
    Ok(PingResponse::default())
}
