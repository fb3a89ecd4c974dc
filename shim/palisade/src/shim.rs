//! Calls of a pod's shim, each with a bound: no command hangs on a shim or a boot that does not
//! answer.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::shim_async::TaskClient;
use operator_api::operator_ttrpc::OperatorClient;
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{self, Context};

use crate::exit::Failure;
use crate::node::Pod;

/// The time that a shim has to accept a connection, and to answer a question.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// A connection to the shim of one pod.
#[derive(Clone)]
pub(crate) struct Shim {
    pod: String,
    pid: Option<i32>,
    client: Client,
}

impl Shim {
    /// Connects to a pod's shim.
    ///
    /// # Errors
    /// The error says which shim cannot be reached, and why.
    pub(crate) async fn connect(pod: &Pod) -> Result<Self, Failure> {
        let failed =
            |why: String| Failure::NoAnswer(format!("the shim of the pod {}: {why}", pod.id));
        let Some(state) = &pod.state else {
            return Err(failed("the pod is being made or torn down".into()));
        };
        let path = state.address.strip_prefix("unix://").unwrap_or(&state.address);
        if path.is_empty() {
            return Err(failed("an older version, which has not recorded its address".into()));
        }
        if state.shim.is_some() && pod.shim().is_none() {
            return Err(failed("it is gone; containerd cleans up when it starts again".into()));
        }
        let connect = tokio::time::timeout(PATIENCE, UnixStream::connect(Path::new(path)));
        let stream = match connect.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(format!("connect {path}: {error}"))),
            Err(_) => return Err(failed(no_answer(PATIENCE))),
        };
        let client = Client::new(Socket::new(stream));
        Ok(Self { pod: pod.id.clone(), pid: pod.shim(), client })
    }

    /// Returns containerd's Task service.
    pub(crate) fn task(&self) -> TaskClient {
        TaskClient::new(self.client.clone())
    }

    /// Returns Palisade's own service.
    pub(crate) fn operator(&self) -> OperatorClient {
        OperatorClient::new(self.client.clone())
    }

    /// Waits for an answer for [`PATIENCE`].
    pub(crate) async fn ask<T>(
        &self,
        question: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(PATIENCE, question).await {
            Ok(answer) => answer.map_err(|error| self.failure(error)),
            Err(_) => Err(self.silent(PATIENCE)),
        }
    }

    /// Returns the error for a call that failed.
    pub(crate) fn failure(&self, error: ttrpc::Error) -> Failure {
        match error {
            ttrpc::Error::RpcStatus(status) if is_of_another_version(&status) => {
                Failure::Failed(format!(
                    "the shim of the pod {} is of another version than this command: {}",
                    self.pod,
                    status.message()
                ))
            }
            ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::NOT_FOUND => {
                Failure::NotFound(status.message().to_owned())
            }
            ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::DEADLINE_EXCEEDED => {
                Failure::NoAnswer(format!("the pod {}: {}", self.pod, status.message()))
            }
            ttrpc::Error::RpcStatus(status) => Failure::Failed(status.message().to_owned()),
            other => Failure::NoAnswer(format!("the shim of the pod {}: {other}", self.pod)),
        }
    }

    /// Returns the error for a shim that sent nothing for some time.
    pub(crate) fn silent(&self, patience: Duration) -> Failure {
        let process = self.pid.map(|pid| format!(" (PID {pid})")).unwrap_or_default();
        let why = no_answer(patience);
        Failure::NoAnswer(format!("the shim of the pod {}{process}: {why}", self.pod))
    }
}

/// Whether the shim does not know the service or the call.
fn is_of_another_version(status: &ttrpc::Status) -> bool {
    status.code() == ttrpc::Code::UNIMPLEMENTED
        || status.message().ends_with("service does not exist")
        || status.message().ends_with(" is not supported")
}

fn no_answer(patience: Duration) -> String {
    format!("no answer within {} seconds", patience.as_secs())
}

/// Returns the context of a call that the shim need not answer after [`PATIENCE`]. The client of
/// ttrpc has the same bound, a little later: [`Shim::ask`] knows the better sentence.
pub(crate) fn bounded() -> Context {
    context::with_duration(PATIENCE + Duration::from_secs(1))
}
