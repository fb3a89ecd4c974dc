//! The operators who listen to what happens (`palisade events`). While there are none, nothing is
//! formatted and nothing is kept.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use containerd_shim_protos::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM,
    TaskPaused, TaskResumed, TaskStart,
};
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

use operator_api::time::rfc3339_millis;

/// The number of events that wait for one listener. Older ones are dropped, and counted.
const WAITING: usize = 256;

/// Everybody who listens to one shim. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Listeners {
    namespace: Arc<str>,
    pod: Arc<str>,
    /// There is a channel only while somebody listens.
    channel: Arc<Mutex<Option<broadcast::Sender<Arc<str>>>>>,
}

/// Something that happened to a container.
pub(crate) struct Happening {
    /// What: the value of `type`.
    pub(crate) kind: &'static str,
    pub(crate) container: String,
    /// The exec that it happened to.
    pub(crate) exec: Option<String>,
    /// What else there is to say: an object.
    pub(crate) fields: Value,
}

impl Listeners {
    pub(crate) fn new(namespace: &str, pod: &str) -> Self {
        Self { namespace: namespace.into(), pod: pod.into(), channel: Arc::default() }
    }

    /// Begins to listen.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Arc<str>> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.get_or_insert_with(|| broadcast::Sender::new(WAITING)).subscribe()
    }

    /// Tells everybody who listens what has happened.
    pub(crate) fn tell(&self, happening: impl FnOnce() -> Happening) {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = &*channel else { return };
        if sender.receiver_count() == 0 {
            *channel = None;
            return;
        }
        // The last may have gone.
        let _ = sender.send(self.text(SystemTime::now(), happening()).into());
    }

    /// Returns the line of JSON about an event.
    fn text(&self, at: SystemTime, happening: Happening) -> String {
        let Happening { kind, container, exec, fields } = happening;
        let mut object = Map::new();
        object.insert("time".into(), rfc3339_millis(at).into());
        object.insert("namespace".into(), (*self.namespace).into());
        object.insert("pod".into(), (*self.pod).into());
        object.insert("container".into(), container.into());
        if let Some(exec) = exec {
            object.insert("exec".into(), exec.into());
        }
        object.insert("type".into(), kind.into());
        if let Value::Object(fields) = fields {
            object.extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
        }
        Value::Object(object).to_string()
    }
}

/// A message to containerd that listeners are told of as well.
pub(crate) trait Told {
    /// Returns what it is about.
    fn told(&self) -> Happening;
}

/// Returns a happening of a container itself.
fn of(kind: &'static str, container: &str, fields: Value) -> Happening {
    Happening { kind, container: container.to_owned(), exec: None, fields }
}

impl Told for TaskCreate {
    fn told(&self) -> Happening {
        of("create", &self.container_id, json!({ "pid": self.pid, "bundle": self.bundle }))
    }
}

impl Told for TaskStart {
    fn told(&self) -> Happening {
        of("start", &self.container_id, json!({ "pid": self.pid }))
    }
}

impl Told for TaskOOM {
    fn told(&self) -> Happening {
        of("oom", &self.container_id, Value::Null)
    }
}

impl Told for TaskExit {
    fn told(&self) -> Happening {
        let status = self.exit_status;
        let signal = status.checked_sub(128).filter(|signal| (1..65).contains(signal));
        let fields = json!({ "pid": self.pid, "status": status, "signal": signal });
        let exec = (self.id != self.container_id).then(|| self.id.clone());
        Happening { exec, ..of("exit", &self.container_id, fields) }
    }
}

impl Told for TaskDelete {
    fn told(&self) -> Happening {
        let fields = json!({ "pid": self.pid, "status": self.exit_status });
        of("delete", &self.container_id, fields)
    }
}

impl Told for TaskExecAdded {
    fn told(&self) -> Happening {
        let exec = Some(self.exec_id.clone());
        Happening { exec, ..of("exec-create", &self.container_id, Value::Null) }
    }
}

impl Told for TaskExecStarted {
    fn told(&self) -> Happening {
        let fields = json!({ "pid": self.pid });
        Happening {
            exec: Some(self.exec_id.clone()),
            ..of("exec-start", &self.container_id, fields)
        }
    }
}

impl Told for TaskPaused {
    fn told(&self) -> Happening {
        of("pause", &self.container_id, Value::Null)
    }
}

impl Told for TaskResumed {
    fn told(&self) -> Happening {
        of("resume", &self.container_id, Value::Null)
    }
}

impl Told for TaskCheckpointed {
    fn told(&self) -> Happening {
        of("checkpoint", &self.container_id, json!({ "folder": self.checkpoint }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    fn exit(container: &str, id: &str, status: u32) -> TaskExit {
        TaskExit {
            container_id: container.into(),
            id: id.into(),
            exit_status: status,
            ..Default::default()
        }
    }

    #[test]
    fn an_event_says_when_where_what() {
        let listeners = Listeners::new("k8s.io", "pod");
        let text = listeners.text(UNIX_EPOCH, exit("web", "probe", 137).told());
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            event,
            json!({
                "time": "1970-01-01T00:00:00.000Z", "namespace": "k8s.io", "pod": "pod",
                "container": "web", "exec": "probe", "type": "exit",
                "pid": 0, "status": 137, "signal": 9,
            })
        );
        let text = listeners.text(UNIX_EPOCH, exit("web", "web", 1).told());
        assert!(!text.contains("exec") && !text.contains("signal"), "{text}");
    }

    #[test]
    fn nothing_is_formatted_while_nobody_listens() {
        let listeners = Listeners::new("ns", "pod");
        listeners.tell(|| panic!("nobody listens"));
        let mut one = listeners.listen();
        listeners.tell(|| exit("web", "web", 0).told());
        assert!(one.try_recv().is_ok());
        drop(one);
        listeners.tell(|| panic!("nobody listens any more"));
        assert!(listeners.channel.lock().unwrap().is_none(), "nothing is kept");
    }

    #[test]
    fn a_slow_listener_learns_how_many_it_has_missed() {
        let listeners = Listeners::new("ns", "pod");
        let mut slow = listeners.listen();
        (0..WAITING + 3).for_each(|_| listeners.tell(|| exit("web", "web", 0).told()));
        assert_eq!(slow.try_recv(), Err(TryRecvError::Lagged(3)));
        assert!(slow.try_recv().is_ok());
    }
}
