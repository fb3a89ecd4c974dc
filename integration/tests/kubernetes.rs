//! `integration/kubernetes/palisade.yaml` is valid for Kubernetes, its figures
//! are those that were measured, and its image does nothing too early.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use integration::{cri, image, wait};
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

/// Decodes an object as its type. Fails if a field is unknown or in the wrong
/// place, since it would then be lost.
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
        for container in pod.containers.iter().chain([node]) {
            assert_eq!(container.image.as_deref(), Some(image::INSTALLER), "{}", container.name);
        }
        assert_eq!(node.command.as_deref(), Some(&["palisade-node".to_owned(), verb.into()][..]));
        // Pods run only where Palisade is installed.
        assert_eq!(pod.node_selector.unwrap() == selector, verb == "install");
    }
}

#[test]
fn metrics_only_read_the_node() {
    let text = include_str!("../kubernetes/palisade-metrics.yaml");
    let set: DaemonSet = object(&serde_norway::from_str(text).expect("YAML"));
    let spec = set.spec.unwrap();
    assert_eq!(spec.selector.match_labels, spec.template.metadata.unwrap().labels);
    let pod = spec.template.spec.unwrap();
    let class: RuntimeClass = object(&documents()[0]);
    assert_eq!(pod.node_selector, class.scheduling.unwrap().node_selector);
    let container = &pod.containers[0];
    assert_eq!(container.image.as_deref(), Some(image::INSTALLER));
    let port = container.ports.as_ref().unwrap()[0].container_port;
    let listen = format!("0.0.0.0:{port}");
    let command = container.command.as_deref().unwrap();
    assert_eq!(command, ["/palisade/palisade", "metrics", "--listen", listen.as_str()]);
    // Where the state names them, and never to be written.
    let mounts = container.volume_mounts.as_ref().unwrap();
    let volumes = pod.volumes.as_ref().unwrap();
    assert_eq!(mounts.len(), volumes.len());
    for mount in mounts {
        let volume = volumes.iter().find(|volume| volume.name == mount.name).unwrap();
        assert_eq!(volume.host_path.as_ref().unwrap().path, mount.mount_path);
        assert_eq!(mount.read_only, Some(true), "{}", mount.name);
        assert!(text.contains(&format!("# - {}: ", mount.mount_path)), "{}", mount.name);
    }
}

/// A label of a node does not change a DaemonSet, so `rollout status` would not
/// wait for its effect.
#[test]
fn the_manual_waits_for_pods_that_will_start() {
    let manual = include_str!("../kubernetes/README.md");
    for (document, verb) in documents()[1..].iter().zip(["install", "remove"]) {
        let label = format!("node NAME dev.palisade/node={verb}\n");
        let (_, after) = manual.split_once(&label).expect("a line that labels a node");
        let lines = after.split("```").next().expect("a block");
        let set: DaemonSet = object(document);
        let labels = set.spec.unwrap().template.metadata.unwrap().labels.unwrap();
        let (key, value) = labels.iter().next().expect("a label of its pods");
        assert!(lines.contains(&format!("--selector {key}={value} ")), "{lines}");
        assert!(lines.contains("until ") && !lines.contains("rollout"), "{lines}");
    }
}

#[test]
fn unknown_fields_are_found() {
    let mut class = documents().swap_remove(0);
    class["overhead"]["podFixd"] = json!({});
    assert!(std::panic::catch_unwind(|| object::<RuntimeClass>(&class)).is_err());
}

/// Doubles a measured value and rounds it up to 1, 2 or 5 times a power of ten.
fn charged(measured: f64) -> f64 {
    let steps = (0..6).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power)));
    steps.into_iter().find(|step| *step >= 2.0 * measured).expect("a modest figure")
}

#[test]
fn the_overhead_of_a_pod_follows_from_the_measurements() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/result-many.json");
    let text = std::fs::read_to_string(&file).expect("read the benchmark's figures");
    let result: Value = serde_json::from_str(&text).expect("JSON");
    let measured = |part: &str, what: &str| {
        let figures = result["figures"].as_array().expect("figures");
        let figure = figures.iter().find(|figure| figure["part"] == part && figure["what"] == what);
        let figure = figure.unwrap_or_else(|| panic!("no figure {part}, {what}"));
        figure["runtimes"]["palisade"]["median"].as_f64().expect("a number")
    };
    // 100 pods, each with one probe a second, take a percentage of a CPU: 10 m
    // each.
    let probes = measured("exec probes, 100 pods", "CPU used, % of one") * 10.0 / 100.0;
    let memory = measured("density", "MemAvailable per pod");
    let overhead = &documents()[0]["overhead"]["podFixed"];
    assert_eq!(overhead["cpu"], format!("{}m", charged(probes)));
    assert_eq!(overhead["memory"], format!("{}Mi", charged(memory)));
}

