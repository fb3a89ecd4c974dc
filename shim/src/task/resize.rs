//! ResizePty: sets the size of a terminal to that of the client's window.

use containerd_shim_protos::api::{Empty, ResizePtyRequest};
use sandbox_core::spec::plan::Terminal;

use super::container::process_id;
use super::shim::Shim;
use crate::error::Result;

pub(super) fn resize(shim: &Shim, request: &ResizePtyRequest) -> Result<Empty> {
    let mut table = shim.table();
    let process = table.process(&process_id(&request.id, &request.exec_id))?;
    let side = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let size = Terminal { width: side(request.width), height: side(request.height) };
    process.resize(size)?;
    Ok(Empty::default())
}
