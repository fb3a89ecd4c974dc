//! CloseIO: the client will write no more to a process's standard input.

use containerd_shim_protos::api::{CloseIORequest, Empty};

use super::container::process_id;
use super::shim::Shim;
use crate::error::Result;

pub(super) fn close_io(shim: &Shim, request: &CloseIORequest) -> Result<Empty> {
    let mut table = shim.table();
    let process = table.process(&process_id(&request.id, &request.exec_id))?;
    if request.stdin {
        process.close_stdin();
    }
    Ok(Empty::default())
}
