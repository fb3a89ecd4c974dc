//! Follows what shims send until they end: one stream of each pod, of those that come later, too.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use operator_api::operator::{Event, EventsRequest, Span, SpansRequest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;
use tokio::time::timeout;
use ttrpc::asynchronous::ClientStreamReceiver;
use ttrpc::context::{self, Context};

use crate::arguments::Common;
use crate::exit::Failure;
use crate::node::watch::Watch;
use crate::node::{Node, Pod, state_root};
use crate::select;
use crate::shim::{PATIENCE, Shim};

/// The time within which a shim sends something, if only that it is alive: it does so every 20
/// seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// The time between two looks whether a shim is dead.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What of all pods waits to be taken. A reader that is slower makes the shims drop what they send,
/// and say how much.
const WAITING: usize = 1024;

/// What a shim sends in a stream. One that is empty says that the shim lives.
pub(crate) trait Sent: protobuf::Message + Send + Sized + 'static {
    /// Asks for the stream.
    fn ask(
        shim: &Shim,
        unbounded: Context,
    ) -> impl Future<Output = ttrpc::Result<ClientStreamReceiver<Self>>> + Send;
    /// How many the shim has dropped before this one.
    fn missed(&self) -> u64;
    /// Whether there is something in it.
    fn is_something(&self) -> bool;
}

impl Sent for Event {
    async fn ask(shim: &Shim, unbounded: Context) -> ttrpc::Result<ClientStreamReceiver<Self>> {
        shim.operator().events(unbounded, &EventsRequest::new()).await
    }
    fn missed(&self) -> u64 {
        self.missed
    }
    fn is_something(&self) -> bool {
        !self.json.is_empty()
    }
}

impl Sent for Span {
    async fn ask(shim: &Shim, unbounded: Context) -> ttrpc::Result<ClientStreamReceiver<Self>> {
        shim.operator().spans(unbounded, &SpansRequest::new()).await
    }
    fn missed(&self) -> u64 {
        self.missed
    }
    fn is_something(&self) -> bool {
        !self.id.is_empty()
    }
}

/// What names a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) id: String,
}

impl Key {
    pub(crate) fn of(pod: &Pod) -> Self {
        Self { namespace: pod.namespace.clone(), id: pod.id.clone() }
    }
}

/// What is told of a pod.
#[derive(Debug)]
pub(crate) struct Told<T> {
    pub(crate) pod: Key,
    pub(crate) what: What<T>,
}

#[derive(Debug)]
pub(crate) enum What<T> {
    /// It is followed from now on.
    Begun,
    /// What its shim has sent.
    Sent(T),
    /// So many of those were dropped.
    Missed(u64),
    /// Its shim has ended as it should.
    Ended,
    /// Its shim has died.
    Died,
    /// Its shim cannot be followed, for this reason.
    NoAnswer(Failure),
}

impl<T> Told<T> {
    /// Whether nothing more is told of this pod.
    fn is_end(&self) -> bool {
        matches!(self.what, What::Ended | What::Died | What::NoAnswer(_))
    }
}

/// All pods, or one.
pub(crate) struct Followed<'a, T> {
    common: &'a Common,
    only: Option<Key>,
    watch: Watch,
    sender: mpsc::Sender<Told<T>>,
    told: mpsc::Receiver<Told<T>>,
    /// Whether the end of each was told.
    pods: HashMap<Key, bool>,
    /// Whether the pods on disk are to be read anew.
    changed: bool,
    /// Whether the only pod has ended, and all was told.
    ended: bool,
}

impl<'a, T: Sent> Followed<'a, T> {
    /// Begins to follow the pod with this name, or all.
    ///
    /// # Errors
    /// The error says that there is no such pod, or that the kernel does not say when pods come.
    pub(crate) fn begin(common: &'a Common, pod: Option<&str>) -> Result<Self> {
        let only = match pod {
            None => None,
            Some(name) => Some(Key::of(select::find(&Node::of(common)?, name)?.pod())),
        };
        let watch = Watch::new(&state_root(Some(common)))?;
        let (sender, told) = mpsc::channel(WAITING);
        Ok(Self {
            common,
            only,
            watch,
            sender,
            told,
            pods: HashMap::new(),
            changed: true,
            ended: false,
        })
    }

    /// Waits for what is told next. `None` once the only pod has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Told<T>>> {
        loop {
            if std::mem::take(&mut self.changed) {
                self.ended |= self.follow_new()?;
            }
            if self.ended {
                return Ok(None);
            }
            let told = tokio::select! {
                biased;
                told = self.told.recv() => told,
                changed = self.watch.changed() => {
                    changed?;
                    self.changed = true;
                    continue;
                }
            };
            if let Some(told) = &told
                && told.is_end()
            {
                self.pods.insert(told.pod.clone(), true);
                self.changed = true;
            }
            return Ok(told);
        }
    }

    /// Follows the pods that have come since. Returns whether the only one has ended.
    fn follow_new(&mut self) -> Result<bool> {
        if let Some(only) = &self.only
            && self.pods.get(only) == Some(&true)
        {
            return Ok(true);
        }
        self.watch.cover()?;
        let mut pods = Node::of(self.common)?.pods;
        pods.retain(|pod| self.only.as_ref().is_none_or(|only| *only == Key::of(pod)));
        if self.only.is_some() && pods.is_empty() && self.pods.is_empty() {
            return Ok(true);
        }
        // One whose shim died may stay on disk, and is followed no more; one that is gone from
        // there may have an end that was not told yet.
        let on_disk: HashSet<Key> = pods.iter().map(Key::of).collect();
        self.pods.retain(|key, ended| on_disk.contains(key) || !*ended);
        for pod in pods.into_iter().filter(|pod| pod.state.is_some()) {
            self.pods.entry(Key::of(&pod)).or_insert_with(|| {
                tokio::spawn(follow(pod, self.sender.clone()));
                false
            });
        }
        Ok(false)
    }
}

/// Passes on what a pod's shim sends, until the shim ends.
async fn follow<T: Sent>(pod: Pod, sender: mpsc::Sender<Told<T>>) {
    let key = Key::of(&pod);
    let last = match pass_on(&pod, &key, &sender).await {
        Ok(()) => What::Ended,
        // It has answered.
        Err(failure @ Failure::Failed(_)) => What::NoAnswer(failure),
        Err(_) if dies(&pod).await => What::Died,
        Err(failure) => What::NoAnswer(failure),
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

async fn pass_on<T: Sent>(
    pod: &Pod,
    key: &Key,
    sender: &mpsc::Sender<Told<T>>,
) -> Result<(), Failure> {
    let shim = Shim::connect(pod).await?;
    let tell = async |what| sender.send(Told { pod: key.clone(), what }).await;
    let mut stream = shim.ask(T::ask(&shim, context::with_duration(Duration::ZERO))).await?;
    let mut patience = PATIENCE;
    loop {
        let next = timeout(patience, stream.recv()).await;
        let Ok(next) = next else { return Err(shim.silent(patience)) };
        let Some(sent) = next.map_err(|error| shim.failure(error))? else { return Ok(()) };
        if patience != SILENCE {
            patience = SILENCE;
            let _ = tell(What::Begun).await;
        }
        if sent.missed() > 0 {
            let _ = tell(What::Missed(sent.missed())).await;
        }
        if sent.is_something() {
            let _ = tell(What::Sent(sent)).await;
        }
    }
}
