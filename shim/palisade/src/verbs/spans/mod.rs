//! `palisade spans`: how long the requests of containerd took, for OpenTelemetry.

mod export;
mod otlp;

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use operator_api::operator::{Span, SpansRequest};
use tokio::sync::mpsc;
use tokio::time::timeout;
use ttrpc::context;

use self::export::Endpoint;
use crate::arguments::{Common, Format, names};
use crate::exit::Failure;
use crate::node::watch::Watch;
use crate::node::{Node, Pod, state_root};
use crate::shim::{PATIENCE, Shim};
use crate::{select, show};

/// The spans that wait to be exported, of all pods.
const WAITING: usize = 1024;

/// The time in which spans gather for one request to the collector, and the most of them.
const BATCH: (Duration, usize) = (Duration::from_secs(1), 512);

/// The time within which a shim sends something: it does so every 20 seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// Shows or exports the spans of requests to shims: Create, Start, Exec, Delete and others, with
/// their steps. Shims keep spans only with the option `spans = true`, the newest 256 each; a pod
/// has them from its own Create on, whenever this command is started.
///
/// A span joins the trace that containerd has sent with the request (containerd's own tracing must
/// be on: the plugin io.containerd.tracing.processor.v1.otlp), and begins one otherwise.
///
/// Ends with Ctrl-C, or when the pod of --pod has ended.
#[derive(Clone, Debug, Args)]
pub(crate) struct Spans {
    /// Only the spans of this pod: an ID, the beginning of one, or a name
    #[arg(long, value_name = "ID", add = ArgValueCompleter::new(names))]
    pod: Option<String>,
    /// Sends them to a collector that takes OTLP over HTTP, as in
    /// http://127.0.0.1:4318/v1/traces, instead of printing them
    #[arg(long, value_name = "URL", value_parser = Endpoint::parse)]
    export: Option<Endpoint>,
}

/// A span, and the pod whose shim has sent it.
#[derive(Clone, Debug)]
struct Sent {
    namespace: String,
    pod: String,
    span: Span,
}

/// Follows the pods.
pub(crate) async fn spans(common: &Common, flags: &Spans) -> Result<ExitCode> {
    let only = match &flags.pod {
        None => None,
        Some(name) => {
            let node = Node::of(common)?;
            let pod = select::find(&node, name)?.pod();
            Some((pod.namespace.clone(), pod.id.clone()))
        }
    };
    let (sender, receiver) = mpsc::channel(WAITING);
    let follow = follow(common, only, sender);
    let pass_on = pass_on(common, flags.export.as_ref(), receiver);
    let ((), ()) = tokio::try_join!(follow, pass_on)?;
    Ok(ExitCode::SUCCESS)
}

/// Follows all pods, also those that come later, or one until it ends.
async fn follow(
    common: &Common,
    only: Option<(String, String)>,
    sender: mpsc::Sender<Sent>,
) -> Result<()> {
    let mut watch = Watch::new(&state_root(Some(common)))?;
    let mut followed = HashSet::new();
    loop {
        watch.cover()?;
        let node = Node::of(common)?;
        for pod in node.pods.into_iter().filter(|pod| pod.state.is_some()) {
            let key = (pod.namespace.clone(), pod.id.clone());
            match &only {
                Some(only) if *only == key => return Ok(of_one(&pod, &sender).await?),
                Some(_) => {}
                None if followed.insert(key) => {
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        if let Err(failure) = of_one(&pod, &sender).await {
                            eprintln!("palisade: {failure}");
                        }
                    });
                }
                None => {}
            }
        }
        if let Some((_, id)) = only {
            return Err(Failure::NotFound(format!("the pod {id} has ended")).into());
        }
        watch.changed().await?;
    }
}

/// Passes on the spans of one pod, until its shim ends.
async fn of_one(pod: &Pod, sender: &mpsc::Sender<Sent>) -> Result<(), Failure> {
    let shim = Shim::connect(pod).await?;
    let unbounded = context::with_duration(Duration::ZERO);
    let mut stream = shim.ask(shim.operator().spans(unbounded, &SpansRequest::new())).await?;
    let mut patience = PATIENCE;
    loop {
        let Ok(next) = timeout(patience, stream.recv()).await else {
            return Err(shim.silent(patience));
        };
        let Some(span) = next.map_err(|error| shim.failure(error))? else { return Ok(()) };
        patience = SILENCE;
        if span.missed > 0 {
            eprintln!("palisade: the pod {}: {} spans are no longer kept", pod.id, span.missed);
        }
        if span.id.is_empty() {
            continue;
        }
        let sent = Sent { namespace: pod.namespace.clone(), pod: pod.id.clone(), span };
        if sender.send(sent).await.is_err() {
            return Ok(());
        }
    }
}

/// Prints spans or exports them, until no pod is followed any more.
async fn pass_on(
    common: &Common,
    endpoint: Option<&Endpoint>,
    mut receiver: mpsc::Receiver<Sent>,
) -> Result<()> {
    let Some(endpoint) = endpoint else {
        while let Some(sent) = receiver.recv().await {
            match common.format {
                Format::Json => show::line(&otlp::one(&sent).to_string())?,
                Format::Table => show::line(&text(&sent))?,
            }
        }
        return Ok(());
    };
    while let Some(first) = receiver.recv().await {
        let mut batch = vec![first];
        let gather = async {
            while batch.len() < BATCH.1
                && let Some(sent) = receiver.recv().await
            {
                batch.push(sent);
            }
        };
        let _ = timeout(BATCH.0, gather).await;
        endpoint.send(&otlp::request(&batch)).await?;
    }
    Ok(())
}

/// Returns the line for people: when, how long, what.
fn text(sent: &Sent) -> String {
    let span = &sent.span;
    let milliseconds = span.ended.saturating_sub(span.begun) as f64 / 1e6;
    let step =
        if span.parent.is_empty() || span.error.is_empty() && is_step(span) { "  " } else { "" };
    let error = match span.error.as_str() {
        "" => String::new(),
        error => format!("  {}", error.escape_debug()),
    };
    let (pod, name) = (select::short(&sent.pod), &span.name);
    let container = select::short(&span.container);
    format!("{milliseconds:>10.3} ms  {pod}/{container}  {step}{name}{error}")
}

/// Whether a span is a step of a request: requests have the names of calls.
fn is_step(span: &Span) -> bool {
    span.name.starts_with(|first: char| first.is_ascii_lowercase())
}
