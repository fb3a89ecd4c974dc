//! Publishes events to containerd: in order, each once if possible, and without
//! loss while containerd restarts.
//!
//! One task delivers the events one after the other over a connection to
//! containerd's events service. It repeats an event, with a new connection,
//! until it succeeds, and only then goes on to the next. An event is sent twice
//! only if the connection breaks between the event and its acknowledgement.
//!
//! The queue needs no bound of its own. While containerd is away nothing can be
//! created or exec'd, so there is at most one Exit for each living process and
//! one OOM for each container (further ones are merged). [`Events::has_room`]
//! stops at [`MAX_QUEUED`] a containerd that requests more and more but never
//! takes its events.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM,
    TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::{self, Status, context};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use crate::descriptors::Descriptors;
use crate::error::{Code, Context, Error, Result};
use crate::listeners::{Happening, Listeners, Told};

/// Number of undelivered events from which on nothing new is started.
const MAX_QUEUED: usize = 4096;

/// Time for one delivery, after which the connection counts as broken.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The first and the longest wait between attempts.
const WAITS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A message that is an event, with its topic.
pub(crate) trait Event: Message + Told {
    /// See containerd's core/runtime/events.go.
    const TOPIC: &'static str;
}

macro_rules! topics {
    ($($message:ident: $topic:ident,)*) => {
        $(impl Event for $message { const TOPIC: &'static str = topics::$topic; })*
    };
}

topics! {
    TaskCreate: TASK_CREATE_EVENT_TOPIC,
    TaskStart: TASK_START_EVENT_TOPIC,
    TaskOOM: TASK_OOM_EVENT_TOPIC,
    TaskExit: TASK_EXIT_EVENT_TOPIC,
    TaskDelete: TASK_DELETE_EVENT_TOPIC,
    TaskExecAdded: TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted: TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused: TASK_PAUSED_EVENT_TOPIC,
    TaskResumed: TASK_RESUMED_EVENT_TOPIC,
    TaskCheckpointed: TASK_CHECKPOINTED_EVENT_TOPIC,
}

/// The publisher of events. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Events {
    namespace: String,
    /// Those who listen beside containerd.
    pub(crate) listeners: Listeners,
    sender: mpsc::UnboundedSender<ForwardRequest>,
    /// Number of undelivered events.
    queued: watch::Sender<usize>,
}

impl Events {
    /// Starts the task that delivers to the socket at `address` what happens in a pod.
    pub(crate) fn new(
        namespace: &str,
        pod: &str,
        address: &str,
        descriptors: &Arc<Descriptors>,
    ) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let queued = watch::Sender::new(0);
        let delivery = Delivery {
            address: address.to_string(),
            queued: queued.clone(),
            client: None,
            descriptors: descriptors.clone(),
        };
        tokio::spawn(delivery.run(receiver));
        let listeners = Listeners::new(namespace, pod);
        Self { namespace: namespace.to_string(), listeners, sender, queued }
    }

    /// Queues an event. Never waits and never fails.
    pub(crate) fn publish<E: Event>(&self, event: &E) {
        self.listeners.tell(|| event.told());
        self.send(E::TOPIC, "containerd.events", event);
    }

    /// Queues an event of Palisade's own. containerd gets a message that each of its clients can
    /// decode without knowing Palisade.
    pub(crate) fn publish_status(
        &self,
        topic: &str,
        status: &Status,
        happening: impl FnOnce() -> Happening,
    ) {
        self.listeners.tell(happening);
        self.send(topic, "google.rpc", status);
    }

    /// Queues a message of a package as an event of a topic.
    fn send<M: Message>(&self, topic: &str, package: &str, event: &M) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(e) => return log::error!("event {topic} cannot be encoded: {e}"),
        };
        let type_url = format!("{package}.{}", M::NAME);
        let any = Any { type_url, value, ..Default::default() };
        let envelope = Envelope {
            timestamp: MessageField::some(Timestamp::from(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.to_string(),
            event: MessageField::some(any),
            ..Default::default()
        };
        let request =
            ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        self.queued.send_modify(|queued| *queued += 1);
        // The task ends only with the last sender.
        let _ = self.sender.send(request);
    }

    /// Refuses what would cause further events while containerd takes none.
    pub(crate) fn has_room(&self) -> Result<()> {
        let queued = *self.queued.borrow();
        if queued < MAX_QUEUED {
            return Ok(());
        }
        Err(Error::new(
            Code::UNAVAILABLE,
            format!("{queued} events could not be delivered to containerd; not before they are"),
        ))
    }

    /// Waits until everything is delivered.
    pub(crate) async fn all_delivered(&self) {
        let _ = self.queued.subscribe().wait_for(|queued| *queued == 0).await;
    }

    /// Waits until everything is delivered, up to a timeout. Returns whether it
    /// is.
    pub(crate) async fn delivered(&self, timeout: Duration) -> bool {
        tokio::time::timeout(timeout, self.all_delivered()).await.is_ok()
    }

    /// Waits in the same way before the shim ends, and logs the events that are
    /// lost.
    pub(crate) async fn flush(&self, timeout: Duration) {
        if !self.delivered(timeout).await {
            let lost = *self.queued.borrow();
            log::error!("{lost} events are not delivered, since containerd cannot be reached");
        }
    }
}

