//! `palisade metrics`: what Prometheus reads, held to the kernel's files and to what was done.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};

use integration::container::options;
use integration::containerd::{Containerd, Version};
use integration::{host, image, on_each_containerd, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox_core::cgroup::{Cgroup, Driver};
use sandbox_core::sandbox::state::{Identity, State, StateDirectory};
use serde_json::json;

use crate::{command, palisade};

on_each_containerd!(
    the_numbers_are_those_of_the_kernel,
    a_create_an_exec_and_an_error_are_counted,
    a_refusal_is_counted_by_its_rule,
    the_pod_of_a_killed_shim_is_served_and_marked,
);

/// A running `palisade metrics`, which is ended with SIGTERM.
struct Served {
    process: Child,
    address: String,
}

impl Served {
    fn start(args: &[&str]) -> Self {
        let args = [&["metrics", "--listen", "127.0.0.1:0"], args].concat();
        let mut process = command(&args).stderr(Stdio::piped()).spawn().expect("run palisade");
        let mut line = String::new();
        let errors = process.stderr.take().expect("a pipe");
        BufReader::new(errors).read_line(&mut line).expect("read what it says");
        let address = line.trim().rsplit(' ').next().expect("an address").to_owned();
        assert!(line.contains("serves /metrics at 127.0.0.1:"), "{line}");
        Self { process, address }
    }

    fn ask(&self, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(&self.address).expect("connect");
        ask(&mut stream, request)
    }

    fn metrics(&self) -> Metrics {
        let (head, body) = self.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}\n{body}");
        Metrics(body)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("a PID")
    }

    /// Ends it, which must succeed.
    fn end(mut self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).expect("send SIGTERM");
        assert!(self.process.wait().expect("wait").success());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn ask(stream: &mut (impl Read + Write), request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read the answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

/// What was served.
struct Metrics(String);

impl Metrics {
    /// Returns the values of a metric whose labels have all of these.
    fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let lines = self.0.lines().filter(|line| !line.starts_with('#'));
        let matching = lines.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (own, rest) = series.split_once('{').unwrap_or((series, ""));
            let has = |(key, value): &(&str, &str)| rest.contains(&format!("{key}=\"{value}\""));
            (own == name && labels.iter().all(has)).then(|| value.parse().expect("a number"))
        });
        matching.collect()
    }

    #[track_caller]
    fn one(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let all = self.all(name, labels);
        assert_eq!(all.len(), 1, "{name} {labels:?}: {all:?}\n{}", self.0);
        all[0]
    }
}

fn the_numbers_are_those_of_the_kernel(containerd: Containerd) {
    let namespace = containerd.namespace();
    let script = "dd if=/dev/zero of=/dev/shm/blob bs=1M count=8 2>/dev/null; \
                  n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done; echo worked; \
                  read gone; exec sleep 1000";
    let container = containerd.shell("worker", script).spec(|s| {
        let resources = &mut s["linux"]["resources"];
        resources["memory"] = json!({ "limit": 64 << 20 });
        resources["cpu"] = json!({ "quota": 90_000, "period": 100_000 });
        resources["pids"] = json!({ "limit": 100 });
    });
    let container = container.start();
    container.stdio().wait_for_output("worked");
    let served = Served::start(&["--namespace", &namespace]);
    let metrics = served.metrics();
    let own = [("name", "worker")];
    let of = |name: &str| metrics.one(name, &own);
    let pid = container.pid();
    let value = |controller: &str, v1: &str, v2: &str| -> f64 {
        let file = if host::has_cgroup_v2_only() { v2 } else { v1 };
        host::cgroup_value(pid, controller, file).trim().parse().expect("a number")
    };
    let stat = host::cgroup_value(pid, "memory", "memory.stat");
    let stat = |v1: &str, v2: &str| -> f64 {
        let key = if host::has_cgroup_v2_only() { v2 } else { v1 };
        let line = stat.lines().find_map(|line| line.strip_prefix(&format!("{key} ")));
        line.expect("a line").parse().expect("a number")
    };
    assert_eq!(of("container_spec_memory_limit_bytes"), f64::from(64 << 20));
    assert_eq!(of("container_threads_max"), 100.0);
    assert_eq!(of("container_threads"), value("pids", "pids.current", "pids.current"));
    assert!(of("container_processes") >= 1.0);
    assert_eq!(of("container_oom_events_total"), 0.0);
    // Nothing runs in the container, but boot may take or give back some pages of its cgroup.
    let near = |name: &str, expected: f64| {
        let served = of(name);
        assert!((served - expected).abs() <= f64::from(1 << 20), "{name}: {served}, {expected}");
    };
    let usage = value("memory", "memory.usage_in_bytes", "memory.current");
    near("container_memory_usage_bytes", usage);
    near(
        "container_memory_working_set_bytes",
        usage - stat("total_inactive_file", "inactive_file"),
    );
    near("container_memory_rss", stat("total_rss", "anon"));
    near("container_memory_cache", stat("total_cache", "file"));
    assert!(of("container_memory_cache") >= f64::from(8 << 20));
    let cpu = of("container_cpu_usage_seconds_total");
    assert!(cpu > 0.001, "{cpu}");
    if !host::has_cgroup_v2_only() {
        let now: f64 = host::cgroup_value(pid, "cpuacct", "cpuacct.usage").parse().expect("number");
        assert!(cpu <= now / 1e9 && cpu > now / 1e9 - 1.0, "{cpu} {now}");
    }
    assert!(of("container_cpu_cfs_periods_total") >= 1.0);
    let pods = [("containerd_namespace", &*namespace), ("condition", "running")];
    assert_eq!(metrics.one("palisade_pods", &pods), 1.0);
    assert_eq!(metrics.one("palisade_containers", &pods[..1]), 1.0);
    for part in ["shim", "boot"] {
        let own = [("sandbox", "worker"), ("part", part)];
        assert_eq!(metrics.one("palisade_pod_up", &own), 1.0, "{part}");
        let anonymous = metrics.one("palisade_pod_anonymous_memory_bytes", &own);
        let resident = metrics.one("palisade_pod_resident_memory_bytes", &own);
        assert!(anonymous > 0.0 && anonymous < resident, "{part}: {anonymous} {resident}");
    }
    drop(container);
    wait::until("it is gone", || {
        served.metrics().all("container_processes", &own).is_empty().then_some(())
    });
    served.end();
}