/// The installer's image, and below it a node's root. In place of containerd is
/// a script that reads the file, in place of systemctl one that records the
/// restart. Both first run the lines of a story.
struct Installer(tempfile::TempDir);

impl Installer {
    fn new() -> Installer {
        let installer = Installer(tempfile::tempdir().expect("make a folder"));
        image::unpack_installer(installer.0.path());
        for folder in ["bin", "etc/containerd", "run", "usr/local/bin"] {
            fs::create_dir_all(installer.node(folder)).expect("make a folder of the node");
        }
        fs::copy("/bin/busybox", installer.node("bin/busybox")).expect("copy busybox");
        for name in ["sh", "cat", "mkdir"] {
            symlink("busybox", installer.node("bin").join(name)).expect("link busybox");
        }
        installer.containerd("");
        installer.systemctl("");
        installer
    }

    fn node(&self, path: &str) -> PathBuf {
        self.0.path().join("node").join(path)
    }

    fn script(&self, name: &str, lines: &str) {
        let path = self.node("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\nset -e\n{lines}\n")).expect("write a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    fn containerd(&self, before: &str) {
        let dump = "[ \"$1\" = --config ] || { echo 'version = 2'; exit; }\ncat \"$2\"";
        self.script("containerd", &format!("{before}\n{dump}"));
    }

    fn systemctl(&self, before: &str) {
        self.script("systemctl", &format!("{before}\necho \"$*\" >> /restarts"));
    }

    fn restarts(&self) -> usize {
        fs::read_to_string(self.node("restarts")).unwrap_or_default().lines().count()
    }

    fn start(&self, verb: &str) -> Child {
        let log = File::create(self.log()).expect("make a log");
        let mut command = Command::new("chroot");
        command.arg(self.0.path()).args(["palisade-node", verb]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stderr(log.try_clone().expect("dup")).stdout(log);
        command.spawn().expect("run chroot")
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log")
    }

    fn log_text(&self) -> String {
        fs::read_to_string(self.log()).expect("read the log")
    }

    fn succeeds(&self, verb: &str) -> bool {
        self.start(verb).wait().expect("wait").success()
    }
}

#[test]
fn a_sandbox_that_starts_before_containerd_restarts_keeps_its_executables() {
    let installer = Installer::new();
    assert!(installer.succeeds("install"), "{}", installer.log_text());
    let executables = ["palisade-sandbox", "containerd-shim-palisade-v1", "palisade"]
        .map(|name| installer.node(&format!("usr/local/bin/{name}")));
    let there = || executables.iter().filter(|path| path.exists()).count();
    assert_eq!(there(), 3, "{}", installer.log_text());
    installer.systemctl(
        "mkdir -p /run/palisade/k8s.io/late /run/palisade/ranges /run/palisade/seccomp\n\
         : > /run/palisade/k8s.io/late/state.json",
    );
    let mut remover = installer.start("remove");
    let ended = wait::until("it waits or ends", || {
        let waits = installer.log_text().contains("there are still: 1");
        remover.try_wait().expect("wait").map(|_| true).or(waits.then_some(false))
    });
    assert!(!ended && there() == 3, "{}", installer.log_text());
    fs::remove_dir_all(installer.node("run/palisade/k8s.io")).expect("end the sandbox");
    assert!(remover.wait().expect("wait").success(), "{}", installer.log_text());
    assert_eq!((there(), installer.restarts()), (0, 2), "{}", installer.log_text());
    assert!(!installer.node("run/palisade").exists(), "{}", installer.log_text());
}

#[test]
fn containerd_is_restarted_for_each_change_and_for_nothing_else() {
    let installer = Installer::new();
    let failing = "echo no >&2\nexit 1";
    // A failed restart is owed until it succeeds, whatever else fails before.
    installer.systemctl(failing);
    assert!(!installer.succeeds("install"), "{}", installer.log_text());
    installer.systemctl("");
    installer.containerd(failing);
    assert!(!installer.succeeds("install"), "{}", installer.log_text());
    installer.containerd("");
    assert!(installer.succeeds("install"), "{}", installer.log_text());
    assert_eq!(installer.restarts(), 1);
    // Without a change no restart is owed.
    installer.containerd(failing);
    assert!(!installer.succeeds("install"), "{}", installer.log_text());
    installer.containerd("");
    assert!(installer.succeeds("install"), "{}", installer.log_text());
    assert_eq!(installer.restarts(), 1, "{}", installer.log_text());
}
