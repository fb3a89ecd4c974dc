//! Spans in the form of OTLP: JSON of `ExportTraceServiceRequest` (opentelemetry-proto, version 1).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Sent, is_step};

/// `SPAN_KIND_INTERNAL` and `SPAN_KIND_SERVER`.
const KINDS: [u8; 2] = [1, 2];

/// `STATUS_CODE_ERROR`
const FAILED: u8 = 2;

/// Returns the request that exports spans: one resource for each pod.
pub(super) fn request(spans: &[Sent]) -> Value {
    let mut pods: BTreeMap<(&str, &str), Vec<Value>> = BTreeMap::new();
    for sent in spans {
        pods.entry((&sent.pod.namespace, &sent.pod.id)).or_default().push(one(sent));
    }
    let resource = |((namespace, pod), spans): ((&str, &str), Vec<Value>)| {
        json!({
            "resource": { "attributes": [
                text("service.name", "containerd-shim-palisade-v1"),
                text("service.version", env!("CARGO_PKG_VERSION")),
                text("containerd.namespace", namespace),
                text("palisade.pod", pod),
            ] },
            "scopeSpans": [{
                "scope": { "name": "palisade", "version": env!("CARGO_PKG_VERSION") },
                "spans": spans,
            }],
        })
    };
    json!({ "resourceSpans": pods.into_iter().map(resource).collect::<Vec<_>>() })
}

/// Returns one span.
pub(super) fn one(sent: &Sent) -> Value {
    let span = &sent.span;
    let mut value = json!({
        "traceId": hex(&span.trace),
        "spanId": hex(&span.id),
        "name": span.name,
        "kind": KINDS[usize::from(!is_step(span))],
        // Numbers of 64 bits are text in protobuf's JSON.
        "startTimeUnixNano": span.begun.to_string(),
        "endTimeUnixNano": span.ended.to_string(),
        "attributes": [text("container.id", &span.container)],
    });
    if !span.parent.is_empty() {
        value["parentSpanId"] = hex(&span.parent).into();
    }
    if !span.error.is_empty() {
        value["status"] = json!({ "code": FAILED, "message": span.error });
    }
    value
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use operator_api::operator::Span;

    use super::*;
    use crate::follow::Key;

    #[test]
    fn a_span_has_the_form_of_otlp() {
        let span = Span {
            trace: vec![0x0a; 16],
            id: vec![0xb7; 8],
            parent: vec![1; 8],
            name: "Create".into(),
            container: "web".into(),
            begun: 1_700_000_000_000_000_001,
            ended: 1_700_000_000_002_000_001,
            error: "process.args: expected a program".into(),
            ..Default::default()
        };
        let pod = |id: &str| Key { namespace: "k8s.io".into(), id: id.into() };
        let sent = Sent { pod: pod("pod"), span };
        let request = request(&[sent.clone(), Sent { pod: pod("other"), ..sent }]);
        let [other, pod] = request["resourceSpans"].as_array().unwrap().as_slice() else {
            panic!("{request}")
        };
        assert_eq!(other["resource"]["attributes"][3]["value"]["stringValue"], "other");
        let span = &pod["scopeSpans"][0]["spans"][0];
        assert_eq!(span["traceId"], "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a");
        assert_eq!((&span["spanId"], &span["kind"]), (&"b7b7b7b7b7b7b7b7".into(), &2.into()));
        assert_eq!(span["parentSpanId"], "0101010101010101");
        assert_eq!(span["startTimeUnixNano"], "1700000000000000001");
        assert_eq!(span["status"]["code"], 2);
    }
}
