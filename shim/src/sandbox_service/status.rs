//! SandboxStatus, with CRI's names of states, and PingSandbox.

use std::collections::HashMap;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api::{
    PingRequest, PingResponse, SandboxStatusRequest, SandboxStatusResponse,
};
use serde_json::json;

use super::{Pod, State, pod, timestamp};
use crate::error::Result;
use crate::task::Shim;

/// `PodSandboxState` of CRI.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

pub(super) fn status(shim: &Shim, request: &SandboxStatusRequest) -> Result<SandboxStatusResponse> {
    let mut table = shim.table();
    let pod = pod(&mut table, &request.sandbox_id)?;
    let (state, pid) = match &pod.state {
        State::Ready(boot) => (READY, boot.pid()),
        State::Created(_) | State::Starting | State::Ended => (NOT_READY, 0),
    };
    let exit = *pod.exit.borrow();
    Ok(SandboxStatusResponse {
        sandbox_id: request.sandbox_id.clone(),
        pid,
        state: state.to_string(),
        info: if request.verbose { info(pod, pid) } else { HashMap::new() },
        created_at: timestamp(pod.created),
        exited_at: exit.map_or_else(MessageField::none, |exit| timestamp(exit.at)),
        ..Default::default()
    })
}

/// Returns what `crictl inspectp` shows beyond the API, with the key and the names of
/// containerd's own sandboxes (`internal/cri/types/sandbox_info.go`).
fn info(pod: &Pod, pid: u32) -> HashMap<String, String> {
    let info = json!({
        "pid": pid,
        "processStatus": pod.state.name(),
        "runtimeType": crate::RUNTIME,
    });
    HashMap::from([("info".to_string(), info.to_string())])
}

/// Succeeds if the sandbox is alive.
pub(super) fn ping(shim: &Shim, request: &PingRequest) -> Result<PingResponse> {
    pod(&mut shim.table(), &request.sandbox_id)?.files()?;
    Ok(PingResponse::default())
}
