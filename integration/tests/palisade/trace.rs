//! Traces of pods, read by Perfetto's own classes, and the memory of programs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use integration::built::repository;
use integration::containerd::{Containerd, Version};
use integration::{on_each_containerd, sandbox, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Ran, command, json, palisade};

on_each_containerd!(memory_is_shown_by_mapping);

/// Returns a place for a trace, in the folder of the test's containerd.
fn place(containerd: &Containerd) -> PathBuf {
    containerd.directory().join("trace.perfetto")
}

/// Begins to trace a container.
fn begin(containerd: &Containerd, id: &str, to: &Path, flags: &[&str]) -> Child {
    let namespace = containerd.namespace();
    let to = to.to_str().expect("a path");
    let common = ["-n", &namespace, "--format", "json", "debug", "trace", id, "-o", to];
    let mut command = command(&[&common, flags].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run palisade")
}

fn ended(child: Child) -> (Ran, Value) {
    let ran: Ran = child.wait_with_output().expect("wait for palisade").into();
    let value = serde_json::from_str(&ran.out).unwrap_or(Value::Null);
    (ran, value)
}

/// Waits until the kernel records for a command.
fn until_it_records(child: &Child) {
    wait::until("it records", || {
        Path::new(&format!("/proc/{}", child.id())).exists().then_some(())
    });
    let recording = || {
        let files = integration::host::descriptors(child.id().cast_signed());
        files.values().any(|file| file.ends_with("/trace_pipe_raw")).then_some(())
    };
    wait::until("the kernel records", recording);
}

mod needs_perfetto {
    use super::*;

    /// Reads a trace, and prints what the stories want to know of it.
    const READER: &str = r#"
import json, sys
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace
trace = Trace()
trace.ParseFromString(open(sys.argv[1], "rb").read())
tracks, begun, slices, instants, switches, running = {}, {}, [], [], 0, set()
for packet in trace.packet:
    if packet.HasField("track_descriptor"):
        tracks[packet.track_descriptor.uuid] = packet.track_descriptor
for packet in sorted(trace.packet, key=lambda packet: packet.timestamp):
    for event in packet.ftrace_events.event:
        if event.HasField("sched_switch"):
            switches += 1
            running.add(event.sched_switch.next_pid)
    if not packet.HasField("track_event"):
        continue
    event = packet.track_event
    track = tracks[event.track_uuid]
    notes = {note.name: note.string_value for note in event.debug_annotations}
    if event.type == event.TYPE_SLICE_BEGIN:
        begun.setdefault(event.track_uuid, []).append((packet.timestamp, event, notes))
    elif event.type == event.TYPE_SLICE_END:
        time, first, before = begun[event.track_uuid].pop()
        slices.append({"name": first.name, "pid": track.thread.pid, "tid": track.thread.tid,
            "ns": packet.timestamp - time, "categories": list(first.categories), **before, **notes})
    else:
        instants.append({"name": event.name, "track": track.name, **notes})
open_calls = [{"name": e.name, "categories": list(e.categories), **n}
    for stack in begun.values() for _, e, n in stack]
print(json.dumps({
    "processes": [t.process.process_name for t in tracks.values() if t.HasField("process")],
    "threads": [t.thread.thread_name for t in tracks.values() if t.HasField("thread")],
    "named": [t.name for t in tracks.values() if t.name],
    "slices": slices, "open": open_calls, "instants": instants,
    "switches": switches, "running": sorted(running),
    "deepest": max([len(s) for s in begun.values()] + [0]),
}))
"#;

    fn read(trace: &Path) -> Value {
        let python = repository().join(".cache/perfetto/bin/python");
        let output = Command::new(python).args(["-c", READER]).arg(trace).output();
        let output = output.expect("run the reader; ci/perfetto makes it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn slices<'a>(read: &'a Value, name: &str) -> Vec<&'a Value> {
        let all = read["slices"].as_array().expect("slices");
        all.iter().filter(|slice| slice["name"] == name).collect()
    }

    on_each_containerd!(a_trace_shows_the_calls_of_a_program);

    fn a_trace_shows_the_calls_of_a_program(containerd: Containerd) {
        let script = "while :; do usleep 20000; cat /etc/passwd /nowhere > /dev/null 2>&1; done";
        let container = containerd.shell("traced", script).start();
        let to = place(&containerd);
        let mut child = begin(&containerd, "traced", &to, &["--duration", "2s"]);
        until_it_records(&child);
        // What the shim reports is in it, too.
        while child.try_wait().expect("look at the command").is_none() {
            container.pause().expect("pause it");
            container.resume().expect("resume it");
            container.exec_shell("once", "true");
        }
        let (ran, recorded) = ended(child);
        assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""));
        assert_eq!(recorded["ended"], "time");
        assert!(recorded["records"].as_u64().is_some_and(|records| records > 100), "{recorded}");
        let size = std::fs::metadata(&to).expect("the trace").len();
        assert_eq!(recorded["bytes"], size);

        let read = read(&to);
        // The shell waits for its programs, which sleep, and fail to open a file.
        let pid = container.pid();
        let waits = slices(&read, "wait4");
        assert!(waits.iter().any(|slice| slice["tid"] == pid), "{waits:?}");
        let slept: Vec<_> = ["nanosleep", "clock_nanosleep"]
            .iter()
            .flat_map(|name| slices(&read, name))
            .filter(|slice| slice["ns"].as_u64().is_some_and(|ns| ns >= 20_000_000))
            .collect();
        assert!(!slept.is_empty(), "{recorded}");
        assert!(slept[0]["categories"].to_string().contains("wait-time"), "{}", slept[0]);
        let failed = ["open", "openat"].iter().flat_map(|name| slices(&read, name)).find(|slice| {
            slice["returned"].as_str().is_some_and(|text| text.starts_with("ENOENT (No such"))
        });
        assert!(failed.is_some_and(|slice| slice["flags"].to_string().contains("O_RDONLY")));
        // What executes and ends is on the track of the container.
        let instants = read["instants"].as_array().expect("instants");
        let on_container = |beginning: &str| {
            instants.iter().any(|instant| {
                instant["name"].as_str().is_some_and(|name| name.starts_with(beginning))
                    && instant["track"] == "container traced"
            })
        };
        assert!(on_container("exit of "), "{instants:?}");
        let paused = instants
            .iter()
            .find(|instant| instant["name"].as_str().is_some_and(|name| name.starts_with("pause")));
        assert_eq!(paused.map(|instant| &instant["track"]), Some(&Value::from("pod traced")));
        assert!(instants.iter().any(|instant| instant["name"] == "page fault"));
        // Threads are shown as they run, and only those of the container.
        assert!(read["switches"].as_u64().is_some_and(|switches| switches > 50), "{recorded}");
        let running = read["running"].as_array().expect("threads");
        assert!(running.iter().any(|thread| *thread == pid), "{running:?}");
        assert!(!running.iter().any(|thread| *thread == std::process::id()), "{running:?}");
        let processes = read["processes"].as_array().expect("processes");
        let named =
            |process: &&Value| process.as_str().is_some_and(|n| n.starts_with("traced: sh"));
        assert!(processes.iter().any(|process| named(&process)), "{processes:?}");
        // A thread is in one call at a time.
        assert!(read["deepest"].as_u64().is_some_and(|deepest| deepest <= 1), "{}", read["open"]);
    }

    #[test]
    fn a_call_that_lasts_is_shown_with_what_it_waits_for() {
        let containerd = Containerd::start(Version::V2_1);
        let container = containerd.shell("waits", "exec nc -l -p 8080").start();
        wait::until("it listens", || {
            container.exec_shell("look", "netstat -ltn").1.contains(":8080").then_some(())
        });
        let to = place(&containerd);
        let (ran, _) = ended(begin(&containerd, "waits", &to, &["--duration", "200ms"]));
        assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""));
        let read = read(&to);
        let open = read["open"].as_array().expect("calls");
        let waiting = open
            .iter()
            .find(|call| ["accept", "accept4", "poll"].iter().any(|name| call["name"] == *name));
        let waiting = waiting.unwrap_or_else(|| panic!("{open:?}"));
        assert!(waiting.to_string().contains("socket:["), "{waiting}");
        assert!(waiting["categories"].to_string().contains("wait-"), "{waiting}");
        drop(container);
    }
}

