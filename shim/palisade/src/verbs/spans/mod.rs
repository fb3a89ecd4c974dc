//! `palisade spans`: how long the requests of containerd took, for OpenTelemetry.

mod export;
mod otlp;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use operator_api::operator::Span;
use tokio::time::timeout;

use self::export::Endpoint;
use crate::arguments::{Common, Format, names};
use crate::exit::Failure;
use crate::follow::{Followed, Key, Told, What};
use crate::{select, show};

/// The time in which spans gather for one request to the collector, and the most of them.
const BATCH: (Duration, usize) = (Duration::from_secs(1), 512);

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
    pod: Key,
    span: Span,
}

/// Follows the pods.
pub(crate) async fn spans(common: &Common, flags: &Spans) -> Result<ExitCode> {
    let mut followed = Followed::begin(common, flags.pod.as_deref())?;
    let Some(endpoint) = &flags.export else {
        while let Some(sent) = next(&mut followed, flags).await? {
            match common.format {
                Format::Json => show::line(&otlp::one(&sent).to_string())?,
                Format::Table => show::line(&text(&sent))?,
            }
        }
        return Ok(ExitCode::SUCCESS);
    };
    while let Some(first) = next(&mut followed, flags).await? {
        let mut batch = vec![first];
        let gather = async {
            while batch.len() < BATCH.1
                && let Some(sent) = next(&mut followed, flags).await?
            {
                batch.push(sent);
            }
            Ok::<_, anyhow::Error>(())
        };
        let gathered = timeout(BATCH.0, gather).await;
        endpoint.send(&otlp::request(&batch)).await?;
        gathered.unwrap_or(Ok(()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for the next span. Says on the way which shims sent none, and why. `None` once the only
/// pod has ended.
///
/// # Errors
/// The error says why the only pod cannot be followed.
async fn next(followed: &mut Followed<'_, Span>, flags: &Spans) -> Result<Option<Sent>> {
    while let Some(Told { pod, what }) = followed.next().await? {
        match what {
            What::Sent(span) => return Ok(Some(Sent { pod, span })),
            What::Missed(number) => {
                eprintln!("palisade: the pod {}: {number} spans are no longer kept", pod.id);
            }
            What::Died => {
                let why = format!("the shim of the pod {} has died; it sends no more", pod.id);
                report(Failure::NoAnswer(why), flags)?;
            }
            What::NoAnswer(failure) => report(failure, flags)?,
            What::Begun | What::Ended => {}
        }
    }
    Ok(None)
}

/// Says why a pod is followed no more: that ends this command if it is the only one.
fn report(failure: Failure, flags: &Spans) -> Result<()> {
    if flags.pod.is_some() {
        return Err(failure.into());
    }
    eprintln!("palisade: {failure}");
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
    let (pod, name) = (select::short(&sent.pod.id), &span.name);
    let container = select::short(&span.container);
    format!("{milliseconds:>10.3} ms  {pod}/{container}  {step}{name}{error}")
}

/// Whether a span is a step of a request: requests have the names of calls.
fn is_step(span: &Span) -> bool {
    span.name.starts_with(|first: char| first.is_ascii_lowercase())
}
