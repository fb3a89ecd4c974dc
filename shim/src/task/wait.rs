//! Wait: waits until a process has ended. Any number of clients may wait, and
//! may come back after they lost their connection.

use containerd_shim_protos::api::{WaitRequest, WaitResponse};

use super::container::process_id;
use super::shim::Shim;
use crate::error::{Error, Result};
use crate::exit::timestamp;

pub(super) async fn wait(shim: &Shim, request: &WaitRequest) -> Result<WaitResponse> {
    let id = process_id(&request.id, &request.exec_id);
    let mut exit = shim.table().process(&id)?.exit.subscribe();
    let deleted = || Error::not_found(format!("{} was deleted before it ran", request.id));
    let exit = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
    let exit = exit.ok_or_else(deleted)?;
    Ok(WaitResponse {
        exit_status: exit.status,
        exited_at: timestamp(exit.at),
        ..Default::default()
    })
}
