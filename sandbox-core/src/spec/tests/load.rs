use std::fs;

use serde_json::{Value, json};

use super::{CTR, Story, process};
use crate::spec::load::{MAX_SPEC, load, load_process};
use crate::spec::{ProcessDefaults, plan_process};

fn refusal(content: &[u8]) -> String {
    let bundle = tempfile::tempdir().unwrap();
    fs::write(bundle.path().join("config.json"), content).unwrap();
    load(bundle.path()).expect_err("should be refused").to_string()
}

#[test]
fn an_error_names_the_missing_config() {
    let bundle = tempfile::tempdir().unwrap();
    let message = load(bundle.path()).unwrap_err().to_string();
    assert!(message.contains("config.json: No such file"), "{message}");
}

#[test]
fn an_error_names_the_field() {
    let table = [
        ("", "EOF while parsing"),
        ("{", "EOF while parsing"),
        ("[]", "ociVersion: is missing"),
        ("{} x", "text follows the JSON object"),
        (
            r#"{"ociVersion": 1}"#,
            "config.json: ociVersion: invalid type: integer `1`, expected a string",
        ),
        (r#"{"process": {"args": ["sh", 3]}}"#, "process.args[1]: invalid type"),
        (r#"{"process": {"args": ["sh"], "cwd": "/"}}"#, "process: missing field `user`"),
        (r#"{"process": {"user": {"uid": -1}}}"#, "process.user.uid: invalid value: integer `-1`"),
        (r#"{"process": {"capabilities": {"bounding": [1]}}}"#, "process.capabilities.bounding"),
        (
            r#"{"process": {"rlimits": [{"type": "RLIMIT_X"}]}}"#,
            "process.rlimits[0].type: unknown variant `RLIMIT_X`",
        ),
        (
            r#"{"linux": {"namespaces": [{"type": "moon"}]}}"#,
            "linux.namespaces[0].type: unknown variant `moon`",
        ),
        (r#"{"mounts": [{"destination": 1}]}"#, "mounts[0].destination: invalid type"),
        (
            r#"{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_SING"}}}"#,
            "linux.seccomp.defaultAction: unknown variant",
        ),
    ];
    for (content, expected) in table {
        let message = refusal(content.as_bytes());
        assert!(message.contains(expected), "{content}: {message:?} does not hold {expected:?}");
    }
}

#[test]
fn versions_of_the_first_major_number_are_supported() {
    for version in ["1.0.0", "1.0.2-dev", "1.2.1+build", "1.99.0"] {
        Story::of(CTR).set("/ociVersion", version).accepted();
    }
    for version in ["2.0.0", "0.9.0", "1.0", "1.x.0", "one", "1.0.0.0"] {
        Story::of(CTR).set("/ociVersion", version).refused("ociVersion");
    }
    assert!(refusal(b"{}").contains("ociVersion: is missing"));
}

#[test]
fn a_spec_may_not_fill_the_memory() {
    let message = refusal(&vec![b' '; MAX_SPEC as usize + 1]);
    assert!(message.contains("expected at most 8388608"), "{message}");
}

#[test]
fn a_spec_that_is_a_fifo_does_not_hang() {
    let bundle = tempfile::tempdir().unwrap();
    let path = bundle.path().join("config.json");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let message = load(bundle.path()).unwrap_err().to_string();
    assert!(message.contains("expected a regular file"), "{message}");
}

/// The fixture has every property of runtime-spec 1.3.0 that is for Linux. One that the types
/// of oci-spec lacked would be lost in silence.
#[test]
fn no_property_of_the_specification_is_unknown() {
    let all: Value = serde_json::from_str(include_str!("fixtures/every-property.json")).unwrap();
    let spec: oci_spec::runtime::Spec = serde_json::from_value(all.clone()).unwrap();
    let known = serde_json::to_value(spec).unwrap();
    let mut lost = Vec::new();
    compare(&all, &known, String::new(), &mut lost);
    // `load` refuses it by itself.
    assert_eq!(lost, ["/freebsd"]);
}

/// Lists the pointers of what is in `all` and not in `known`.
fn compare(all: &Value, known: &Value, place: String, lost: &mut Vec<String>) {
    match all {
        Value::Object(members) => {
            for (key, value) in members {
                match known.get(key) {
                    Some(known) => compare(value, known, format!("{place}/{key}"), lost),
                    None => lost.push(format!("{place}/{key}")),
                }
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                let known = known.get(index).unwrap_or(&Value::Null);
                compare(value, known, format!("{place}/{index}"), lost);
            }
        }
        value if value != known => lost.push(place),
        _ => {}
    }
}

#[test]
fn a_section_that_the_types_lack_is_refused() {
    let section = json!({"devices": [{"path": "/d"}]});
    Story::of(CTR).set("/freebsd", section).refused("freebsd: is a section for another platform");
    Story::of(CTR).set("/annotations", json!({"freebsd": "\"freebsd\""})).accepted();
}

#[test]
fn unknown_properties_are_ignored() {
    Story::of(CTR).set("/freshlyInvented", json!({"a": 1})).accepted();
}

#[test]
fn scheduler_flags_are_known_by_the_names_of_the_specification() {
    let flags = json!(["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_RECLAIM"]);
    let scheduler = json!({"policy": "SCHED_BATCH", "nice": 5, "flags": flags});
    let plan = Story::of(CTR).set("/process/scheduler", scheduler).accepted();
    let planned = process(&plan).scheduler.unwrap();
    assert_eq!((planned.policy, planned.nice, planned.flags), (3, 5, 7));
}

#[test]
fn capabilities_that_no_kernel_knows_are_left_out() {
    let plan = Story::of(CTR)
        .set("/process/capabilities/bounding", json!(["CAP_FLY", "CAP_CHOWN", "chown"]))
        .set("/process/capabilities/permitted", json!(["CAP_CHOWN", "CAP_FLY"]))
        .set("/process/capabilities/effective", json!(["CAP_FLY"]))
        .accepted();
    let sets = process(&plan).capabilities;
    assert_eq!((sets.bounding, sets.permitted, sets.effective), (1, 1, 0));
}

#[test]
fn the_last_of_two_variables_counts() {
    let plan = Story::of(CTR)
        .set("/process/env", json!(["A=1", "PATH=/bin", "A=2=3", "AB=4", "A=", "PATH=/sbin"]))
        .accepted();
    assert_eq!(process(&plan).env, ["AB=4", "A=", "PATH=/sbin"]);
}

#[test]
fn sysctls_of_the_uts_namespace_are_its_names() {
    let sysctls = json!({"kernel.domainname": "c.d", "kernel.msgmax": "1"});
    let mut story = Story::of(CTR).set("/domainname", "a.b");
    story.spec["linux"]["sysctl"] = sysctls;
    let container = story.accepted().container;
    assert_eq!(container.domainname.as_deref(), Some("c.d"));
    assert_eq!(container.sysctls, [("kernel.msgmax".to_owned(), "1".to_owned())]);
}

#[test]
fn an_exec_has_its_own_process_and_inherits_the_personality() {
    let plan = Story::of(CTR).set("/linux/personality/domain", "LINUX32").accepted();
    let defaults = ProcessDefaults::of(&plan);
    let exec = br#"{"user": {"uid": 5, "gid": 6}, "args": ["id"], "cwd": "/tmp", "terminal": true,
        "consoleSize": {"width": 80, "height": 25}, "execCPUAffinity": {"final": "0-1,3"}}"#;
    let planned = plan_process(&load_process(exec).unwrap(), &defaults).unwrap();
    assert_eq!((planned.uid, planned.gid, planned.personality), (5, 6, Some(8)));
    assert_eq!(planned.cpu_affinity.last, Some(vec![0, 1, 3]));
    assert_eq!(planned.cpu_affinity.initial, None);
    assert_eq!(planned.terminal.map(|t| (t.width, t.height)), Some((80, 25)));
    assert_eq!(planned.capabilities, Default::default());

    let message = load_process(br#"{"args": 1}"#).unwrap_err().to_string();
    assert!(message.starts_with("the exec's process: args: invalid type"), "{message}");
}
