//! What the shim's own service tells: events, plans, log levels and profiles.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use integration::container::options;
use integration::containerd::{Containerd, Version};
use integration::cri::security;
use integration::stdio::Streams;
use integration::{host, on_each_containerd, sandbox, spec, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{command, json, palisade};

on_each_containerd!(events_tell_what_happens_in_pods_of_now_and_of_later);

/// `palisade events`, with what it has printed.
struct Followed {
    command: Child,
    lines: Receiver<Value>,
}

impl Followed {
    /// Follows a containerd's pods.
    fn of(containerd: &Containerd, more: &[&str]) -> Self {
        let namespace = containerd.namespace();
        let args = [&["--namespace", namespace.as_str()], more].concat();
        Self::with(&args)
    }

    fn with(more: &[&str]) -> Self {
        let args = [&["--format", "json", "events"], more].concat();
        let mut command = command(&args).stdout(Stdio::piped()).spawn().expect("run palisade");
        let out = BufReader::new(command.stdout.take().expect("its output"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        Self { command, lines }
    }

    /// Waits for an event of a container's or, without one, of a pod's. Returns it.
    #[track_caller]
    fn wait_for(&self, container: &str, kind: &str) -> Value {
        self.until(container, kind).pop().expect("the event")
    }

    /// As [`Self::wait_for`]. Returns what came before it, too.
    #[track_caller]
    fn until(&self, container: &str, kind: &str) -> Vec<Value> {
        let mut others = Vec::new();
        loop {
            match self.lines.recv_timeout(wait::deadline()) {
                Ok(event) if event["type"] == kind => {
                    let of = event.get("container").unwrap_or(&event["pod"]);
                    let is_it = of == container;
                    others.push(event);
                    if is_it {
                        return others;
                    }
                }
                Ok(event) => others.push(event),
                Err(_) => panic!("no {kind} of {container} among {others:#?}"),
            }
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _ = self.command.kill();
        let _ = self.command.wait();
    }
}

fn events_tell_what_happens_in_pods_of_now_and_of_later(containerd: Containerd) {
    let now = containerd.container("now", ["sleep", "1000"]).start();
    let events = Followed::of(&containerd, &[]);
    events.wait_for("now", "pod");
    let exec = now.exec("probe", spec::process(&["sh", "-c", "exit 3"]), Streams::Null);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    assert_eq!(exec.wait().code, 3);
    assert_eq!(events.wait_for("now", "exec-create")["exec"], "probe");
    assert_eq!(events.wait_for("now", "exec-start")["pid"], exec.pid());
    let exit = events.wait_for("now", "exit");
    assert_eq!((&exit["exec"], &exit["status"]), (&"probe".into(), &3.into()), "{exit}");
    let time = exit["time"].as_str().expect("a time");
    assert!(time.len() == 24 && time.ends_with('Z'), "with milliseconds: {time}");
    now.pause().expect("pause it");
    events.wait_for("now", "pause");
    now.resume().expect("resume it");
    events.wait_for("now", "resume");

    let later = containerd.shell("later", "exec sleep 1000").start();
    events.wait_for("later", "pod");
    later.kill(9).expect("kill it");
    later.wait();
    let exit = events.wait_for("later", "exit");
    assert_eq!((&exit["status"], &exit["signal"]), (&137.into(), &9.into()), "{exit}");
    assert_eq!(exit["namespace"], containerd.namespace());
    later.delete_task().expect("delete it");
    events.wait_for("later", "delete");
    events.wait_for("later", "pod-end");
}

#[test]
fn events_tell_that_memory_ran_out() {
    let containerd = Containerd::start(Version::V2_1);
    let first = containerd.container("first", ["sleep", "1000"]).start();
    let events = Followed::of(&containerd, &[]);
    events.wait_for("first", "pod");
    let hungry = "dd if=/dev/zero of=/dev/shm/blob bs=6M count=8; sleep 1000";
    let hungry = containerd.shell("hungry", &format!("exec {hungry}")).spec(|s| {
        s["linux"]["resources"]["memory"] = serde_json::json!({ "limit": 24 << 20 });
    });
    let hungry = hungry.start();
    assert_eq!(hungry.wait().code, 137);
    let oom = events.wait_for("hungry", "oom");
    if let Some(victim) = oom.get("victim") {
        assert_eq!(victim["command"], "dd", "{oom}");
    } else {
        assert!(!kernel_log_has("task=dd,"), "the kernel's log names it, and the event does not");
    }
    assert_eq!(events.wait_for("hungry", "exit")["status"], 137);
    drop(first);
}

/// Whether the kernel's log can be read and contains a text.
fn kernel_log_has(text: &str) -> bool {
    let output = std::process::Command::new("dmesg").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(text))
}

#[test]
fn events_tell_what_is_refused_and_what_has_no_effect() {
    let containerd = Containerd::start_with_option_file(Version::V2_1, "");
    let pod = containerd.pod_with("told", |config| {
        config.annotations.extend([("dev.palisade.user_log".into(), "pod".into())]);
    });
    let events = Followed::with(&["--pod", &pod.id]);
    events.wait_for(&pod.id, "pod");
    // A container that asks for nothing that it does not get.
    let plain = pod.shell("plain", "exec sleep 1000");
    let clock = pod.container("clock", "unshare -m true; exec sleep 1000", |config| {
        let add = security(config).capabilities.get_or_insert_default();
        add.add_capabilities.push("SYS_TIME".into());
    });
    let powerless = events.wait_for(&clock.id, "powerless");
    let field = powerless["field"].as_str().expect("a field");
    assert!(field.contains("capabilities"), "{powerless}");
    assert!(powerless.to_string().contains("CAP_SYS_TIME"), "{powerless}");
    assert_eq!(powerless["container_name"], "clock", "{powerless}");
    let refused = events.wait_for(&clock.id, "refused");
    assert!(refused.to_string().contains("unshare(CLONE_NEWNS)"), "{refused}");
    assert_eq!((&refused["pod_name"], &refused["program"]), (&"told".into(), &"unshare".into()));
    // Each was told once, and of the other container nothing was.
    clock.stop(std::time::Duration::ZERO).expect("stop it");
    let rest = events.until(&clock.id, "exit");
    let of = |event: &&Value| ["powerless", "refused"].iter().any(|kind| event["type"] == **kind);
    assert_eq!(rest.iter().find(of), None);
    drop(plain);
}

#[test]
fn events_of_one_pod_end_with_it_and_tell_that_its_shim_died() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("one", ["sleep", "1000"]).start();
    let mut events = Followed::of(&containerd, &["--pod", "one"]);
    events.wait_for("one", "pod");
    let shim = container.shim();
    kill(Pid::from_raw(shim), Signal::SIGKILL).expect("kill the shim");
    events.wait_for("one", "shim-died");
    let ended = events.command.wait().expect("wait for palisade");
    assert_eq!(ended.code(), Some(0));
    let nobody = palisade(&["--namespace", &containerd.namespace(), "events", "--pod", "two"]);
    assert_eq!(nobody.code, Some(3), "{nobody:?}");
}

#[test]
fn the_log_level_of_a_pod_changes_at_once_and_for_a_while() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("talks", ["sleep", "1000"]).start();
    let namespace = containerd.namespace();
    let set = |args: &[&str]| {
        palisade(&[&["--namespace", &namespace, "debug", "log-level", "talks"], args].concat())
    };
    let has = |text: &str| containerd.log().contains(text);
    container.exec_shell("silent", "true");
    assert!(!has("sandbox: request"), "boot logs at debug level before it is told to");

    let ran = set(&["debug", "--for", "1h"]);
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""), "{ran:?}");
    assert!(ran.out.contains("log at debug for 1h0m; before, at info"), "{}", ran.out);
    container.exec_shell("loud", "true");
    wait::until("boot's debug lines name their request", || {
        let log = containerd.log();
        let exec = log.lines().find(|line| line.contains("sandbox: request"));
        exec.filter(|line| line.ends_with(&format!("sandbox={}", "talks")))?;
        log.contains(": exec\"").then_some(())
    });
    // What is set meanwhile does not lose the level to return to.
    let ran = set(&["trace", "--for", "1s"]);
    assert!(ran.out.contains("before, at debug"), "{ran:?}");
    wait::until("the level is back", || has("the log level is that of before").then_some(()));
    let ran = set(&["warn"]);
    assert!(ran.out.contains("before, at info"), "{ran:?}");

    let ran = set(&["debug", "--for", "0s"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.errors.contains("--for") && ran.errors.contains("expected"), "{}", ran.errors);
}

