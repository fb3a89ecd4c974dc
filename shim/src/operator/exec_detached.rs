//! ExecDetached: runs a process in a container that no client waits for.

use std::sync::Arc;

use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use operator_api::operator::{ExecDetachedRequest, ExecDetachedResponse};

use crate::error::Result;
use crate::task::{self, Shim};

pub(super) async fn exec_detached(
    shim: Arc<Shim>,
    request: ExecDetachedRequest,
) -> Result<ExecDetachedResponse> {
    let request = ExecProcessRequest {
        id: request.id,
        exec_id: request.exec_id,
        spec: Some(Any { value: request.process, ..Default::default() }).into(),
        ..Default::default()
    };
    let pid = task::exec_detached(shim, request).await?;
    Ok(ExecDetachedResponse { pid, ..Default::default() })
}
