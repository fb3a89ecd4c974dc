//! `palisade list`: what is there, in which state, and with which trouble.

use std::time::{Duration, Instant};

use integration::containerd::{Containerd, Version};
use integration::{on_each_containerd, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::{Ran, json as document, palisade, shows};

on_each_containerd!(each_state_is_shown, a_pod_with_trouble_is_shown_with_it);

/// Returns the object of one container.
#[track_caller]
fn row(rows: &Value, id: &str) -> Value {
    let all = rows.as_array().expect("a list");
    let found: Vec<_> = all.iter().filter(|row| row["id"] == id).collect();
    assert_eq!(found.len(), 1, "{id}: {rows:#}");
    found[0].clone()
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("send a signal");
}

fn each_state_is_shown(containerd: Containerd) {
    let namespace = containerd.namespace();
    let all = ["--namespace", &namespace, "list"];
    let busy = containerd.shell("busy", "while :; do :; done").spec(|s| {
        let resources = &mut s["linux"]["resources"];
        resources["memory"] = json!({ "limit": 64 << 20 });
    });
    let busy = busy.start();
    let created = containerd.container("waiting", ["sleep", "1000"]).create();
    let paused = containerd.container("frozen", ["sleep", "1000"]).start();
    paused.pause().expect("pause it");
    let stopped = containerd.container("ended", ["true"]).start();
    stopped.wait();
    let rows = document(&all);
    for (id, state) in [("waiting", "created"), ("busy", "running"), ("frozen", "paused")] {
        assert_eq!(row(&rows, id)["state"], state, "{rows:#}");
    }
    // Its sandbox has ended with it, or is about to.
    let state = row(&rows, "ended")["state"].clone();
    assert!(state == "stopped" || state == "dead", "{state}");
    let one = row(&rows, "busy");
    assert_eq!(one["memory"], 64 << 20);
    // boot is in the cgroup of a root container.
    assert_eq!((&one["cpus"].is_u64(), &one["processes"]), (&true, &json!(2)), "{one:#}");
    assert!(one["cpusUsed"].as_f64() > Some(0.0), "{one:#}");
    assert!(one["memoryUsed"].as_u64() > Some(0), "{one:#}");
    assert_eq!((&one["shim"], &one["namespace"]), (&json!(busy.shim()), &json!(namespace)));
    assert!(one["boot"].as_i64() > Some(0) && one["trouble"].is_null(), "{one:#}");
    let ids = &one["ids"];
    assert!(ids["first"].as_u64() > Some(0) && ids["count"].as_u64() >= Some(65536), "{ids}");
    let table = shows(&all);
    let line = table.lines().find(|line| line.starts_with("busy ")).expect("a line");
    assert!(line.contains(" running ") && line.contains("/64.0M "), "{table}");
    paused.resume().expect("resume it");
    drop((created, stopped));
}

fn a_pod_with_trouble_is_shown_with_it(containerd: Containerd) {
    let namespace = containerd.namespace();
    let all = ["--namespace", &namespace, "list"];
    let healthy = containerd.container("healthy", ["sleep", "1000"]).start();
    let silent = containerd.container("silent", ["sleep", "1000"]).start();
    let torn = containerd.container("torn", ["sleep", "1000"]).start();
    send(silent.shim(), Signal::SIGSTOP);
    let record = format!("/run/palisade/{namespace}/torn/state.json");
    let whole = std::fs::read(&record).expect("read the state");
    std::fs::write(&record, &whole[..whole.len() / 2]).expect("tear it");
    let begun = Instant::now();
    let ran = palisade(&all);
    let took = begun.elapsed();
    std::fs::write(&record, &whole).expect("mend it");
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    let state = |id: &str| {
        let line = ran.out.lines().find(|line| line.starts_with(&format!("{id} ")));
        line.unwrap_or_else(|| panic!("{id}: {}", ran.out)).to_owned()
    };
    assert!(state("healthy").contains(" running "), "{}", ran.out);
    assert!(state("silent").contains(" ? "), "{}", ran.out);
    assert!(state("torn").contains(" torn "), "{}", ran.out);
    assert!(ran.errors.contains("shim of the pod silent"), "{}", ran.errors);
    assert!(ran.errors.contains("no answer within 3 seconds"), "{}", ran.errors);
    assert!(ran.errors.contains("is torn or not Palisade's"), "{}", ran.errors);
    send(silent.shim(), Signal::SIGCONT);
    // containerd must not clean up before it was looked at.
    send(containerd.pid(), Signal::SIGSTOP);
    send(healthy.shim(), Signal::SIGKILL);
    let ran = wait::until("its end is shown", || {
        let ran: Ran = palisade(&all);
        ran.errors.contains("containerd cleans up").then_some(ran)
    });
    send(containerd.pid(), Signal::SIGCONT);
    let line = ran.out.lines().find(|line| line.starts_with("healthy ")).expect("a line");
    assert!(line.contains(" dead "), "{}", ran.out);
    assert!(ran.errors.contains("sandbox process of the pod healthy is gone"), "{}", ran.errors);
    wait::until("it is cleaned up", || (!palisade(&all).out.contains("healthy")).then_some(()));
    drop(torn);
}

#[test]
fn a_boot_that_is_stopped_hinders_nothing() {
    let containerd = Containerd::start(Version::V2_1);
    let namespace = containerd.namespace();
    let all = ["--namespace", &namespace, "list"];
    let container = containerd.container("held", ["sleep", "1000"]).start();
    let boot = row(&document(&all), "held")["boot"].as_i64().expect("a PID");
    let boot = i32::try_from(boot).expect("a PID");
    send(boot, Signal::SIGSTOP);
    let rows = document(&all);
    send(boot, Signal::SIGCONT);
    assert_eq!(row(&rows, "held")["state"], "running", "{rows:#}");
    drop(container);
}

#[test]
fn a_pod_of_kubernetes_is_listed_with_its_containers() {
    let containerd = Containerd::start_with_sandboxer();
    let name = format!("web-{}", std::process::id());
    let pod = containerd.pod(&name);
    let app = pod.shell("app", "echo ready; exec sleep 1000");
    app.wait_for_log("ready");
    // Pods of other tests are in the same namespace, and may be in trouble.
    let listed = |args: &[&str]| palisade(&[&["--namespace", "k8s.io", "list"], args].concat()).out;
    let rows = serde_json::from_str(&listed(&["--format", "json"])).expect("JSON");
    let one = row(&rows, &app.id);
    assert_eq!((&one["pod"], &one["name"]), (&json!(name), &json!("app")), "{one:#}");
    assert_eq!((&one["podNamespace"], &one["state"]), (&json!("default"), &json!("running")));
    let sandbox = row(&rows, one["sandbox"].as_str().expect("an ID"));
    assert_eq!((&sandbox["state"], &sandbox["pod"]), (&json!("running"), &json!(name)));
    let table = listed(&[]);
    assert!(table.contains(&format!("default/{name} ")), "{table}");
    assert!(table.contains(&format!("{} ", &app.id[..12])), "{table}");
    assert!(!table.contains(&app.id), "{table}");
    assert!(listed(&["--no-trunc"]).contains(&app.id));
    let quiet = listed(&["--quiet"]);
    assert!(quiet.lines().any(|line| line == app.id), "{quiet}");
    let ran = palisade(&["list", "--quiet", "--no-trunc"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
}