#[test]
fn a_plan_says_where_its_values_come_from_and_no_secrets() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("planned", ["sleep", "1000"]).spec(|s| {
        s["process"]["env"] = serde_json::json!(["PATH=/bin", "PASSWORD=hunter2"]);
        s["linux"]["resources"]["memory"] = serde_json::json!({ "limit": 64 << 20 });
        s["annotations"]["dev.palisade.on_powerless"] = serde_json::json!("refuse");
    });
    let container = container.options(options("user_log = 'pod'", "")).start();
    let namespace = containerd.namespace();
    let show =
        |more: &[&str]| json(&[&["--namespace", &namespace, "inspect", "planned"], more].concat());
    let plan = show(&[]);
    assert!(!plan.to_string().contains("hunter2"), "{plan}");
    let it = &plan["containers"][0];
    assert_eq!(it["pid"], container.pid());
    assert_eq!(it["process"]["environment"], serde_json::json!(["PATH", "PASSWORD"]));
    assert_eq!(it["process"]["args"], Value::Null);
    let from = |option: &str| it["options"][option]["from"].as_str().unwrap_or_default();
    assert_eq!(from("on_powerless"), "annotation dev.palisade.on_powerless");
    assert_eq!(from("user_log"), "config_body");
    assert_eq!(from("views"), "default");
    let refuses = it["seccomp"]["baseline"]["refuses"].as_array().expect("a baseline");
    assert!(refuses.contains(&"kexec_load".into()) || refuses.contains(&"bpf".into()), "{it:#}");
    let proc = it["mounts"].as_array().expect("mounts").iter().find(|m| m["file_system"] == "proc");
    let proc = proc.expect("a proc");
    assert_eq!(proc["locked_flags"], proc["flags"], "{proc}");
    let first = &it["id_mappings"]["uids"][0];
    assert_eq!(first["inside"], 0, "{it:#}");
    assert_ne!(first["outside"], 0, "root inside is nobody outside: {it:#}");

    let why = &it["from"];
    for (at, wanted) in [
        ("/process/user", "spec process.user"),
        ("/process/rlimits", "spec process.rlimits"),
        ("/process/apparmor_profile", "default"),
        ("/namespaces/pid", "spec linux.namespaces"),
        ("/namespaces/user", "option userns = auto (default)"),
        ("/id_mappings", "option id_range_start"),
        ("/seccomp/baseline", "option baseline = default (default)"),
        ("/cgroup/paths", "spec linux.cgroupsPath, option cgroup_driver"),
        ("/views", "option views = on (default)"),
        ("/sysctls/user.max_user_namespaces", "option baseline"),
    ] {
        let from = why.pointer(at).and_then(Value::as_str).unwrap_or_default();
        assert!(from.starts_with(wanted) || from.contains(wanted), "{at}: {why:#}");
    }
    // Each part of the plan says where it is from.
    let told = ["id", "bundle", "pid", "from", "options", "powerless"];
    for part in it.as_object().expect("a plan").keys().filter(|key| !told.contains(&key.as_str())) {
        assert!(!why[part].is_null(), "{part}: {why:#}");
    }
    container.update(&serde_json::json!({"memory": {"limit": 48 << 20}})).expect("update it");
    let cgroup = &show(&[])["containers"][0]["cgroup"];
    let limit = |when: &str| cgroup[when]["memory"]["limit"].as_i64();
    assert_eq!(limit("resources_now"), Some(48 << 20), "{cgroup:#}");
    assert_eq!(limit("resources_at_create"), Some(64 << 20), "{cgroup:#}");

    let plan = show(&["--values"]).to_string();
    assert!(plan.contains("hunter2") && plan.contains("sleep"), "{plan}");
    drop(container);
}

