//! The service, with one line for each request.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::ttrpc::Result as TtrpcResult;
use containerd_shim_protos::ttrpc::asynchronous::{ServerStreamSender, Service, TtrpcContext};
use operator_api::operator::{
    EndHeapProfileRequest, EndHeapProfileResponse, Event, EventsRequest, ExecDetachedRequest,
    ExecDetachedResponse, HeapPart, HeapProfileRequest, InspectRequest, InspectResponse,
    SetLogLevelRequest, SetLogLevelResponse, Span, SpansRequest,
};
use operator_api::operator_ttrpc::{Operator, create_operator};

use super::{events, exec_detached, heap_profile, inspect, set_log_level, spans};
use crate::error::Error;
use crate::task::{Shim, to_the_end};

struct OperatorService(Arc<Shim>);

/// Returns the service under its name.
pub(crate) fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    create_operator(Arc::new(OperatorService(shim.clone())))
}

#[async_trait]
impl Operator for OperatorService {
    async fn inspect(
        &self,
        _: &TtrpcContext,
        request: InspectRequest,
    ) -> TtrpcResult<InspectResponse> {
        Ok(inspect::inspect(&self.0, &request)?)
    }
    async fn exec_detached(
        &self,
        _: &TtrpcContext,
        request: ExecDetachedRequest,
    ) -> TtrpcResult<ExecDetachedResponse> {
        to_the_end(&self.0, exec_detached::exec_detached(self.0.clone(), request)).await
    }
    async fn events(
        &self,
        _: &TtrpcContext,
        _: EventsRequest,
        client: ServerStreamSender<Event>,
    ) -> TtrpcResult<()> {
        events::events(&self.0, &client).await;
        Ok(())
    }
    async fn spans(
        &self,
        _: &TtrpcContext,
        _: SpansRequest,
        client: ServerStreamSender<Span>,
    ) -> TtrpcResult<()> {
        Ok(spans::spans(&self.0, &client).await?)
    }

    async fn set_log_level(
        &self,
        _: &TtrpcContext,
        request: SetLogLevelRequest,
    ) -> TtrpcResult<SetLogLevelResponse> {
        to_the_end(&self.0, set_log_level::set_log_level(self.0.clone(), request)).await
    }

    async fn heap_profile(
        &self,
        _: &TtrpcContext,
        request: HeapProfileRequest,
        client: ServerStreamSender<HeapPart>,
    ) -> TtrpcResult<()> {
        Ok(heap_profile::heap_profile(self.0.clone(), request, client).await?)
    }

    async fn end_heap_profile(
        &self,
        _: &TtrpcContext,
        _: EndHeapProfileRequest,
    ) -> TtrpcResult<EndHeapProfileResponse> {
        if !self.0.heap_profile.end() {
            return Err(Error::state("no heap profile of this pod is being taken").into());
        }
        Ok(EndHeapProfileResponse::default())
    }
}
