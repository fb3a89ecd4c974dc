//! Follows one pod, by its shim.

use std::time::{Duration, Instant};

use operator_api::operator::EventsRequest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;
use tokio::time::timeout;
use ttrpc::context;

use crate::exit::Failure;
use crate::node::Pod;
use crate::shim::{PATIENCE, Shim};

/// The time within which a shim sends something, if only that it is alive: it does so every 20
/// seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// The time between two looks whether a shim is dead.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What names a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) id: String,
}

impl Key {
    pub(super) fn of(pod: &Pod) -> Self {
        Self { namespace: pod.namespace.clone(), id: pod.id.clone() }
    }
}

/// What is told of a pod.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) pod: Key,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// It is followed from now on.
    Begun,
    /// An event of its shim's: an object of JSON.
    Event(String),
    /// So many events of its shim's were dropped.
    Missed(u64),
    /// Its shim has ended as it should.
    Ended,
    /// Its shim has died.
    Died,
    /// Its shim cannot be followed, for this reason.
    NoAnswer(String),
}

impl Told {
    /// Whether nothing more is told of this pod.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.what, What::Ended | What::Died | What::NoAnswer(_))
    }
}

/// Passes on what a pod's shim tells, until the shim ends.
pub(super) async fn follow(pod: Pod, sender: mpsc::Sender<Told>) {
    let key = Key::of(&pod);
    let last = match pass_on(&pod, &key, &sender).await {
        Ok(()) => What::Ended,
        Err(_) if dies(&pod).await => What::Died,
        Err(failure) => What::NoAnswer(failure.to_string()),
    };
    // Nobody reads any more: the command ends.
    let _ = sender.send(Told { pod: key, what: last }).await;
}

/// Whether a shim is dead whose connection broke: it closes that a moment before.
async fn dies(pod: &Pod) -> bool {
    let shim = pod.state.as_ref().and_then(|state| state.shim);
    let Some(pidfd) = shim.and_then(|shim| shim.open()) else { return shim.is_some() };
    let until = Instant::now() + PATIENCE;
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    while poll(&mut ended, Some(&Timespec::default())) == Ok(0) {
        if Instant::now() > until {
            return false;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    true
}

async fn pass_on(pod: &Pod, key: &Key, sender: &mpsc::Sender<Told>) -> Result<(), Failure> {
    let shim = Shim::connect(pod).await?;
    let tell = async |what| sender.send(Told { pod: key.clone(), what }).await;
    let mut stream = shim
        .ask(shim.operator().events(context::with_duration(Duration::ZERO), &EventsRequest::new()))
        .await?;
    let mut patience = PATIENCE;
    loop {
        let next = timeout(patience, stream.recv()).await;
        let Ok(next) = next else { return Err(shim.silent(patience)) };
        let Some(event) = next.map_err(|error| shim.failure(error))? else { return Ok(()) };
        if patience != SILENCE {
            patience = SILENCE;
            let _ = tell(What::Begun).await;
        }
        if event.missed > 0 {
            let _ = tell(What::Missed(event.missed)).await;
        }
        if !event.json.is_empty() {
            let _ = tell(What::Event(event.json)).await;
        }
    }
}