/// The task that delivers.
struct Delivery {
    address: String,
    queued: watch::Sender<usize>,
    client: Option<EventsClient>,
    descriptors: Arc<Descriptors>,
}

impl Delivery {
    async fn run(mut self, mut receiver: mpsc::UnboundedReceiver<ForwardRequest>) {
        let mut queue = VecDeque::new();
        let queued = self.queued.clone();
        while let Some(first) = receiver.recv().await {
            queue.push_back(first);
            while let Some(front) = queue.pop_front() {
                let mut delivery = std::pin::pin!(self.deliver(&front));
                loop {
                    tokio::select! {
                        () = &mut delivery => break,
                        Some(event) = receiver.recv() => push(&mut queue, event, &queued),
                    }
                }
                queued.send_modify(|queued| *queued -= 1);
            }
        }
    }

    /// Delivers an event. Returns when containerd has it, or refuses it for
    /// good.
    async fn deliver(&mut self, request: &ForwardRequest) {
        let mut wait = WAITS.0;
        loop {
            match self.attempt(request).await {
                Ok(()) => return,
                Err(error) if error.code == Code::INVALID_ARGUMENT => {
                    return log::error!(
                        "containerd refuses event {}: {error}",
                        request.envelope.topic
                    );
                }
                Err(error) => {
                    if error.is_for_want_of_descriptors() {
                        self.descriptors.run_out();
                    }
                    log::debug!("event {}: {error}", request.envelope.topic);
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAITS.1);
        }
    }

    /// Makes one attempt, or two if the connection proves to be closed.
    async fn attempt(&mut self, request: &ForwardRequest) -> Result<()> {
        if let Some(client) = &self.client {
            match forward(client, request).await {
                // Nothing was sent: containerd had closed the connection
                // before.
                Err(ttrpc::Error::LocalClosed) => self.client = None,
                other => return self.judge(other),
            }
        }
        let client = connect(&self.address).await?;
        let outcome = forward(&client, request).await;
        self.client = Some(client);
        self.judge(outcome)
    }

    /// Keeps the connection after any reply, even an error, and drops it
    /// otherwise.
    fn judge(&mut self, outcome: ttrpc::Result<()>) -> Result<()> {
        match outcome {
            Ok(()) => Ok(()),
            Err(ttrpc::Error::RpcStatus(status)) => {
                Err(Error::new(status.code(), status.message().to_string()))
            }
            Err(error) => {
                self.client = None;
                Err(Error::internal(error.to_string()))
            }
        }
    }
}

/// Appends an event, unless it is a second OOM of a container whose first one
/// is still queued: it adds nothing.
fn push(
    queue: &mut VecDeque<ForwardRequest>,
    event: ForwardRequest,
    queued: &watch::Sender<usize>,
) {
    let same = |other: &ForwardRequest| {
        other.envelope.topic == event.envelope.topic
            && other.envelope.event.value == event.envelope.event.value
    };
    if event.envelope.topic == TaskOOM::TOPIC && queue.iter().any(same) {
        queued.send_modify(|queued| *queued -= 1);
    } else {
        queue.push_back(event);
    }
}

async fn forward(client: &EventsClient, request: &ForwardRequest) -> ttrpc::Result<()> {
    let context = context::with_timeout(DELIVERY_TIMEOUT.as_nanos() as i64);
    client.forward(context, request).await.map(|_| ())
}

async fn connect(address: &str) -> Result<EventsClient> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    let stream =
        UnixStream::connect(Path::new(path)).await.context(|| format!("connect {path}"))?;
    Ok(EventsClient::new(Client::new(Socket::new(stream))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use async_trait::async_trait;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::{Events as EventsService, create_events};
    use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
    use containerd_shim_protos::ttrpc::asynchronous::{Server, TtrpcContext};

    use super::*;

    /// The part of containerd that a shim sees.
    struct Containerd {
        seen: mpsc::UnboundedSender<(String, String)>,
    }

    #[async_trait]
    impl EventsService for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let envelope = request.envelope.unwrap();
            let exit = TaskExit::parse_from_bytes(&envelope.event.value).unwrap_or_default();
            if exit.exit_status == 254 {
                return Err(Error::invalid("not like this").into());
            }
            self.seen.send((envelope.topic, exit.container_id)).unwrap();
            Ok(Empty::default())
        }
    }