fn a_create_an_exec_and_an_error_are_counted(containerd: Containerd) {
    let served = Served::start(&["--namespace", &containerd.namespace()]);
    let count = |metrics: &Metrics, operation: &str| {
        metrics.one("palisade_operation_seconds_count", &[("operation", operation)])
    };
    let errors = |metrics: &Metrics, operation: &str| {
        metrics.one("palisade_operation_errors_total", &[("operation", operation)])
    };
    let before = served.metrics();
    assert_eq!(count(&before, "create_pod"), 0.0);
    let container = containerd.container("counted", ["sleep", "1000"]).start();
    assert_eq!(container.exec_shell("one", "true").0, 0);
    assert_eq!(container.exec_shell("two", "true").0, 0);
    container.update(&json!({ "unified": { "cgroup.kill": "1" } })).expect_err("a bad update");
    let now = served.metrics();
    let counted = ["create_pod", "start", "exec", "create"].map(|each| count(&now, each));
    assert_eq!(counted, [1.0, 1.0, 2.0, 0.0], "{}", now.0);
    assert_eq!((errors(&now, "update"), errors(&now, "start")), (1.0, 0.0));
    let sum = now.one("palisade_operation_seconds_sum", &[("operation", "exec")]);
    let most =
        now.one("palisade_operation_seconds_bucket", &[("operation", "exec"), ("le", "+Inf")]);
    assert!(sum > 0.0 && most == 2.0, "{sum} {most}");
    // What was counted stays, though the pod is gone.
    drop(container);
    wait::until("the pod is gone", || {
        let metrics = served.metrics();
        let gone = metrics.all("palisade_pod_up", &[("sandbox", "counted")]).is_empty();
        gone.then(|| assert_eq!(count(&metrics, "exec"), 2.0))
    });
    served.end();
}

fn a_refusal_is_counted_by_its_rule(containerd: Containerd) {
    let served = Served::start(&["--namespace", &containerd.namespace()]);
    let program = image::sibling("surfaces");
    let program = program.to_str().expect("an ASCII path");
    let container = containerd.container("refused", ["/surfaces", "some", "bpf", "AF_ALG"]);
    let container = container.bind(program, "/surfaces", &["bind", "ro"]);
    let container = container.options(options("user_log = 'pod'", "")).create();
    assert!(served.metrics().all("palisade_refusals_total", &[]).is_empty());
    container.start().expect("start it");
    container.wait();
    let metrics = served.metrics();
    for part in ["bpf", "alg"] {
        let own = [("rule", "baseline"), ("name", part)];
        assert!(metrics.one("palisade_refusals_total", &own) >= 1.0, "{}", metrics.0);
    }
    drop(container);
    served.end();
}

