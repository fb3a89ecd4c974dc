//! How long requests took: shown, and exported to a collector.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Stdio;

use integration::containerd::{Containerd, Version};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Ran, command, palisade};

#[test]
fn without_the_option_it_is_said_what_to_set() {
    let containerd = Containerd::start(Version::V2_1);
    let namespace = containerd.namespace();
    let container = containerd.shell("plain", "exec sleep 1000").start();
    let ran = palisade(&["--namespace", &namespace, "spans", "--pod", "plain"]);
    assert!(ran.code == Some(1) && ran.errors.contains("spans = true"), "{ran:?}");
    drop(container);
}

/// The spans of a Create that came before anybody asked, and of an exec that comes after.
#[test]
fn spans_are_shown_and_exported() {
    let containerd = Containerd::start_with_option_file(Version::V2_1, "spans = true");
    let pod = containerd.pod("traced");
    let container = pod.shell("main", "exec sleep 1000");
    let mut shown = command(&["spans", "--pod", &pod.id, "--format", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("run palisade");
    let mut lines = BufReader::new(shown.stdout.take().expect("its output")).lines();
    let mut next = |name: &str| {
        lines
            .by_ref()
            .map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON"))
            .find(|span: &serde_json::Value| span["name"] == name)
            .expect("a span")
    };
    let step = next("create the init");
    let create = next("Create");
    assert_eq!((&step["traceId"], &step["parentSpanId"]), (&create["traceId"], &create["spanId"]));

    let collector = TcpListener::bind("127.0.0.1:0").expect("listen");
    let url = format!("http://{}/v1/traces", collector.local_addr().expect("its address"));
    let mut export =
        command(&["spans", "--pod", &pod.id, "--export", &url]).spawn().expect("run palisade");
    let (mut stream, _) = collector.accept().expect("accept");
    let mut reader = BufReader::new(stream.try_clone().expect("dup"));
    let (mut length, mut line) = (0, String::new());
    while reader.read_line(&mut line).expect("a header") > 2 {
        if let Some(number) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = number.trim().parse().expect("a number");
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the request");
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").expect("answer");
    let request: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    let spans = &request["resourceSpans"][0]["scopeSpans"][0]["spans"];
    let names: Vec<&str> = spans
        .as_array()
        .expect("spans")
        .iter()
        .map(|span| span["name"].as_str().expect("a name"))
        .collect();
    assert!(names.contains(&"Create") && names.contains(&"create the init"), "{names:?}");

    // An exec comes later.
    assert_eq!(container.ask("echo here"), "here");
    assert_eq!(next("create the process")["kind"], 1);
    for child in [&mut shown, &mut export] {
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
}

/// Of the only pod, that ends the command; beside others it is said.
#[test]
fn a_shim_that_dies_is_told_and_not_waited_for() {
    let containerd = Containerd::start_with_option_file(Version::V2_1, "spans = true");
    let pod = containerd.pod("dies");
    let follow = |flags: &[&str]| {
        let mut following = command(&[&["spans"], flags].concat());
        following.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = following.spawn().expect("run palisade");
        // The spans of the pod's beginning: it listens.
        let mut first = [0; 1];
        child.stdout.as_mut().expect("its output").read_exact(&mut first).expect("a span");
        child
    };
    let only = follow(&["--pod", &pod.id]);
    let mut all = follow(&[]);
    let shim = integration::sandbox::shim_of(pod.pid());
    kill(Pid::from_raw(shim), Signal::SIGKILL).expect("kill the shim");
    let ran: Ran = only.wait_with_output().expect("wait for palisade").into();
    let told = format!("the shim of the pod {} has died; it sends no more", pod.id);
    assert!(ran.code == Some(4) && ran.errors.contains(&told), "{ran:?}");
    let errors = BufReader::new(all.stderr.take().expect("its errors"));
    assert!(errors.lines().any(|line| line.expect("a line").contains(&told)), "it is not told");
    all.kill().expect("kill");
    all.wait().expect("wait");
}
