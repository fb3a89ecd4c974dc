//! What containerd tells of each container, and whether that is each event once and in order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use integration::containerd::Containerd;
use integration::events::{TaskEvent, stream};
use integration::wait;

use crate::world::{World, lock};

/// The events of one containerd, by container.
#[derive(Debug)]
pub struct Events {
    seen: Mutex<HashMap<String, Vec<TaskEvent>>>,
    more: Condvar,
    ended: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What a life has done that is told.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Whether the task was created, and whether started.
    pub created: bool,
    pub started: bool,
    /// The execs that were added and have ended.
    pub execs: Vec<String>,
}

impl Events {
    /// Follows a daemon, also beyond its end and its next start. Returns once the subscription is
    /// in force.
    pub fn follow(daemon: &Containerd, world: &Arc<World>) -> Arc<Self> {
        let events = Arc::new(Self {
            seen: Mutex::default(),
            more: Condvar::new(),
            ended: AtomicBool::new(false),
            thread: Mutex::default(),
        });
        let (address, namespace) = (daemon.address(), daemon.namespace());
        let (shared, world) = (Arc::clone(&events), Arc::clone(world));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().expect("start a runtime");
            let mut subscriptions = 0_u32;
            while !shared.ended.load(Ordering::SeqCst) {
                subscriptions += 1;
                let is_first = subscriptions == 1;
                let in_force = || {
                    // Who began before it is not told of everything.
                    if !is_first {
                        world.begin_outage();
                        world.end_outage();
                    }
                    let _ = ready.send(());
                };
                let take = |event| {
                    world.count("event");
                    shared.take(event);
                };
                let followed = stream(&address, &namespace, in_force, take);
                runtime.block_on(async {
                    tokio::select! {
                        () = followed => {}
                        () = shared.end_is_wanted() => {}
                    }
                });
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        *lock(&events.thread) = Some(thread);
        is_ready.recv_timeout(wait::deadline()).expect("the subscription is in force");
        events
    }

    async fn end_is_wanted(&self) {
        while !self.ended.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn take(&self, event: TaskEvent) {
        if let Some(id) = container_of(&event) {
            lock(&self.seen).entry(id.to_owned()).or_default().push(event);
            self.more.notify_all();
        }
    }

    /// Stops following.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }

    /// Waits until a container's deletion is told, and returns what is wrong with its events, if
    /// anything is. `all` tells whether none may be missing.
    pub fn judge(&self, id: &str, done: &Done, all: bool) -> Result<(), String> {
        let until = Instant::now() + wait::patience(if all { 30 } else { 0 });
        let mut seen = lock(&self.seen);
        let wanted = |events: Option<&Vec<TaskEvent>>| {
            let events = events.map(Vec::as_slice).unwrap_or_default();
            missing(id, done, events).is_none()
        };
        while all && !wanted(seen.get(id)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            seen = match self.more.wait_timeout(seen, left) {
                Ok((seen, _)) => seen,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        let events = seen.remove(id).unwrap_or_default();
        drop(seen);
        if all && let Some(missing) = missing(id, done, &events) {
            return Err(format!("no event {missing} among {events:?}"));
        }
        match disorder(id, &events) {
            Some(what) => Err(format!("{what}: {events:?}")),
            None => Ok(()),
        }
    }
}

/// Returns the name of the first event that is missing.
fn missing(id: &str, done: &Done, events: &[TaskEvent]) -> Option<String> {
    let has = |wanted: &dyn Fn(&TaskEvent) -> bool| events.iter().any(wanted);
    if done.created && !has(&|event| matches!(event, TaskEvent::Create(..))) {
        return Some("create".to_owned());
    }
    if done.started && !has(&|event| matches!(event, TaskEvent::Start(..))) {
        return Some("start".to_owned());
    }
    if done.started && !has(&|event| matches!(event, TaskEvent::Exit(_, of, _) if of == id)) {
        return Some("exit".to_owned());
    }
    for exec in &done.execs {
        let of = |event: &TaskEvent| match event {
            TaskEvent::ExecAdded(_, of) => (of == exec).then_some(0),
            TaskEvent::ExecStarted(_, of, _) => (of == exec).then_some(1),
            TaskEvent::Exit(_, of, _) => (of == exec).then_some(2),
            _ => None,
        };
        for (kind, name) in ["exec-added", "exec-started", "exit"].iter().enumerate() {
            if !has(&|event| of(event) == Some(kind)) {
                return Some(format!("{name} of {exec}"));
            }
        }
    }
    (done.created && !has(&|event| matches!(event, TaskEvent::Delete(..))))
        .then(|| "delete".to_owned())
}

/// Returns what came twice, or too early.
fn disorder(id: &str, events: &[TaskEvent]) -> Option<String> {
    let mut reached: HashMap<&str, u8> = HashMap::new();
    let mut of_container = 0;
    for event in events {
        // Each has a rank among those of its process, which grows.
        let (process, rank, name) = match event {
            TaskEvent::Create(..) => (id, 1, "create"),
            TaskEvent::Start(..) => (id, 2, "start"),
            TaskEvent::Exit(_, of, _) if of == id => (id, 3, "exit"),
            TaskEvent::Delete(..) => (id, 4, "delete"),
            TaskEvent::ExecAdded(_, of) => (of.as_str(), 1, "exec-added"),
            TaskEvent::ExecStarted(_, of, _) => (of.as_str(), 2, "exec-started"),
            TaskEvent::Exit(_, of, _) => (of.as_str(), 3, "exit of an exec"),
            _ => continue,
        };
        let before = reached.entry(process).or_default();
        if *before >= rank {
            return Some(format!("{name} of {process} twice or too late"));
        }
        *before = rank;
        if process == id {
            of_container = rank;
        } else if of_container == 4 {
            return Some(format!("{name} of {process} after the container's delete"));
        }
    }
    None
}

/// Returns whose event it is.
fn container_of(event: &TaskEvent) -> Option<&str> {
    match event {
        TaskEvent::Create(id, ..)
        | TaskEvent::Start(id, ..)
        | TaskEvent::Exit(id, ..)
        | TaskEvent::Delete(id, ..)
        | TaskEvent::Oom(id)
        | TaskEvent::ExecAdded(id, ..)
        | TaskEvent::ExecStarted(id, ..)
        | TaskEvent::Paused(id)
        | TaskEvent::Resumed(id) => Some(id),
        TaskEvent::Powerless(_) | TaskEvent::Refused(_) | TaskEvent::Checkpointed(..) => None,
    }
}
