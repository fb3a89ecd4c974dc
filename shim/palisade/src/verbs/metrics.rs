//! `palisade metrics`: serves the metrics of the node's pods.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::{Common, Format};
use crate::exit::Failure;
use crate::metrics::{Address, Kept, Server};
use crate::node;

/// Flags of `palisade metrics`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Metrics {
    /// The address: an IP address and a port, or unix: and the path of a socket
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9760")]
    listen: Address,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) async fn metrics(common: &Common, flags: &Metrics) -> Result<ExitCode> {
    if common.format == Format::Json {
        let why = "--format json has no effect on metrics: expected none; whoever asks chooses \
                   between Prometheus' text and OpenMetrics by the header Accept";
        return Err(Failure::Failed(why.to_owned()).into());
    }
    let root = node::state_root(Some(common));
    let mut kept = Kept::new(&root, common.namespace.as_deref());
    let read = kept.refresh();
    if !rustix::process::geteuid().is_root() {
        read.context("palisade metrics reads the state of all pods: run it as root")?;
        eprintln!("palisade: not root: only pods of this user's containerd are served");
    } else {
        read?;
    }
    open_many()?;
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let server = Server::listen(&flags.listen, kept).await?;
    eprintln!("palisade: serves /metrics at {}", server.address()?);
    tokio::select! {
        served = server.serve() => served.map(|never| match never {}),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
    }
}

/// Lets this process open as many files as it may: it keeps the directories of all cgroups open.
fn open_many() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("raise the number of open files")
}