#[test]
fn a_sandbox_process_or_a_shim_that_is_stopped_keeps_nobody_waiting() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("stuck", ["sleep", "1000"]).start();
    let namespace = containerd.namespace();
    let set = || palisade(&["--namespace", &namespace, "debug", "log-level", "stuck", "debug"]);
    let shim = container.shim();
    let boot = sandbox::boot_of(shim).pid;
    for (pid, who) in [(boot, "the sandbox process did not answer"), (shim, "the shim of the pod")]
    {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("stop it");
        let ran = set();
        kill(Pid::from_raw(pid), Signal::SIGCONT).expect("let it go on");
        assert_eq!(ran.code, Some(4), "{ran:?}");
        assert!(ran.errors.contains(who), "{}", ran.errors);
    }
    wait::until("both answer again", || (set().code == Some(0)).then_some(()));
}

/// A shim that nobody listens to keeps nothing, and its pod ends as fast as ever.
#[test]
fn a_pod_ends_at_once_although_it_is_followed() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("short", ["sleep", "1000"]).start();
    let events = Followed::of(&containerd, &[]);
    events.wait_for("short", "pod");
    let shim = container.shim();
    container.kill(9).expect("kill it");
    container.wait();
    container.delete_task().expect("delete it");
    events.wait_for("short", "pod-end");
    wait::until("the shim ends", || host::process(shim).is_none().then_some(()));
}
