//! containerd's task service (`containerd.task.v3.Task`, and v2, which is the
//! same under another name). Each request has one line here and a file of its
//! own.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::Result as TtrpcResult;
use containerd_shim_protos::ttrpc::asynchronous::{Service, TtrpcContext};
use sandbox_core::sandbox::counters::Operation;

use super::count::Counted;
use super::shim::Shim;
use super::{
    checkpoint, close_io, connect, create, delete, exec, kill, pause, pids, resize, resume,
    shutdown, start, state, stats, update, wait,
};
use crate::error::{Error, Result};
use crate::spans::Request;

struct TaskService(Arc<Shim>);

/// Returns the task service under both of its names: containerd 1.x uses v2,
/// 2.x uses v3.
pub(crate) fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    let service = || create_task(Arc::new(TaskService(shim.clone())));
    let older =
        service().into_iter().map(|(name, methods)| (name.replace(".v3.", ".v2."), methods));
    service().into_iter().chain(older).collect()
}

impl TaskService {
    /// Runs a request to its end: see [`to_the_end`].
    async fn run<F, T>(&self, span: Request, request: impl FnOnce(Arc<Shim>) -> F) -> TtrpcResult<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        to_the_end(&self.0, span.record(request(self.0.clone()))).await
    }

    /// Runs a request that can be run again, with the reserve of descriptors if there are no
    /// others.
    fn with_descriptors<T>(&self, request: impl Fn(&Arc<Shim>) -> Result<T>) -> Result<T> {
        let descriptors = &self.0.descriptors;
        match request(&self.0) {
            Err(error) if error.is_for_want_of_descriptors() => {
                descriptors.run_out();
                request(&self.0).map_err(|error| descriptors.explain(error))
            }
            outcome => outcome,
        }
    }

    /// Begins the span of a request.
    fn span(&self, name: &'static str, context: &TtrpcContext, container: &str) -> Request {
        self.0.spans.request(name, context, container)
    }
}

/// Runs a request to its end, even if its client goes: half a Create is worse
/// than none.
pub(crate) async fn to_the_end<T: Send + 'static>(
    shim: &Shim,
    request: impl Future<Output = Result<T>> + Send + 'static,
) -> TtrpcResult<T> {
    let counted = shim.requests.add();
    let outcome = tokio::spawn(async move {
        let outcome = request.await;
        drop(counted);
        outcome
    });
    let outcome = outcome.await;
    let crashed = |e| Error::internal(format!("the shim failed at this request: {e}"));
    Ok(outcome.map_err(crashed)??)
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, r: StateRequest) -> TtrpcResult<StateResponse> {
        Ok(state::state(&self.0, &r)?)
    }
    async fn create(
        &self,
        context: &TtrpcContext,
        r: CreateTaskRequest,
    ) -> TtrpcResult<CreateTaskResponse> {
        let span = self.span("Create", context, &r.id);
        let counted = Counted::begin_create(&self.0);
        self.run(span, |shim| counted.count(create::create(shim, r))).await
    }
    async fn start(&self, context: &TtrpcContext, r: StartRequest) -> TtrpcResult<StartResponse> {
        let span = self.span("Start", context, &r.id);
        let is_init = r.exec_id.is_empty();
        let operation = if is_init { Operation::Start } else { Operation::Exec };
        let counted = Counted::begin(operation, &self.0);
        self.run(span, |shim| counted.count(start::start(shim, r))).await
    }
    async fn delete(
        &self,
        context: &TtrpcContext,
        r: DeleteRequest,
    ) -> TtrpcResult<DeleteResponse> {
        let span = self.span("Delete", context, &r.id);
        let counted = Counted::begin(Operation::Delete, &self.0);
        self.run(span, |shim| counted.count(delete::delete(shim, r))).await
    }
    async fn pids(&self, _: &TtrpcContext, r: PidsRequest) -> TtrpcResult<PidsResponse> {
        Ok(self.with_descriptors(|shim| pids::pids(shim, &r))?)
    }
    async fn pause(&self, context: &TtrpcContext, r: PauseRequest) -> TtrpcResult<Empty> {
        let span = self.span("Pause", context, &r.id);
        let counted = Counted::begin(Operation::Pause, &self.0);
        let paused = async { self.with_descriptors(|shim| pause::pause(shim, &r)) };
        Ok(span.record(counted.count(paused)).await?)
    }
    async fn resume(&self, context: &TtrpcContext, r: ResumeRequest) -> TtrpcResult<Empty> {
        let span = self.span("Resume", context, &r.id);
        let counted = Counted::begin(Operation::Pause, &self.0);
        let resumed = async { self.with_descriptors(|shim| resume::resume(shim, &r)) };
        Ok(span.record(counted.count(resumed)).await?)
    }
    async fn checkpoint(
        &self,
        context: &TtrpcContext,
        r: CheckpointTaskRequest,
    ) -> TtrpcResult<Empty> {
        let span = self.span("Checkpoint", context, &r.id);
        self.run(span, |shim| checkpoint::checkpoint(shim, r)).await
    }
    async fn kill(&self, context: &TtrpcContext, r: KillRequest) -> TtrpcResult<Empty> {
        let span = self.span("Kill", context, &r.id);
        Ok(span.record(async { self.with_descriptors(|shim| kill::kill(shim, &r)) }).await?)
    }
    async fn exec(&self, context: &TtrpcContext, r: ExecProcessRequest) -> TtrpcResult<Empty> {
        let span = self.span("Exec", context, &r.id);
        Ok(span.record(async { exec::exec(&self.0, r) }).await?)
    }
    async fn resize_pty(&self, _: &TtrpcContext, r: ResizePtyRequest) -> TtrpcResult<Empty> {
        Ok(resize::resize(&self.0, &r)?)
    }
    async fn close_io(&self, _: &TtrpcContext, r: CloseIORequest) -> TtrpcResult<Empty> {
        Ok(close_io::close_io(&self.0, &r)?)
    }
    async fn update(&self, context: &TtrpcContext, r: UpdateTaskRequest) -> TtrpcResult<Empty> {
        let span = self.span("Update", context, &r.id);
        let counted = Counted::begin(Operation::Update, &self.0);
        let updated = async { self.with_descriptors(|shim| update::update(shim, &r)) };
        Ok(span.record(counted.count(updated)).await?)
    }
    async fn wait(&self, _: &TtrpcContext, r: WaitRequest) -> TtrpcResult<WaitResponse> {
        Ok(wait::wait(&self.0, &r).await?)
    }
    async fn stats(&self, _: &TtrpcContext, r: StatsRequest) -> TtrpcResult<StatsResponse> {
        Ok(self.with_descriptors(|shim| stats::stats(shim, &r))?)
    }
    async fn connect(&self, _: &TtrpcContext, r: ConnectRequest) -> TtrpcResult<ConnectResponse> {
        Ok(connect::connect(&self.0, &r))
    }
    async fn shutdown(&self, context: &TtrpcContext, r: ShutdownRequest) -> TtrpcResult<Empty> {
        let span = self.span("Shutdown", context, &r.id);
        self.run(span, |shim| shutdown::shutdown(shim, r)).await
    }
}