#[test]
fn a_trace_ends_early_and_says_so() {
    let containerd = Containerd::start(Version::V2_1);
    let busy = containerd.shell("busy", "while :; do cat /etc/passwd > /dev/null; done").start();
    let to = place(&containerd);
    let name = to.to_str().expect("a path");

    // By Ctrl-C.
    let child = begin(&containerd, "busy", &to, &["--duration", "1h"]);
    until_it_records(&child);
    kill_process(Pid::from_child(&child), Signal::INT).expect("interrupt it");
    let (ran, recorded) = ended(child);
    assert_eq!((ran.code, &recorded["ended"]), (Some(0), &Value::from("stopped")), "{ran:?}");
    let size = std::fs::metadata(&to).expect("the trace").len();
    assert_eq!(recorded["bytes"], size);

    // A file that exists is left alone.
    let (ran, _) = ended(begin(&containerd, "busy", &to, &[]));
    assert_eq!(ran.code, Some(1));
    assert!(ran.errors.contains(name) && ran.errors.contains("--force"), "{}", ran.errors);
    assert_eq!(std::fs::metadata(&to).expect("the trace").len(), size);

    // At the size that it may have.
    let flags = ["--force", "--duration", "1h", "--limit", "1M"];
    let (ran, recorded) = ended(begin(&containerd, "busy", &to, &flags));
    assert_eq!((ran.code, &recorded["ended"]), (Some(0), &Value::from("full")), "{ran:?}");
    assert!(std::fs::metadata(&to).expect("the trace").len() >= 1 << 20);

    // Though boot stands still, and then with the pod.
    let boot = sandbox::boot_of(busy.shim()).pid;
    kill_process(Pid::from_raw(boot).expect("a PID"), Signal::STOP).expect("stop boot");
    let child = begin(&containerd, "busy", &to, &["--force", "--duration", "1h"]);
    until_it_records(&child);
    kill_process(Pid::from_raw(boot).expect("a PID"), Signal::KILL).expect("kill boot");
    let (ran, recorded) = ended(child);
    assert_eq!((ran.code, &recorded["ended"]), (Some(0), &Value::from("pod_ended")), "{ran:?}");
    assert!(recorded["records"].as_u64().is_some_and(|records| records > 0), "{recorded}");

    // A shim that is killed takes its pod with it.
    let lost = containerd.shell("lost", "while :; do cat /etc/passwd > /dev/null; done").start();
    let child = begin(&containerd, "lost", &to, &["--force", "--duration", "1h"]);
    until_it_records(&child);
    kill_process(Pid::from_raw(lost.shim()).expect("a PID"), Signal::KILL).expect("kill the shim");
    let (ran, recorded) = ended(child);
    assert_eq!((ran.code, &recorded["ended"]), (Some(0), &Value::from("pod_ended")), "{ran:?}");
    assert!(std::fs::metadata(&to).expect("the trace").len() > 0);

    // Wrong flags are named.
    for (flag, value, expected) in
        [("--duration", "0s", "10ms to 1h"), ("--limit", "1K", "1M to 64G")]
    {
        let ran = palisade(&["debug", "trace", "busy", "-o", name, flag, value]);
        assert_eq!(ran.code, Some(2));
        assert!(ran.errors.contains(flag) && ran.errors.contains(expected), "{}", ran.errors);
    }
}