fn the_pod_of_a_killed_shim_is_served_and_marked(containerd: Containerd) {
    let served = Served::start(&["--namespace", &containerd.namespace()]);
    let container = containerd.container("orphan", ["sleep", "1000"]).start();
    let up = |part: &str| {
        served.metrics().all("palisade_pod_up", &[("sandbox", "orphan"), ("part", part)])
    };
    assert_eq!((up("shim"), up("boot")), (vec![1.0], vec![1.0]));
    // containerd must not clean up before it was looked at.
    kill(Pid::from_raw(containerd.pid()), Signal::SIGSTOP).expect("stop containerd");
    kill(Pid::from_raw(container.shim()), Signal::SIGKILL).expect("kill the shim");
    wait::until("both are marked", || (up("shim") == [0.0] && up("boot") == [0.0]).then_some(()));
    let metrics = served.metrics();
    assert_eq!(metrics.one("palisade_pods", &[("condition", "no_sandbox_process")]), 1.0);
    assert!(!metrics.all("container_processes", &[("name", "orphan")]).is_empty());
    kill(Pid::from_raw(containerd.pid()), Signal::SIGCONT).expect("let containerd go on");
    wait::until("it is cleaned up", || up("state").is_empty().then_some(()));
    served.end();
}

#[test]
fn a_pod_of_kubernetes_has_the_labels_of_cadvisor() {
    let containerd = Containerd::start(Version::V2_1);
    let name = format!("web-{}", std::process::id());
    let pod = containerd.pod(&name);
    let app = pod.shell("app", "echo ready; exec sleep 1000");
    app.wait_for_log("ready");
    let served = Served::start(&["--namespace", "k8s.io"]);
    let metrics = served.metrics();
    let own = [("pod", &*name), ("namespace", "default")];
    for container in ["app", "POD"] {
        let labels = [&own[..], &[("container", container)]].concat();
        assert!(metrics.one("container_memory_working_set_bytes", &labels) > 0.0);
    }
    let labels = [&own[..], &[("container", "app"), ("name", &*app.id)]].concat();
    assert!(metrics.one("container_cpu_usage_seconds_total", &labels) > 0.0);
    let network = [&own[..], &[("container", "POD"), ("interface", "eth0")]].concat();
    let received = metrics.one("container_network_receive_packets_total", &network);
    assert!(received >= 0.0);
    // The pod's own cgroup has no container.
    let all = metrics.0.lines().filter(|line| {
        line.starts_with("container_memory_rss{") && line.contains(&format!("pod=\"{name}\""))
    });
    let of_pod = all.filter(|line| !line.contains("container=")).count();
    assert_eq!(of_pod, 1, "{}", metrics.0);
    served.end();
}

#[test]
fn only_what_is_served_is_answered_and_slow_clients_harm_nobody() {
    let folder = tempfile::tempdir().expect("make a folder");
    let state = folder.path().to_str().expect("a path");
    let served = Served::start(&["--state", state]);
    let get = |path: &str| served.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(get("/healthz").1, "ok\n");
    assert!(get("/").0.starts_with("HTTP/1.1 404"));
    let (head, _) = served.ask("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert!(
        head.starts_with("HTTP/1.1 405") && head.to_lowercase().contains("allow: get"),
        "{head}"
    );
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let (head, body) = served.ask(&format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{accept}\r\n"));
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    assert!(body.contains("palisade_build_info{version=\"0.1.0\"} 1"), "{body}");
    // Some who say nothing.
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(&served.address).unwrap()).collect();
    assert_eq!(get("/healthz").1, "ok\n");
    drop(silent);
    // The address is taken.
    let ran = palisade(&["metrics", "--listen", &served.address, "--state", state]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.errors.contains("--listen: listen on 127.0.0.1:"), "{}", ran.errors);
    assert!(ran.errors.contains("in use"), "{}", ran.errors);
    served.end();
    for (args, said) in [
        (&["--listen", "somewhere"][..], "expected an IP address and a port"),
        (&["--listen", "unix:relative"], "expected an IP address and a port"),
        (&["--format", "json"], "--format json has no effect on metrics"),
    ] {
        let ran = palisade(&[&["metrics"], args].concat());
        assert!(ran.code != Some(0) && ran.errors.contains(said), "{ran:?}");
    }
}

#[test]
fn a_socket_of_unix_is_served_and_removed() {
    let folder = tempfile::tempdir().expect("make a folder");
    let (path, state) = (folder.path().join("socket"), folder.path().join("state"));
    let listen = format!("unix:{}", path.display());
    let args = ["metrics", "--listen", &listen, "--state", state.to_str().expect("a path")];
    // One that is dead is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    let mut process = command(&args).stderr(Stdio::null()).spawn().expect("run palisade");
    let mut stream = wait::until("it listens", || UnixStream::connect(&path).ok());
    let (head, _) = ask(&mut stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGTERM).expect("send SIGTERM");
    assert!(process.wait().expect("wait").success());
    assert!(!path.exists());
}

