//! Looking at a pod from the host: its processes, mounts, state and use.

use integration::container::Container;
use integration::containerd::{Containerd, Version};
use integration::{host, on_each_containerd, sandbox, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{Ran, palisade};

on_each_containerd!(
    processes_are_shown_with_their_users_inside,
    mounts_are_shown_with_what_is_locked,
    use_agrees_with_the_cgroup,
    the_state_is_that_of_oci,
    a_pod_is_looked_at_whole,
);

/// Runs a verb on a container, with JSON as its output.
fn on(container: &Container<'_>, containerd: &Containerd, verb: &[&str]) -> (Ran, Value) {
    let namespace = containerd.namespace();
    let common = ["--namespace", &namespace, "--format", "json"];
    let ran = palisade(&[verb, &common, &[&container.id]].concat());
    let value = serde_json::from_str(&ran.out).unwrap_or(Value::Null);
    (ran, value)
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a PID"), signal).expect("send a signal");
}

fn processes_are_shown_with_their_users_inside(containerd: Containerd) {
    let container = containerd.container("looked-at", ["sleep", "4321"]);
    let container = container.spec(|spec| spec["process"]["user"] = json!({"uid": 33, "gid": 33}));
    let container = container.start();
    let (ran, all) = on(&container, &containerd, &["ps"]);
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""));
    let init = all.as_array().and_then(|all| all.iter().find(|row| row["pid"] == container.pid()));
    let init = init.unwrap_or_else(|| panic!("no init in {}", ran.out));
    assert_eq!(init["command"], "sleep 4321");
    assert_eq!((&init["user"], &init["pid_inside"]), (&json!(33), &json!(1)));
    let outside: u32 = host::status(container.pid(), "Uid")
        .split_whitespace()
        .next()
        .and_then(|uid| uid.parse().ok())
        .expect("a user");
    assert_eq!(init["user_of_host"], outside);
    assert_ne!(outside, 33, "a user namespace");
    let namespace = containerd.namespace();
    let table = palisade(&["-n", &namespace, "ps", "looked-at"]).out;
    let line = table.lines().find(|line| line.ends_with("sleep 4321")).unwrap_or_default();
    assert!(line.split_whitespace().any(|word| word == "33"), "{table}");
    // What a container calls itself reaches no terminal.
    let named = container.exec_shell("named", "exec -a \"$(printf 'x\\033[2Jy')\" sleep 2 &");
    assert_eq!(named.0, 0);
    assert!(!palisade(&["-n", &namespace, "ps", "looked-at"]).out.contains('\x1b'));
}

fn mounts_are_shown_with_what_is_locked(containerd: Containerd) {
    let data = containerd.directory();
    let data = data.to_str().expect("a path");
    let container = containerd
        .container("mounts", ["sleep", "1000"])
        .bind(data, "/locked", &["rbind", "ro", "nosuid"])
        .bind(data, "/open", &["rbind", "rw"])
        .start();
    let (ran, all) = on(&container, &containerd, &["mounts"]);
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""));
    let at = |place: &str| {
        let all = all.as_array().expect("a list");
        let found = all.iter().find(|row| row["destination"] == place);
        found.unwrap_or_else(|| panic!("{place} is not in {}", ran.out)).clone()
    };
    let locked = at("/locked")["locked"].clone();
    assert!(locked.as_array().is_some_and(|all| all.contains(&json!("ro"))), "{locked}");
    assert!(locked.as_array().is_some_and(|all| all.contains(&json!("nosuid"))), "{locked}");
    let open = at("/open");
    assert!(open["locked"].as_array().is_some_and(|all| !all.contains(&json!("ro"))), "{open}");
    assert!(open["options"].as_array().is_some_and(|all| all.contains(&json!("rw"))), "{open}");
    assert!(
        data.starts_with(open["root"].as_str().unwrap_or("?")) || open["root"] != "/",
        "{open}"
    );
    assert_eq!(at("/")["type"], "overlay");
    assert_eq!(at("/proc")["type"], "proc");
    // Nothing of it is left, and nothing was changed.
    assert_eq!(on(&container, &containerd, &["mounts"]).1, all);
}

fn use_agrees_with_the_cgroup(containerd: Containerd) {
    let container = containerd.shell("busy", "sleep 1000 & while :; do :; done").start();
    let pid = container.pid();
    let cpu = || {
        let (file, unit) = match host::has_cgroup_v2_only() {
            true => ("cpu.stat", 1e6),
            false => ("cpuacct.usage", 1e9),
        };
        let text = host::cgroup_value(pid, "cpuacct", file);
        let text = text.strip_prefix("usage_usec ").unwrap_or(&text);
        let number = text.split_whitespace().next().and_then(|text| text.parse::<f64>().ok());
        number.expect("a number") / unit
    };
    wait::until("it was busy for some time", || (cpu() > 0.2).then_some(()));
    let before = cpu();
    let (ran, all) = on(&container, &containerd, &["top", "--once", "--interval", "0.5"]);
    let after = cpu();
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""));
    let row = &all[0];
    let used = row["cpu_seconds"].as_f64().expect("a number");
    assert!((before..=after).contains(&used), "{before} <= {used} <= {after}");
    assert!(row["cpu_percent"].as_f64().is_some_and(|share| share > 1.0 && share < 150.0), "{row}");
    let processes = host::cgroup_value(pid, "pids", "pids.current");
    assert_eq!(row["processes"].to_string(), processes.trim());
    let usage = match host::has_cgroup_v2_only() {
        true => host::cgroup_value(pid, "memory", "memory.current"),
        false => host::cgroup_value(pid, "memory", "memory.usage_in_bytes"),
    };
    let usage: u64 = usage.trim().parse().expect("a number");
    let memory = row["memory"].as_u64().expect("a number");
    assert!(memory > 0 && memory <= usage + (1 << 20), "{memory} of {usage}");
    // Bad input names the flag and what was expected.
    let wrong = palisade(&["top", "--once", "--interval", "0"]);
    assert_eq!(wrong.code, Some(2));
    assert!(
        wrong.errors.contains("--interval") && wrong.errors.contains("0.1 to 3600"),
        "{wrong:?}"
    );
}