    async fn containerd(path: &Path, seen: &mpsc::UnboundedSender<(String, String)>) -> Server {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let service = create_events(Arc::new(Containerd { seen: seen.clone() }));
        let listener = Listener::try_from(listener).unwrap();
        let mut server = Server::new().add_listener(listener).register_service(service);
        server.start().await.unwrap();
        server
    }

    fn descriptors() -> Arc<Descriptors> {
        Arc::new(Descriptors::begin())
    }

    fn exit(id: usize) -> TaskExit {
        TaskExit { container_id: id.to_string(), ..Default::default() }
    }

    #[tokio::test]
    async fn events_arrive_once_and_in_order_over_restarts_of_containerd() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ttrpc");
        let (seen, mut arrived) = mpsc::unbounded_channel();
        let events = Events::new("ns", "pod", path.to_str().unwrap(), &descriptors());
        for round in 0..3 {
            // Published while containerd is away, while it starts, and while it
            // runs.
            (0..10).for_each(|i| events.publish(&exit(round * 30 + i)));
            tokio::time::sleep(Duration::from_millis(30)).await;
            let mut server = containerd(&path, &seen).await;
            (10..20).for_each(|i| events.publish(&exit(round * 30 + i)));
            tokio::time::sleep(Duration::from_millis(150)).await;
            (20..30).for_each(|i| events.publish(&exit(round * 30 + i)));
            events.flush(Duration::from_secs(5)).await;
            server.shutdown().await.unwrap();
        }
        for i in 0..90 {
            let (topic, id) = arrived.try_recv().unwrap();
            assert_eq!((topic.as_str(), id), ("/tasks/exit", i.to_string()));
        }
        assert!(arrived.try_recv().is_err(), "none is delivered twice");
    }

    #[tokio::test]
    async fn an_event_that_containerd_refuses_does_not_delay_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ttrpc");
        let (seen, mut arrived) = mpsc::unbounded_channel();
        let _server = containerd(&path, &seen).await;
        let address = format!("unix://{}", path.display());
        let events = Events::new("ns", "pod", &address, &descriptors());
        events.publish(&TaskExit { exit_status: 254, ..exit(1) });
        events.publish(&exit(2));
        events.flush(Duration::from_secs(5)).await;
        assert_eq!(arrived.try_recv().unwrap().1, "2");
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let events = Events::new("ns", "pod", "/nowhere", &descriptors());
        (0..MAX_QUEUED).for_each(|i| events.publish(&exit(i)));
        assert_eq!(events.has_room().unwrap_err().code, Code::UNAVAILABLE);
        // Many OOM kills of one container need the room of one or two.
        let events = Events::new("ns", "pod", "/nowhere", &descriptors());
        for _ in 0..1000 {
            events.publish(&TaskOOM { container_id: "a".into(), ..Default::default() });
        }
        let mut queued = events.queued.subscribe();
        let room = queued.wait_for(|queued| *queued <= 2);
        tokio::time::timeout(Duration::from_secs(10), room).await.unwrap().unwrap();
        events.flush(Duration::from_millis(10)).await;
    }
}
