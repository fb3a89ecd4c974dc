//! State: returns the status of a process.

use containerd_shim_protos::api::Status;
use containerd_shim_protos::api::{StateRequest, StateResponse};
use containerd_shim_protos::protobuf::MessageField;

use super::container::process_id;
use super::shim::Shim;
use crate::error::Result;
use crate::exit::timestamp;

pub(super) fn state(shim: &Shim, request: &StateRequest) -> Result<StateResponse> {
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    let bundle = container.bundle.clone();
    let is_frozen = container.init.state.is_frozen();
    let id = process_id(&request.id, &request.exec_id);
    let process = container.process(id.exec.as_deref())?;
    // A process that is frozen with its container is shown as paused.
    let status = match is_frozen && process.state.is_alive() && !process.state.has_ended() {
        true => Status::PAUSED,
        false => process.state.shown(),
    };
    let exit = process.state.known_exit();
    let stdio = &process.stdio;
    Ok(StateResponse {
        id: id.exec.unwrap_or(id.container),
        bundle,
        pid: process.pid,
        status: status.into(),
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        terminal: stdio.terminal,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map_or_else(MessageField::none, |exit| timestamp(exit.at)),
        exec_id: request.exec_id.clone(),
        ..Default::default()
    })
}
