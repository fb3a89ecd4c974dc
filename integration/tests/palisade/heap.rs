//! What a pod's shim and sandbox process allocate and hold.

use std::fs;
use std::process::{Child, Stdio};

use integration::container::{Container, Exec};
use integration::containerd::{Containerd, Version};
use integration::stdio::Streams;
use integration::{sandbox, spec, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Ran, command, palisade};

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a PID"), signal).expect("send a signal");
}

/// Whether the sampler of a process is on.
fn is_sampled(pid: i32) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.contains("palisade-heap")
}

/// Begins a profile, which takes as long as nobody ends it. Each allocation is a sample.
fn begin(containerd: &Containerd, id: &str, pids: &[i32]) -> Child {
    let namespace = containerd.namespace();
    let args = ["--namespace", &namespace, "--format", "json", "debug", "heap-profile", id];
    let mut command = command(&[&args[..], &["--duration", "1h", "--every", "1"]].concat());
    let profile = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    wait::until("the samplers are on", || pids.iter().all(|pid| is_sampled(*pid)).then_some(()));
    profile.expect("run palisade")
}

/// Ends a profile as Ctrl-C does, and returns it.
fn end(profile: Child) -> (Ran, Value) {
    signal(i32::try_from(profile.id()).expect("a PID"), Signal::INT);
    ended(profile)
}

fn ended(profile: Child) -> (Ran, Value) {
    let ran = Ran::from(profile.wait_with_output().expect("wait for palisade"));
    let document = serde_json::from_str(&ran.out).unwrap_or(Value::Null);
    (ran, document)
}

/// Starts execs that stay.
fn hold<'a>(container: &'a Container<'_>, count: usize) -> Vec<Exec<'a>> {
    let start = |number: usize| {
        let process = spec::process(&["sleep", "1000"]);
        let id = format!("held-{number}");
        let exec = container.exec(&id, process, Streams::Captured).expect("add an exec");
        exec.start().expect("start it");
        exec
    };
    (0..count).map(start).collect()
}

/// The objects that a process holds, allocated below a function.
fn objects(document: &Value, process: &str, function: &str) -> u64 {
    let stacks = document["stacks"].as_array().expect("stacks").iter();
    let has = |stack: &&Value| {
        let functions = stack["functions"].as_array().expect("functions");
        let named = |name: &Value| name.as_str().is_some_and(|name| name.contains(function));
        stack["process"] == process && functions.iter().any(named)
    };
    stacks.filter(has).map(|stack| stack["objects"].as_u64().expect("a number")).sum()
}

fn totals<'a>(document: &'a Value, process: &str) -> &'a Value {
    let mut all = document["processes"].as_array().expect("processes").iter();
    all.find(|its| its["process"] == process).unwrap_or_else(|| panic!("{process}: {document}"))
}

#[test]
fn execs_that_stay_are_found_where_the_shim_and_boot_keep_them() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("grows", ["sleep", "1000"]).start();
    let shim = container.shim();
    let boot = sandbox::boot_of(shim).pid;
    let pids = [shim, boot];
    assert!(!pids.iter().any(|pid| is_sampled(*pid)), "nobody looks yet");
    // The first of their kind, with what is kept of them for all others.
    let _before = container.exec_shell("before", "true");

    // What has gone again is not there.
    let profile = begin(&containerd, "grows", &pids);
    for number in 0..4 {
        container.exec_shell(&format!("gone-{number}"), "true");
    }
    let (ran, none) = end(profile);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.errors, "palisade: it was stopped early\n");
    assert_eq!((&none["ended"], &none["pod"]), (&"stopped".into(), &"grows".into()));

    let profile = begin(&containerd, "grows", &pids);
    let held = hold(&container, 20);
    let (ran, document) = end(profile);
    assert_eq!((ran.code, held.len()), (Some(0), 20), "{ran:?}");
    wait::until("the samplers are off", || {
        (!pids.iter().any(|pid| is_sampled(*pid))).then_some(())
    });
    // In the shim, what the compiler has put into what depends on how it was built.
    let kept =
        [("shim", &["stdio::passage::", "task::exec::"][..]), ("sandbox", &["types::ProcessId"])];
    for (process, functions) in kept {
        let sum = |document: &Value| {
            functions.iter().map(|function| objects(document, process, function)).sum::<u64>()
        };
        let (with, without) = (sum(&document), sum(&none));
        assert!(with >= 20 && with > 2 * without, "{process}: {with}, {without}: {}", ran.out);
        let its = totals(&document, process);
        let number = |key: &str| its[key].as_u64().expect("a number");
        assert!(number("allocated") > number("held") && number("frees") > 20, "{its}");
        assert_eq!(its["lost"], 0, "{its}");
    }
    let from_the_beginning = objects(&document, "sandbox", "sandbox_core::boot::run");
    assert!(from_the_beginning >= 40, "{}", ran.out);
    let of_the_sampler =
        objects(&document, "shim", "sys::heap") + objects(&none, "sandbox", "sys::heap");
    assert_eq!(of_the_sampler, 0, "{}", ran.out);
}