/// Grafana's page shows what is served, and nothing else.
#[test]
fn the_dashboard_names_metrics_that_are_served() {
    let folder = tempfile::tempdir().expect("make a folder");
    let served = Served::start(&["--state", folder.path().to_str().expect("a path")]);
    let metrics = served.metrics();
    let page = include_str!("../../kubernetes/palisade-dashboard.json");
    serde_json::from_str::<serde_json::Value>(page).expect("JSON");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let of_ours = |name: &&str| name.starts_with("palisade_") || name.starts_with("container_");
    let names: BTreeSet<&str> = page.split(|c| !is_name(c)).filter(of_ours).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(is_described(&metrics, name), "{name} is not served");
    }
    let samples = metrics.0.lines().filter(|line| line.starts_with("palisade_"));
    for line in samples {
        let name = line.split(['{', ' ']).next().expect("a name");
        assert!(is_described(&metrics, name), "{line}");
    }
    served.end();
}

/// Whether a metric has a help and a type.
fn is_described(metrics: &Metrics, name: &str) -> bool {
    let parts = ["_bucket", "_sum", "_count"];
    let families = parts.iter().filter_map(|part| name.strip_suffix(part)).chain([name]);
    let has = |what: &str, family: &str| {
        let start = format!("# {what} {family} ");
        metrics.0.lines().any(|line| line.starts_with(&start))
    };
    families.into_iter().any(|family| has("HELP", family) && has("TYPE", family))
}

mod needs_promtool {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use integration::built::repository;
    use integration::containerd::{Containerd, Version};

    use super::Served;

    /// `promtool check metrics` parses what is served, and finds no name that breaks a rule.
    #[test]
    fn prometheus_accepts_what_is_served() {
        let containerd = Containerd::start(Version::V2_1);
        let container = containerd.container("checked", ["sleep", "1000"]).start();
        let served = Served::start(&["--namespace", &containerd.namespace()]);
        let metrics = served.metrics();
        assert!(metrics.0.contains("name=\"checked\""), "{}", metrics.0);
        let mut promtool = Command::new(repository().join(".cache/promtool/promtool"));
        promtool.args(["check", "metrics"]).stdin(Stdio::piped());
        let mut checking =
            promtool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run promtool");
        let mut input = checking.stdin.take().expect("a pipe");
        input.write_all(metrics.0.as_bytes()).expect("write to promtool");
        drop(input);
        let checked = checking.wait_with_output().expect("wait");
        let said = [checked.stdout, checked.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(checked.status.success() && said.is_empty(), "{said}");
        served.end();
        drop(container);
    }
}

/// A scrape, and its cost in CPU time, of 500 pods with two containers each: real cgroups, and state
/// that only looks real.
#[test]
fn five_hundred_pods_are_read_at_once() {
    let folder = tempfile::tempdir().expect("make a folder");
    let pods = Pods::make(folder.path(), 500);
    let served = Served::start(&["--state", folder.path().to_str().expect("a path")]);
    let metrics = served.metrics();
    assert_eq!(metrics.all("container_memory_rss", &[]).len(), 1000);
    let before = host::cpu_time(served.pid());
    let rounds = 10;
    for _ in 0..rounds {
        served.metrics();
    }
    let each = (host::cpu_time(served.pid()) - before) / rounds;
    let took = served.metrics().one("palisade_scrape_seconds", &[]);
    println!("a scrape of 500 pods takes {each:?} of CPU time, {took} s to read");
    // How long it takes is measured elsewhere; a multiple is a fault.
    assert!(each < wait::patience(1), "{each:?}");
    served.end();
    drop(pods);
}

/// Pods without processes.
struct Pods(Vec<Cgroup>);

impl Pods {
    fn make(root: &Path, number: usize) -> Self {
        let mut pods = Self(Vec::new());
        let identity = Identity::of_this_process().expect("an identity");
        for pod in 0..number {
            let id = format!("pod-{pod}");
            let directory = StateDirectory::locate(root, "fake", &id).expect("a directory");
            directory.create().expect("make it");
            for container in [id.clone(), format!("app-{pod}")] {
                let path = format!("/palisade-fake-{}/{container}", std::process::id());
                let cgroup =
                    Cgroup::create(&container, &path, Driver::Cgroupfs, &Default::default(), &[]);
                let cgroup = cgroup.expect("make a cgroup");
                let saved = cgroup.saved().clone();
                pods.0.push(cgroup);
                let bundle = root.join("bundle");
                directory.plan_container(&container, &bundle, &saved).expect("write it down");
                directory.add_container(&container).expect("add it");
            }
            let state = State { shim: Some(identity), ..State::new(&id, identity, 0) };
            directory.write(&state).expect("write the state");
        }
        pods
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        let mut above = Vec::new();
        for cgroup in &self.0 {
            above = cgroup.paths().filter_map(Path::parent).map(Path::to_owned).collect();
            cgroup.remove().expect("remove a cgroup");
        }
        above.iter().for_each(|path| fs::remove_dir(path).expect("remove the cgroup above"));
    }
}
