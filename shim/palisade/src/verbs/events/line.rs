//! The lines that are printed.

use std::time::SystemTime;

use operator_api::operator::Event;
use operator_api::time::rfc3339_millis;
use serde_json::{Map, Value};

use super::victim;
use crate::follow::{Told, What};
use crate::node::Node;
use crate::select::short;

/// Fields that a line for people has elsewhere, or can do without.
const NOT_REPEATED: [&str; 8] =
    ["time", "namespace", "pod", "pod_name", "container", "container_name", "type", "bundle"];

/// Something that happened.
pub(super) struct Happened(Map<String, Value>);

impl Happened {
    /// Reads what was told.
    pub(super) fn read(told: &Told<Event>) -> Self {
        let (kind, detail) = match &told.what {
            What::Sent(event) => {
                let json = event.json.as_str();
                if let Ok(Value::Object(object)) = serde_json::from_str(json) {
                    return Self(object);
                }
                ("unknown", Some(("text", Value::from(json))))
            }
            What::Begun => ("pod", None),
            What::Missed(number) => ("missed", Some(("events", (*number).into()))),
            What::Ended => ("pod-end", None),
            What::Died => ("shim-died", None),
            What::NoAnswer(why) => ("no-answer", Some(("reason", why.to_string().into()))),
        };
        let mut object = Map::new();
        object.insert("time".into(), rfc3339_millis(SystemTime::now()).into());
        object.insert("namespace".into(), told.pod.namespace.as_str().into());
        object.insert("pod".into(), told.pod.id.as_str().into());
        object.insert("type".into(), kind.into());
        object.extend(detail.map(|(key, value)| (key.to_owned(), value)));
        Self(object)
    }

    fn text_of(&self, key: &str) -> &str {
        self.0.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether it is about a pod or a container that is not known there.
    pub(super) fn is_unknown_in(&self, node: &Node) -> bool {
        let (pod, container) = (self.text_of("pod"), self.text_of("container"));
        let Some(pod) = node.pods.iter().find(|known| known.id == pod) else { return true };
        // One that is deleted is not known any more.
        self.text_of("type") != "delete"
            && !container.is_empty()
            && pod.containers.iter().all(|known| known.id != container)
    }

    /// Adds the names that Kubernetes or Docker gave.
    pub(super) fn name(&mut self, node: &Node) {
        let is_it = |pod: &&crate::node::Pod| {
            pod.id == self.text_of("pod") && pod.namespace == self.text_of("namespace")
        };
        let Some(pod) = node.pods.iter().find(is_it) else { return };
        let container = pod.containers.iter().find(|c| c.id == self.text_of("container"));
        let called = container.map(|container| container.name().to_owned());
        let names = [("pod_name", Some(pod.name().to_owned())), ("container_name", called)];
        for (key, name) in names {
            if let Some(name) = name.filter(|name| !name.is_empty()) {
                self.0.insert(key.to_owned(), name.into());
            }
        }
    }

    /// Adds the process that the kernel killed for lack of memory, if it says which.
    pub(super) fn find_victim(&mut self) {
        if self.text_of("type") == "oom"
            && let Some(victim) = victim::of(self.text_of("container"))
        {
            self.0.insert("victim".to_owned(), victim);
        }
    }

    /// Returns the line for programs.
    pub(super) fn json(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    /// Returns the line for people.
    pub(super) fn text(&self) -> String {
        let called = |name: &str, id: &str| match self.text_of(name) {
            "" => short(self.text_of(id)).to_owned(),
            name => name.to_owned(),
        };
        let pod = called("pod_name", "pod");
        let mut line = format!("{}  {pod}", self.text_of("time"));
        let container = called("container_name", "container");
        if !container.is_empty() && container != pod {
            line += &format!("/{container}");
        }
        line += &format!("  {}", self.text_of("type"));
        for (key, value) in self.0.iter().filter(|(key, _)| !NOT_REPEATED.contains(&key.as_str())) {
            line += &format!("  {key}={}", plain(value));
        }
        line
    }
}

/// Returns a value without the quotes that it can do without. Names that a container chooses do
/// not reach the terminal as they are.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().all(|c| c.is_ascii_graphic() && c != '"') => {
            text.clone()
        }
        Value::String(text) => format!("\"{}\"", text.escape_debug()),
        Value::Object(fields) => {
            let one = |(key, value): (&String, &Value)| format!("{key}={}", plain(value));
            format!("({})", fields.iter().map(one).collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::follow::Key;

    fn sent(json: &str) -> What<Event> {
        What::Sent(Event { json: json.into(), ..Default::default() })
    }

    fn happened(what: What<Event>) -> Happened {
        let pod = Key { namespace: "k8s.io".into(), id: "a".repeat(64) };
        Happened::read(&Told { pod, what })
    }

    #[test]
    fn a_line_for_people_says_when_where_what() {
        let event = r#"{"time":"T","namespace":"n","pod":"pod","container":"web","exec":"e",
            "type":"exit","pid":7,"status":137,"signal":9}"#;
        let line = happened(sent(event)).text();
        assert_eq!(line, "T  pod/web  exit  exec=e  pid=7  signal=9  status=137");
        let line = happened(What::Missed(3)).text();
        assert!(line.ends_with("Z  aaaaaaaaaaaa  missed  events=3"), "{line}");
    }

    #[test]
    fn no_name_changes_the_terminal() {
        let event = r#"{"type":"refused","program":"a\u001b[31m\n\"b"}"#;
        let line = happened(sent(event)).text();
        assert!(line.ends_with(r#"refused  program="a\u{1b}[31m\n\"b""#), "{line}");
        assert!(!line.contains('\u{1b}'));
    }

    #[test]
    fn what_is_no_json_is_passed_on_as_text() {
        let json = happened(sent("?")).json();
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&value["type"], &value["text"]), (&"unknown".into(), &"?".into()));
    }
}
