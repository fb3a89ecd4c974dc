//! CloseIO: the client will write no more to a process's standard input.

use containerd_shim_protos::api::{CloseIORequest, Empty};

use super::table::Shim;
use crate::error::Result;

pub(super) fn close_io(shim: &Shim, request: &CloseIORequest) -> Result<Empty> {
    let mut table = shim.table();
    let process = table.process(&request.id, &request.exec_id)?;
    if request.stdin {
        process.io.close_stdin();
        process.stdin_closed = true;
    }
    Ok(Empty::default())
}
