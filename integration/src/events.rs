//! containerd's events, as a subscriber receives them.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use containerd_client::events::*;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::tonic::Request;
use containerd_client::types::Envelope;
use containerd_client::{Client, to_any};
use prost::Message;
use tokio::task::JoinHandle;

use crate::containerd::Containerd;
use crate::wait::deadline;

/// An event of a task. Its fields are the container's ID, then the details.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskEvent {
    /// The task exists, with this init.
    Create(String, u32),
    /// Its init runs, as this process.
    Start(String, u32),
    /// A process ended: exec ID (the container's ID for the init), exit code.
    Exit(String, String, u32),
    /// The task is gone, with this exit code.
    Delete(String, u32),
    /// Memory ran out.
    Oom(String),
    /// An exec was added, with this exec ID.
    ExecAdded(String, String),
    /// An exec'd process runs: exec ID, process.
    ExecStarted(String, String, u32),
    /// It is frozen.
    Paused(String),
    /// It runs again.
    Resumed(String),
    /// It was saved, into this folder.
    Checkpointed(String, String),
    /// Palisade names something that has no effect: the sentence.
    Powerless(String),
    /// The user log tells something: the sentence.
    Refused(String),
}

/// A google.rpc.Status.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// A subscription to the task events of one test.
#[derive(Debug)]
pub struct Subscriber {
    received: Receiver<TaskEvent>,
    stream: JoinHandle<()>,
}

impl Subscriber {
    /// Subscribes to the test's containerd namespace.
    pub fn new(containerd: &Containerd) -> Subscriber {
        Self::of_namespace(containerd, &containerd.namespace())
    }

    /// Subscribes to the events of pods.
    pub fn of_pods(containerd: &Containerd) -> Subscriber {
        Self::of_namespace(containerd, "k8s.io")
    }

    fn of_namespace(containerd: &Containerd, namespace: &str) -> Subscriber {
        let (sender, received) = channel();
        let (in_force, is_in_force) = channel();
        let (address, namespace) = (containerd.address(), namespace.to_owned());
        let stream = containerd.spawn(async move {
            let ready = || _ = in_force.send(());
            // It ends with the subscriber.
            let take = |event| _ = sender.send(event);
            stream(&address, &namespace, ready, take).await;
        });
        is_in_force.recv_timeout(deadline()).expect("the subscription is in force");
        Subscriber { received, stream }
    }

    /// Returns the next event.
    pub fn next(&self) -> TaskEvent {
        match self.received.recv_timeout(deadline()) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => panic!("no event came"),
            Err(RecvTimeoutError::Disconnected) => panic!("containerd ended the subscription"),
        }
    }

    /// Returns all events up to and including the wanted one.
    pub fn until(&self, wanted: impl Fn(&TaskEvent) -> bool) -> Vec<TaskEvent> {
        let mut events = Vec::new();
        loop {
            match self.received.recv_timeout(deadline()) {
                Ok(event) => events.push(event),
                Err(e) => panic!("{e}; events so far: {events:?}"),
            }
            if events.last().is_some_and(&wanted) {
                return events;
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.stream.abort();
    }
}

/// The topic of our own events.
const GREETING: &str = "/palisade-test/greeting";

const POWERLESS: &str = "/palisade/powerless";
const REFUSED: &str = "/palisade/refused";

/// Passes the events of a namespace on until the daemon ends. Calls `ready` once the subscription
/// is in force.
pub async fn stream(
    address: &Path,
    namespace: &str,
    ready: impl FnOnce(),
    mut take: impl FnMut(TaskEvent),
) {
    let Ok(client) = Client::from_path(address).await else { return };
    let filters = vec![format!("namespace=={namespace}")];
    let mut subscriber = client.events();
    // Nothing is sent before there is an event.
    let subscribed = tokio::select! {
        subscribed = subscriber.subscribe(SubscribeRequest { filters }) => subscribed,
        () = greet(&client, namespace) => return,
    };
    let Ok(subscribed) = subscribed else { return };
    ready();
    let mut stream = subscribed.into_inner();
    while let Ok(Some(envelope)) = stream.message().await {
        match envelope.topic.as_str() {
            topic if topic.starts_with("/tasks/") => take(decode(&envelope)),
            POWERLESS | REFUSED => take(decode(&envelope)),
            _ => {}
        }
    }
}

/// Publishes events of our own, until that fails.
async fn greet(client: &Client, namespace: &str) {
    while client.events().publish(greeting(namespace)).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn greeting(namespace: &str) -> Request<PublishRequest> {
    let event = Some(to_any(&TaskPaused::default()));
    let mut request = Request::new(PublishRequest { topic: GREETING.to_owned(), event });
    let namespace = namespace.parse().expect("an ASCII name");
    request.metadata_mut().insert("containerd-namespace", namespace);
    request
}

fn decode(envelope: &Envelope) -> TaskEvent {
    let bytes = envelope.event.as_ref().expect("an envelope with an event").value.as_slice();
    match envelope.topic.as_str() {
        "/tasks/create" => of(bytes, |e: TaskCreate| TaskEvent::Create(e.container_id, e.pid)),
        "/tasks/start" => of(bytes, |e: TaskStart| TaskEvent::Start(e.container_id, e.pid)),
        "/tasks/exit" => {
            of(bytes, |e: TaskExit| TaskEvent::Exit(e.container_id, e.id, e.exit_status))
        }
        "/tasks/delete" => {
            of(bytes, |e: TaskDelete| TaskEvent::Delete(e.container_id, e.exit_status))
        }
        "/tasks/oom" => of(bytes, |e: TaskOom| TaskEvent::Oom(e.container_id)),
        "/tasks/exec-added" => {
            of(bytes, |e: TaskExecAdded| TaskEvent::ExecAdded(e.container_id, e.exec_id))
        }
        "/tasks/exec-started" => {
            of(bytes, |e: TaskExecStarted| TaskEvent::ExecStarted(e.container_id, e.exec_id, e.pid))
        }
        "/tasks/paused" => of(bytes, |e: TaskPaused| TaskEvent::Paused(e.container_id)),
        "/tasks/resumed" => of(bytes, |e: TaskResumed| TaskEvent::Resumed(e.container_id)),
        "/tasks/checkpointed" => {
            of(bytes, |e: TaskCheckpointed| TaskEvent::Checkpointed(e.container_id, e.checkpoint))
        }
        POWERLESS => of(bytes, |status: Status| TaskEvent::Powerless(status.message)),
        REFUSED => of(bytes, |status: Status| TaskEvent::Refused(status.message)),
        other => panic!("an event of unknown topic {other}"),
    }
}

fn of<M: Message + Default>(bytes: &[u8], event: impl FnOnce(M) -> TaskEvent) -> TaskEvent {
    event(M::decode(bytes).expect("the message that the topic stands for"))
}
