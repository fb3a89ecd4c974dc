//! Requests to a containerd that may be killed meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::Client;
use containerd_client::tonic::metadata::MetadataValue;
use containerd_client::tonic::{Code, Request, Response, Status};
use integration::containerd::Containerd;
use integration::wait;
use tokio::runtime::Runtime;

use crate::history::Life;
use crate::world::World;

/// A client of one containerd.
#[derive(Debug)]
pub struct Api<'a> {
    /// The daemon.
    pub daemon: &'a Containerd,
    /// What all clients share.
    pub world: Arc<World>,
    address: PathBuf,
    runtime: Runtime,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// It was refused.
    Refused(Status),
    /// containerd ended meanwhile: it may be done or not.
    Gone,
    /// Nothing came in time.
    Silent,
}

impl Failure {
    /// Whether there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::NotFound)
    }

    /// Returns it in words.
    pub fn words(&self) -> String {
        match self {
            Self::Refused(status) => format!("{:?}: {}", status.code(), status.message()),
            Self::Gone => "containerd ended".to_owned(),
            Self::Silent => "no answer".to_owned(),
        }
    }
}

impl<'a> Api<'a> {
    /// A client, which connects anew for each request, as the daemon may be another by then.
    pub fn new(daemon: &'a Containerd, world: &Arc<World>) -> Self {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().expect("start a runtime");
        Self { daemon, world: Arc::clone(world), address: daemon.address(), runtime }
    }

    /// Asks, and waits for the answer. Takes note of both.
    pub fn ask<Q, A>(
        &self,
        life: &Life,
        what: &str,
        message: Q,
        ask: impl AsyncFn(Client, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Failure> {
        self.ask_within(life, what, 2 * wait::deadline(), message, ask)
    }

    /// Asks, and gives up after some time.
    pub fn ask_within<Q, A>(
        &self,
        life: &Life,
        what: &str,
        time: Duration,
        message: Q,
        ask: impl AsyncFn(Client, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Failure> {
        life.note(what);
        self.world.count(what);
        let mut request = Request::new(message);
        let namespace = MetadataValue::try_from(self.daemon.namespace()).expect("an ASCII name");
        request.metadata_mut().insert("containerd-namespace", namespace);
        let answered = self.runtime.block_on(async {
            let client = self.connect().await;
            match tokio::time::timeout(time, ask(client, request)).await {
                Ok(Ok(answer)) => Ok(answer.into_inner()),
                Ok(Err(status)) if is_gone(&status) => Err(Failure::Gone),
                Ok(Err(status)) => Err(Failure::Refused(status)),
                Err(_) => Err(Failure::Silent),
            }
        });
        if let Err(failure) = &answered {
            life.note(format!("{what}: {}", failure.words()));
        }
        answered
    }

    /// Connects; a daemon that was killed is back soon.
    async fn connect(&self) -> Client {
        let connected = tokio::time::timeout(2 * wait::deadline(), async {
            loop {
                match Client::from_path(&self.address).await {
                    Ok(client) => break client,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        connected.await.expect("containerd takes connections")
    }

    /// Takes note of a wrong answer, unless the life may answer anything.
    pub fn expect(&self, life: &Life, holds: bool, what: impl FnOnce() -> String) -> bool {
        if !holds && !life.may_answer_anything(&self.world) {
            self.world.wrong(life, &what());
        }
        holds
    }
}

/// Whether the connection ended, rather than containerd answered. It answers so of its own, too,
/// while it ends, and of a shim whose connection ended.
fn is_gone(status: &Status) -> bool {
    let of_transport = ["transport error", "connection error", "h2 protocol error"];
    status.code() == Code::Unavailable && !status.message().contains("ttrpc")
        || of_transport.iter().any(|words| status.message().contains(words))
}
