//! Spans of OpenTelemetry: how long a request took, and each of its steps (option `spans`).
//!
//! A span joins the trace that containerd has sent with the request (`traceparent` of W3C's Trace
//! Context), and begins one of its own where there is none. The newest [`KEPT`] are kept until
//! `palisade spans` takes them, which exports them: nothing here opens a connection. With the
//! option off, a request costs one comparison.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use containerd_shim_protos::ttrpc::asynchronous::TtrpcContext;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::sync::watch;

use crate::error::{Error, Result};

/// The number of spans that are kept: those of some twenty containers.
const KEPT: usize = 256;

tokio::task_local! {
    /// The request that a task carries out.
    static REQUEST: Option<Parent>;
}

/// One span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) trace: [u8; 16],
    pub(crate) id: [u8; 8],
    /// All zero if there is none.
    pub(crate) parent: [u8; 8],
    pub(crate) name: &'static str,
    /// The container, if the request named one.
    pub(crate) container: String,
    pub(crate) begun: SystemTime,
    pub(crate) ended: SystemTime,
    /// The message of the error with which the request was answered.
    pub(crate) error: Option<String>,
}

/// The spans that ended last.
#[derive(Clone, Default)]
pub(crate) struct Spans(Option<Arc<Kept>>);

#[derive(Default)]
struct Kept {
    ended: Mutex<VecDeque<Span>>,
    /// The number of spans that ever ended.
    ever: watch::Sender<u64>,
}

/// What a step belongs to.
#[derive(Clone)]
struct Parent {
    kept: Arc<Kept>,
    trace: [u8; 16],
    id: [u8; 8],
    container: String,
}

