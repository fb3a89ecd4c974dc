//! ResizePty: the client's window has a new size.

use containerd_shim_protos::api::{Empty, ResizePtyRequest};
use sandbox_core::spec::plan::Terminal;

use super::lifecycle::State;
use super::table::Shim;
use crate::error::{Error, Result};

pub(super) fn resize(shim: &Shim, request: &ResizePtyRequest) -> Result<Empty> {
    let mut table = shim.table();
    let process = table.process(&request.id, &request.exec_id)?;
    if process.state() == State::Stopped {
        return Err(Error::state("cannot resize the terminal of a stopped process"));
    }
    let side = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let size = Terminal { width: side(request.width), height: side(request.height) };
    // An exec that has not been started: it is born with that size.
    if let Some(terminal) = process.plan.as_mut().and_then(|plan| plan.terminal.as_mut()) {
        *terminal = size;
    }
    process.resized = Some(size);
    process.io.resize(size)?;
    Ok(Empty::default())
}