fn the_state_is_that_of_oci(containerd: Containerd) {
    let container = containerd.container("stateful", ["sleep", "1000"]).create();
    let status =
        |container: &Container<'_>| on(container, &containerd, &["state"]).1["status"].clone();
    assert_eq!(status(&container), "created");
    container.start().expect("start it");
    let (ran, state) = on(&container, &containerd, &["state"]);
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""));
    assert_eq!((&state["id"], &state["pid"]), (&json!("stateful"), &json!(container.pid())));
    assert!(state["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")));
    assert!(state["bundle"].as_str().is_some_and(|path| path.ends_with("/stateful")), "{state}");
    let shim = container.shim();
    assert_eq!(state["pod"]["shim"]["pid"], shim);
    assert_eq!(state["pod"]["boot"]["pid"], sandbox::boot_of(shim).pid);
    container.pause().expect("pause it");
    assert_eq!(status(&container), "paused");
    container.resume().expect("resume it");
    container.kill(9).expect("kill it");
    container.wait();
    let (_, state) = on(&container, &containerd, &["state"]);
    assert_eq!((&state["status"], &state["exitStatus"]), (&json!("stopped"), &json!(137)));
}

fn a_pod_is_looked_at_whole(containerd: Containerd) {
    let name = format!("whole-{}", std::process::id());
    let pod = containerd.pod(&name);
    let one = pod.shell("one", "exec sleep 1111");
    let two = pod.shell("two", "exec sleep 2222");
    let list = crate::json(&["ps", &name]);
    let commands: Vec<&str> =
        list.as_array().expect("a list").iter().filter_map(|row| row["command"].as_str()).collect();
    for wanted in ["sleep 1111", "sleep 2222"] {
        assert!(commands.contains(&wanted), "{commands:?}");
    }
    let rows = crate::json(&["top", "--once", "--interval", "0.1", "--by", "pod", &name]);
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    assert!(rows[0]["processes"].as_u64().is_some_and(|number| number >= 2), "{rows}");
    assert!(rows[0]["network"]["received"].is_u64(), "{rows}");
    let state = crate::json(&["state", &format!("{name}/one")]);
    assert_eq!((&state["status"], &state["pod"]["name"]), (&json!("running"), &json!(name)));
    drop((one, two));
}

#[test]
fn a_pod_that_does_not_answer_is_looked_at() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("silent", ["sleep", "1000"]).start();
    let (pid, shim) = (container.pid(), container.shim());
    let boot = sandbox::boot_of(shim).pid;
    // boot is not asked.
    signal(boot, Signal::STOP);
    wait::until("boot stands still", || {
        let (ran, state) = on(&container, &containerd, &["state"]);
        assert_eq!((ran.code, &state["status"]), (Some(0), &json!("running")), "{ran:?}");
        (state["pod"]["boot"]["state"] == "T").then_some(())
    });
    // The shim's answer is waited for, but not for ever; the kernel is asked instead.
    signal(shim, Signal::STOP);
    let begun = std::time::Instant::now();
    let (ran, state) = on(&container, &containerd, &["state"]);
    assert!(begun.elapsed() < wait::patience(10), "{:?}", begun.elapsed());
    assert_eq!(
        (ran.code, &state["status"], &state["pid"]),
        (Some(4), &json!("running"), &json!(pid))
    );
    let sentence = format!("(PID {shim}): no answer within 3 seconds");
    assert!(ran.errors.contains(&sentence), "{}", ran.errors);
    for verb in ["ps", "mounts"] {
        let (ran, found) = on(&container, &containerd, &[verb]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(found.as_array().is_some_and(|rows| !rows.is_empty()), "{ran:?}");
    }
    // containerd would see to it that a dead shim's pod is cleaned up.
    containerd.kill();
    signal(shim, Signal::KILL);
    wait::until("the shim is gone", || {
        let (ran, state) = on(&container, &containerd, &["state"]);
        assert_eq!(state["status"], "running", "{ran:?}");
        assert_eq!(ran.code, Some(4), "{ran:?}");
        state["pod"]["shim"]["pid"].is_null().then_some(())
    });
    let (ran, _) = on(&container, &containerd, &["state"]);
    assert!(ran.errors.contains("it is gone"), "{}", ran.errors);
    containerd.launch();
}