#[test]
fn one_profile_is_taken_at_a_time_and_ends_with_its_command() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("once", ["sleep", "1000"]).start();
    let shim = container.shim();
    let pids = [shim, sandbox::boot_of(shim).pid];
    let namespace = containerd.namespace();
    let again = |args: &[&str]| {
        let first = ["--namespace", &namespace, "debug", "heap-profile", "once"];
        palisade(&[&first[..], args].concat())
    };
    let mut profile = begin(&containerd, "once", &pids);
    let ran = again(&["--duration", "1s"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.errors.contains("one is taken at a time"), "{ran:?}");
    assert!(pids.iter().all(|pid| is_sampled(*pid)), "the first goes on");

    profile.kill().expect("kill palisade");
    profile.wait().expect("wait for it");
    wait::until("the samplers are off", || {
        (!pids.iter().any(|pid| is_sampled(*pid))).then_some(())
    });
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name).to_str().expect("ASCII").to_owned();
    let run = |args: &[&str]| {
        let ran = again(&[&["--duration", "100ms", "--every", "1"], args].concat());
        assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""), "{ran:?}");
        ran.out
    };
    // By itself, in every form.
    let table = wait::until("another one is taken", || {
        let ran = again(&["--duration", "100ms", "--every", "1"]);
        (ran.code == Some(0)).then_some(ran.out)
    });
    assert!(["HELD OF IT", "CALL SITE", "shim", "sandbox"].iter().all(|has| table.contains(has)));
    for (name, has) in [("a.svg", "<title>shim "), ("a.folded", "shim;")] {
        run(&["-o", &file(name)]);
        let text = fs::read_to_string(file(name)).expect("read");
        assert!(text.contains(has), "{name}: {text}");
    }
    run(&["-o", &file("a.pb.gz")]);
    assert_eq!(fs::read(file("a.pb.gz")).expect("read")[..2], [0x1f, 0x8b], "gzip");
    for wrong in [["--every", "0"], ["--every", "2000000"], ["--duration", "0"]] {
        let ran = again(&wrong);
        assert!(ran.code == Some(2) && ran.errors.contains(wrong[0]), "{wrong:?}: {ran:?}");
    }
}

#[test]
fn a_pod_that_is_stopped_ends_or_loses_its_shim_keeps_nobody_waiting() {
    let containerd = Containerd::start(Version::V2_1);
    let start = |id: &str| containerd.container(id, ["sleep", "1000"]).start();
    // The shim's part is there without the sandbox process, whose sampler goes off once it runs.
    let stopped = start("stopped");
    let shim = stopped.shim();
    let boot = sandbox::boot_of(shim).pid;
    let profile = begin(&containerd, "stopped", &[shim, boot]);
    signal(boot, Signal::STOP);
    let (ran, document) = end(profile);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.errors.contains("sandbox process") && ran.errors.contains("no answer"), "{ran:?}");
    assert!(objects(&document, "shim", "ttrpc::") > 0, "{}", ran.out);
    assert!(totals(&document, "sandbox")["missing"].is_string(), "{}", ran.out);
    signal(boot, Signal::CONT);
    wait::until("its sampler is off", || (!is_sampled(boot)).then_some(()));

    // What was found until the pod has ended.
    let ends = start("ends");
    let shim = ends.shim();
    let boot = sandbox::boot_of(shim).pid;
    let profile = begin(&containerd, "ends", &[shim, boot]);
    drop(ends);
    let (ran, document) = ended(profile);
    assert_eq!((ran.code, &document["ended"]), (Some(0), &"no-process".into()), "{ran:?}");
    assert!(ran.errors.contains("the pod has ended"), "{ran:?}");
    assert!(objects(&document, "shim", "ttrpc::") > 0, "{}", ran.out);

    let killed = start("killed");
    let shim = killed.shim();
    let boot = sandbox::boot_of(shim).pid;
    let profile = begin(&containerd, "killed", &[shim, boot]);
    signal(shim, Signal::KILL);
    let (ran, _) = ended(profile);
    assert!(ran.code == Some(4) && ran.errors.contains("the shim of the pod killed"), "{ran:?}");
}
