//! `integration/kubernetes/palisade.yaml` is what Kubernetes takes, and its
//! figures are those that were measured.

use std::path::Path;

use integration::{cri, image};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::node::v1::RuntimeClass;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn documents() -> Vec<Value> {
    let documents =
        serde_norway::Deserializer::from_str(include_str!("../kubernetes/palisade.yaml"));
    documents.map(|document| Value::deserialize(document).expect("YAML")).collect()
}

/// An object as its type, from which nothing was left out: a field that is
/// unknown, or in the wrong place, would be.
fn object<T: DeserializeOwned + serde::Serialize>(document: &Value) -> T {
    let object: T = serde_json::from_value(document.clone())
        .unwrap_or_else(|e| panic!("{}: {e}", document["metadata"]["name"]));
    let understood = serde_json::to_value(&object).expect("an object in JSON");
    assert_eq!(&understood, document, "Kubernetes would leave out a part of it");
    object
}

#[test]
fn every_field_is_one_of_kubernetes() {
    let documents = documents();
    let [class, install, remove] = &documents[..] else {
        panic!("{} objects and not three", documents.len())
    };
    let class: RuntimeClass = object(class);
    assert_eq!(class.handler, cri::HANDLER);
    let selector = class.scheduling.unwrap().node_selector.unwrap();
    for (document, verb) in [(install, "install"), (remove, "remove")] {
        let set: DaemonSet = object(document);
        let spec = set.spec.unwrap();
        assert_eq!(spec.selector.match_labels, spec.template.metadata.unwrap().labels);
        let pod = spec.template.spec.unwrap();
        let node = &pod.init_containers.unwrap()[0];
        assert_eq!(node.image.as_deref(), Some(image::INSTALLER));
        assert_eq!(node.command.as_deref(), Some(&["palisade-node".to_owned(), verb.into()][..]));
        // Pods go where it is installed, and nowhere else.
        assert_eq!(pod.node_selector.unwrap() == selector, verb == "install");
    }
}

#[test]
fn what_kubernetes_does_not_know_is_found() {
    let mut class = documents().swap_remove(0);
    class["overhead"]["podFixd"] = json!({});
    assert!(std::panic::catch_unwind(|| object::<RuntimeClass>(&class)).is_err());
}

/// Measured, doubled, and rounded up to 1, 2 or 5 times a power of ten.
fn charged(measured: f64) -> f64 {
    let steps = (0..6).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power)));
    steps.into_iter().find(|step| *step >= 2.0 * measured).expect("a modest figure")
}

#[test]
fn the_overhead_of_a_pod_follows_from_what_was_measured() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/result-many.json");
    let text = std::fs::read_to_string(&file).expect("read the benchmark's figures");
    let result: Value = serde_json::from_str(&text).expect("JSON");
    let measured = |part: &str, what: &str| {
        let figures = result["figures"].as_array().expect("figures");
        let figure = figures.iter().find(|figure| figure["part"] == part && figure["what"] == what);
        let figure = figure.unwrap_or_else(|| panic!("no figure {part}, {what}"));
        figure["runtimes"]["palisade"]["median"].as_f64().expect("a number")
    };
    // 100 pods with one probe a second each: percent of a CPU, so 10 m each.
    let probes = measured("exec probes, 100 pods", "CPU used, % of one") * 10.0 / 100.0;
    let memory = measured("density", "MemAvailable per pod");
    let overhead = &documents()[0]["overhead"]["podFixed"];
    assert_eq!(overhead["cpu"], format!("{}m", charged(probes)));
    assert_eq!(overhead["memory"], format!("{}Mi", charged(memory)));
}