/// A request, whose span is kept if that is wanted.
pub(crate) struct Request(Option<(Parent, [u8; 8], &'static str, SystemTime)>);

/// A step of a request, which ends when this is dropped.
pub(crate) struct Step(Option<(Parent, &'static str, SystemTime)>);

impl Spans {
    /// Keeps spans, or none.
    pub(crate) fn new(keep: bool) -> Self {
        Self(keep.then(Arc::default))
    }

    /// Whether spans are kept.
    pub(crate) fn are_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Begins the span of a request, which names a container or none.
    pub(crate) fn request(
        &self,
        name: &'static str,
        context: &TtrpcContext,
        container: &str,
    ) -> Request {
        let begin = |kept: &Arc<Kept>| {
            let (trace, parent) = joined(context)?;
            let container = container.to_owned();
            let of_request = Parent { kept: kept.clone(), trace, id: random(), container };
            Some((of_request, parent, name, SystemTime::now()))
        };
        Request(self.0.as_ref().and_then(begin))
    }

    /// Returns the spans after the first `seen`, how many ever ended, and how many of those
    /// asked for are gone.
    pub(crate) fn after(&self, seen: u64) -> (Vec<Span>, u64, u64) {
        let Some(kept) = &self.0 else { return (Vec::new(), 0, 0) };
        let ended = kept.ended();
        let ever = *kept.ever.borrow();
        let first = ever - ended.len() as u64;
        let skipped = usize::try_from(seen.saturating_sub(first)).unwrap_or(usize::MAX);
        (ended.iter().skip(skipped).cloned().collect(), ever, first.saturating_sub(seen))
    }

    /// Waits until more than `seen` spans have ended; for ever, if none are kept.
    pub(crate) async fn more_than(&self, seen: u64) {
        let Some(kept) = &self.0 else { return std::future::pending().await };
        let _ = kept.ever.subscribe().wait_for(|ever| *ever > seen).await;
    }
}

impl Kept {
    fn ended(&self) -> MutexGuard<'_, VecDeque<Span>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, span: Span) {
        let mut ended = self.ended();
        if ended.len() == KEPT {
            ended.pop_front();
        }
        ended.push_back(span);
        self.ever.send_modify(|ever| *ever += 1);
    }
}

impl Request {
    /// Carries the request out, and keeps its span and those of its steps.
    pub(crate) async fn record<T>(self, request: impl Future<Output = Result<T>>) -> Result<T> {
        let Some((of_request, parent, name, begun)) = self.0 else { return request.await };
        let outcome = REQUEST.scope(Some(of_request.clone()), request).await;
        let error = outcome.as_ref().err().map(Error::to_string);
        let Parent { kept, trace, id, container } = of_request;
        let ended = SystemTime::now();
        kept.add(Span { trace, id, parent, name, container, begun, ended, error });
        outcome
    }
}

/// Begins a step of the request that this task carries out.
pub(crate) fn step(name: &'static str) -> Step {
    let parent = REQUEST.try_with(Clone::clone).ok().flatten();
    Step(parent.map(|parent| (parent, name, SystemTime::now())))
}

impl Drop for Step {
    fn drop(&mut self) {
        let Some((parent, name, begun)) = self.0.take() else { return };
        let Parent { kept, trace, id, container } = parent;
        let (id, parent, ended) = (random(), id, SystemTime::now());
        kept.add(Span { trace, id, parent, name, container, begun, ended, error: None });
    }
}

/// Returns the trace and the span that a request belongs to: of a new trace, no span. `None` if
/// its client records none of it.
fn joined(context: &TtrpcContext) -> Option<([u8; 16], [u8; 8])> {
    let sent = context.metadata.get("traceparent").and_then(|values| values.first());
    match sent.and_then(|text| parse(text)) {
        Some((trace, parent, true)) => Some((trace, parent)),
        Some((_, _, false)) => None,
        None => Some((random(), [0; 8])),
    }
}

/// Parses `00-TRACE-PARENT-FLAGS` (Trace Context, level 1): the trace, the parent, and whether it
/// is recorded.
fn parse(text: &str) -> Option<([u8; 16], [u8; 8], bool)> {
    let mut parts = text.split('-');
    let version: [u8; 1] = bytes(parts.next()?)?;
    let (trace, parent) = (bytes(parts.next()?)?, bytes(parts.next()?)?);
    let [flags] = bytes(parts.next()?)?;
    // Later versions may have more parts; the first and the last value are none.
    let is_whole = version != [0xff] && (version != [0] || parts.next().is_none());
    (is_whole && trace != [0; 16] && parent != [0; 8]).then_some((trace, parent, flags & 1 == 1))
}

/// Parses lower-case hexadecimal digits.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut all = [0; N];
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in all.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(all)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without entropy at the very start of a machine, IDs may meet; nothing hangs on them.
    let _ = getrandom(&mut bytes, GetRandomFlags::NONBLOCK);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn context(traceparent: Option<&str>) -> TtrpcContext {
        let mut context = TtrpcContext::default();
        if let Some(text) = traceparent {
            context.metadata.insert("traceparent".into(), vec![text.into()]);
        }
        context
    }

    #[tokio::test]
    async fn a_request_joins_the_trace_that_its_client_has_sent() {
        let spans = Spans::new(true);
        let work = async {
            drop(step("clone"));
            Err::<(), _>(Error::invalid("process.args: expected a program"))
        };
        assert!(spans.request("Create", &context(Some(SENT)), "web").record(work).await.is_err());
        let (found, ever, gone) = spans.after(0);
        let [step, request] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((ever, gone), (2, 0));
        assert_eq!((step.name, step.parent, &step.trace), ("clone", request.id, &request.trace));
        assert_eq!(request.parent, [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
        assert_eq!((request.trace[0], request.trace[15]), (0x0a, 0x9c));
        assert_eq!(request.error.as_deref(), Some("process.args: expected a program"));
        assert!(request.ended >= request.begun && step.begun >= request.begun);
    }

    #[tokio::test]
    async fn what_the_client_does_not_record_is_not_kept_and_off_keeps_nothing() {
        let unrecorded = SENT.replace("-01", "-00");
        let spans = Spans::new(true);
        spans
            .request("Kill", &context(Some(&unrecorded)), "a")
            .record(async { Ok(()) })
            .await
            .unwrap();
        assert_eq!(spans.after(0).1, 0);
        spans.request("Kill", &context(None), "a").record(async { Ok(()) }).await.unwrap();
        assert_eq!(spans.after(0).1, 1);
        let off = Spans::new(false);
        off.request("Kill", &context(None), "a").record(async { Ok(()) }).await.unwrap();
        assert!(!off.are_kept() && off.after(0).0.is_empty());
    }

    #[tokio::test]
    async fn only_the_newest_are_kept_and_the_others_are_counted() {
        let spans = Spans::new(true);
        for _ in 0..KEPT + 5 {
            spans.request("State", &context(None), "a").record(async { Ok(()) }).await.unwrap();
        }
        let (found, ever, gone) = spans.after(2);
        assert_eq!((found.len(), ever, gone), (KEPT, KEPT as u64 + 5, 3));
        let (found, _, gone) = spans.after(ever - 1);
        assert_eq!((found.len(), gone), (1, 0));
        spans.more_than(ever - 1).await;
    }

    #[test]
    fn a_wrong_traceparent_begins_a_trace_of_its_own() {
        assert!(parse(SENT).is_some());
        for wrong in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert!(parse("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x").is_some());
    }
}
