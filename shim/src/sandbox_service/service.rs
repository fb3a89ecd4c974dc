//! `containerd.runtime.sandbox.v1.Sandbox`: one line for each request, each of which has a
//! file of its own.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use containerd_shim_protos::ttrpc::Result as TtrpcResult;
use containerd_shim_protos::ttrpc::asynchronous::{Service, TtrpcContext};
use sandbox_core::sandbox::counters::Operation;

use super::{create, metrics, platform, shutdown, start, status, stop, wait};
use crate::task::{Counted, Shim, to_the_end};

struct SandboxService(Arc<Shim>);

/// Returns the service with its name.
pub(crate) fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    create_sandbox(Arc::new(SandboxService(shim.clone())))
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        r: CreateSandboxRequest,
    ) -> TtrpcResult<CreateSandboxResponse> {
        Ok(create::create(&self.0, r)?)
    }
    async fn start_sandbox(
        &self,
        context: &TtrpcContext,
        r: StartSandboxRequest,
    ) -> TtrpcResult<StartSandboxResponse> {
        let span = self.0.spans.request("StartSandbox", context, &r.sandbox_id);
        let counted = Counted::begin(Operation::CreatePod, &self.0);
        to_the_end(&self.0, span.record(counted.count(start::start(self.0.clone(), r)))).await
    }
    async fn platform(
        &self,
        _: &TtrpcContext,
        r: PlatformRequest,
    ) -> TtrpcResult<PlatformResponse> {
        Ok(platform::platform(&self.0, &r)?)
    }
    async fn stop_sandbox(
        &self,
        context: &TtrpcContext,
        r: StopSandboxRequest,
    ) -> TtrpcResult<StopSandboxResponse> {
        let span = self.0.spans.request("StopSandbox", context, &r.sandbox_id);
        to_the_end(&self.0, span.record(stop::stop(self.0.clone(), r))).await
    }
    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        r: WaitSandboxRequest,
    ) -> TtrpcResult<WaitSandboxResponse> {
        Ok(wait::wait(&self.0, &r).await?)
    }
    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        r: SandboxStatusRequest,
    ) -> TtrpcResult<SandboxStatusResponse> {
        Ok(status::status(&self.0, &r)?)
    }
    async fn ping_sandbox(&self, _: &TtrpcContext, r: PingRequest) -> TtrpcResult<PingResponse> {
        Ok(status::ping(&self.0, &r)?)
    }
    async fn shutdown_sandbox(
        &self,
        context: &TtrpcContext,
        r: ShutdownSandboxRequest,
    ) -> TtrpcResult<ShutdownSandboxResponse> {
        let span = self.0.spans.request("ShutdownSandbox", context, &r.sandbox_id);
        to_the_end(&self.0, span.record(shutdown::shutdown(self.0.clone(), r))).await
    }
    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        r: SandboxMetricsRequest,
    ) -> TtrpcResult<SandboxMetricsResponse> {
        Ok(metrics::metrics(&self.0, &r)?)
    }
}