/// Each verb below `debug` writes one document for programs, of a pod that is named as people do.
#[test]
fn every_verb_of_debug_writes_json() {
    let containerd = Containerd::start(Version::V2_1);
    let name = format!("looked-into-{}", std::process::id());
    let pod = containerd.pod(&name);
    let busy = pod.shell("busy", "while :; do usleep 1000; done");
    let to = place(&containerd);
    let to = to.to_str().expect("a path");
    let debug = |verb: &str, more: &[&str]| json(&[&["debug", verb, &name], more].concat());

    let level = debug("log-level", &["debug", "--for", "30s"]);
    assert_eq!((&level["level"], &level["seconds"]), (&"debug".into(), &30.into()), "{level}");
    assert_eq!(debug("log-level", &["info"])["before"], "debug");
    let memory = debug("memory", &[]);
    let has_busy = |row: &Value| row.to_string().contains("usleep");
    assert!(memory.as_array().expect("a list").iter().any(has_busy), "{memory}");
    for kind in ["cpu-profile", "block-profile", "mutex-profile"] {
        let profile = debug(kind, &["--duration", "300ms"]);
        assert!(profile["stacks"].is_array() && profile["lost"].is_u64(), "{kind}: {profile}");
    }
    let recorded = debug("trace", &["--duration", "300ms", "-o", to]);
    assert_eq!(recorded["ended"], "time", "{recorded}");
    assert!(Path::new(to).exists());
    drop(busy);
}

