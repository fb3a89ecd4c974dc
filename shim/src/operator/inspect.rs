//! Inspect: returns how a container, or all of the pod, was planned.

use operator_api::operator::{InspectRequest, InspectResponse};

use crate::error::Result;
use crate::task::{self, Shim};

pub(super) fn inspect(shim: &Shim, request: &InspectRequest) -> Result<InspectResponse> {
    let json = task::inspect(shim, &request.id, request.values)?.to_string();
    Ok(InspectResponse { json, ..Default::default() })
}
