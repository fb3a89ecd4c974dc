//! State: what a process is doing.

use containerd_shim_protos::api::{StateRequest, StateResponse};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

use super::lifecycle::State;
use super::table::Shim;
use crate::error::Result;

pub(super) fn state(shim: &Shim, request: &StateRequest) -> Result<StateResponse> {
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    let bundle = container.bundle.clone();
    let frozen = container.init.state() == State::Paused;
    let process = container.process(&request.exec_id)?;
    // What is frozen with its container shows it.
    let state = if frozen && process.state().is_alive() { State::Paused } else { process.state() };
    let exit = process.exited();
    let stdio = &process.stdio;
    let id = if request.exec_id.is_empty() { &request.id } else { &request.exec_id };
    Ok(StateResponse {
        id: id.clone(),
        bundle,
        pid: process.pid,
        status: containerd_shim_protos::api::Status::from(state).into(),
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        terminal: stdio.terminal,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: MessageField(exit.map(|exit| Box::new(Timestamp::from(exit.at)))),
        exec_id: request.exec_id.clone(),
        ..Default::default()
    })
}