fn memory_is_shown_by_mapping(containerd: Containerd) {
    // A program that holds 24 MiB, and a file of 8 MiB in shared memory.
    let script = "dd if=/dev/zero of=/dev/shm/held bs=1M count=8 2> /dev/null; \
                  dd if=/dev/zero of=/tmp/fifo bs=24M count=1 2> /dev/null; sleep 1000";
    let script = format!("mkfifo /tmp/fifo; sleep 1000 < /tmp/fifo & {script}");
    let container = containerd.shell("holds", &script);
    let container = container.start();
    let namespace = containerd.namespace();
    let look = || {
        let ran = palisade(&["-n", &namespace, "--format", "json", "debug", "memory", "holds"]);
        assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""));
        serde_json::from_str::<Value>(&ran.out).expect("JSON")
    };
    // Version 1 counts pages in batches.
    let at_least = |value: &Value, bytes: u64| value.as_u64().is_some_and(|value| value >= bytes);
    let (all, process) = wait::until("dd holds its block", || {
        let all = look();
        let holds = |process: &&Value| {
            process["command"].as_str().is_some_and(|command| command.contains("bs=24M"))
                && at_least(&process["total"]["anonymous"], 24 << 20)
        };
        let process = all[0]["processes"].as_array()?.iter().find(holds)?.clone();
        at_least(&all[0]["cgroup"]["anonymous"], 23 << 20).then_some((all, process))
    });
    let mappings = process["mappings"].as_object().expect("mappings");
    let large = |usage: &Value| {
        usage["anonymous"].as_u64().is_some_and(|b| (24 << 20..26 << 20).contains(&b))
    };
    assert!(mappings.values().any(large), "{mappings:?}");
    assert!(process["page_tables"].as_u64().is_some_and(|bytes| bytes > 0), "{process}");
    let cgroup = &all[0]["cgroup"];
    assert!(at_least(&cgroup["shared"], 8 << 20), "{cgroup}");
    assert!(cgroup["usage"].as_u64() >= cgroup["anonymous"].as_u64(), "{cgroup}");
    assert_eq!(all[0]["share_percent"], 100.0);
    let table = palisade(&["-n", &namespace, "debug", "memory", "holds"]).out;
    assert!(table.contains("CHARGED") && table.contains("bs=24M"), "{table}");
    drop(container);
}
