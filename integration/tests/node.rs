//! Installs Palisade on a node and removes it, as an administrator does: with
//! the README's own lines, and with the programs of a cluster's DaemonSet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use integration::built::EXECUTABLES;
use integration::containerd::{Containerd, Version, repository};
use integration::cri::{Pod, PodContainer, pod_security, security};
use integration::{host, image, wait};
use k8s_cri::v1::{Capability, Mount, NamespaceMode, SecurityProfile};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{self as kubernetes, PodSpec};
use serde::Deserialize;

mod needs_node {
    use integration::tests_of;

    use super::Version;
    use super::{
        a_cluster_installs_updates_and_removes_it_under_running_pods,
        the_readme_s_lines_install_use_and_remove_the_package,
    };

    tests_of! { the_readme_s_lines_install_use_and_remove_the_package:
        containerd_1_7 => super::Version::V1_7,
        containerd_2_1 => super::Version::V2_1,
    }
    tests_of! { a_cluster_installs_updates_and_removes_it_under_running_pods:
        containerd_1_7 => super::Version::V1_7,
        containerd_2_1 => super::Version::V2_1,
    }
}

/// The package's files, below `/usr`.
const INSTALLED: [&str; 25] = [
    "bin/containerd-shim-palisade-v1",
    "bin/palisade",
    "bin/palisade-sandbox",
    "lib/systemd/system/palisade-metrics.service",
    "sbin/palisade-containerd",
    "share/bash-completion/completions/containerd-shim-palisade-v1",
    "share/bash-completion/completions/palisade",
    "share/bash-completion/completions/palisade-containerd",
    "share/bash-completion/completions/palisade-sandbox",
    "share/doc/palisade/changelog.Debian.gz",
    "share/doc/palisade/copyright",
    "share/doc/palisade/examples/config.toml",
    "share/doc/palisade/examples/containerd-2.toml",
    "share/fish/vendor_completions.d/containerd-shim-palisade-v1.fish",
    "share/fish/vendor_completions.d/palisade-containerd.fish",
    "share/fish/vendor_completions.d/palisade-sandbox.fish",
    "share/fish/vendor_completions.d/palisade.fish",
    "share/lintian/overrides/palisade",
    "share/man/man5/palisade-config.toml.5.gz",
    "share/man/man8/containerd-shim-palisade-v1.8.gz",
    "share/man/man8/palisade-containerd.8.gz",
    "share/man/man8/palisade-sandbox.8.gz",
    "share/man/man8/palisade.8.gz",
    "share/zsh/vendor-completions/_palisade",
    "share/zsh/vendor-completions/_palisade-sandbox",
];

/// Whether a file is the manual page of one verb of `palisade`.
fn is_page_of_a_verb(path: &Path) -> bool {
    let below = path.strip_prefix("/usr/").ok().and_then(Path::to_str).unwrap_or("");
    below.starts_with("share/man/man8/palisade-") && !INSTALLED.contains(&below)
}

fn the_readme_s_lines_install_use_and_remove_the_package(version: Version) {
    let package = package();
    let before = files();
    let containerd = Containerd::of_the_node(version);
    containerd.import_archive("default", &image::named("localhost/busybox:latest"));

    run_lines(&package, "Install the package");
    let new = files().into_keys().filter(|path| path.is_file() && !before.contains_key(path));
    let (pages, installed): (BTreeSet<_>, BTreeSet<_>) =
        new.partition(|path| is_page_of_a_verb(path));
    assert_eq!(installed, INSTALLED.map(|path| Path::new("/usr").join(path)).into());
    assert!(pages.contains(Path::new("/usr/share/man/man8/palisade-list.8.gz")), "{pages:?}");
    run_lines(&package, "Run a container");
    run_lines(&package, "Run a pod");
    let pod = first_pod(&containerd, "installed");
    let container = pod.shell("main", "exec sleep 100000");
    let user = host::status(container.pid(), "Uid");
    assert!(!user.starts_with("0\t"), "the container's root is the node's: {user}");

    // containerd would lose the pod when it starts again.
    refuses("apt remove palisade", "sandboxes run on this node (1,", &package);
    // It lives as long as containerd runs, and longer once the executables are
    // back.
    succeeds("PALISADE_REMOVE=anyway apt remove palisade", &package);
    assert!(!Path::new("/usr/bin/palisade-sandbox").exists());
    assert_eq!(container.ask("echo still here"), "still here");
    succeeds("apt install ./palisade_*.deb", &package);
    succeeds("systemctl restart containerd", &package);
    answers_again(&containerd);
    assert_eq!(container.ask("echo still here"), "still here");
    assert_eq!(pod.shell("second", "exec sleep 100000").ask("echo started"), "started");
    // An update disturbs no pod.
    succeeds("apt install --reinstall ./palisade_*.deb", &package);
    assert_eq!(container.ask("echo still here"), "still here");
    assert_eq!(pod.shell("third", "exec sleep 100000").ask("echo started"), "started");
    refuses("palisade-containerd remove", "sandboxes run on this node (1,", &package);

    drop(pod);
    wait::until("the sandbox has ended", || (sandboxes() == 0).then_some(()));
    // This would remove the command that removes the runtime from the
    // configuration.
    refuses("apt remove palisade", "palisade-containerd remove", &package);
    run_lines(&package, "Remove it");
    drop(containerd);
    assert_same(&before, &files());
}

/// A pod notices neither an update nor the request to remove Palisade.
fn a_cluster_installs_updates_and_removes_it_under_running_pods(version: Version) {
    package();
    let before = files();
    let containerd = Containerd::of_the_node(version);
    let pause = containerd_s_pause_image();
    containerd.import_images_for_cri();
    containerd.import_archive("k8s.io", &image::installer());
    tag(image::PAUSE, &pause);
    let installer = containerd.try_pod_by("", "installer", |config| {
        let options = pod_security(config).namespace_options.get_or_insert_default();
        options.pid = pid_mode(&daemon_set("install")).into();
    });
    let installer = installer.expect("run the installer's pod");

    finish(&containerd, &job(&installer, 1));
    let installed = daemon();
    // The running one is an older version.
    for name in EXECUTABLES {
        make_other(&Path::new("/usr/local/bin").join(name));
    }
    let pod = containerd.pod("survives");
    let container = pod.shell("main", "exec sleep 100000");
    let pid = container.pid();

    finish(&containerd, &job(&installer, 2));
    assert_eq!(daemon(), installed, "its configuration did not change, and it was restarted");
    let put = fs::read("/usr/local/bin/palisade-sandbox").expect("the new executable");
    let built = fs::read(integration::containerd::palisade_executables().join("palisade-sandbox"));
    assert!(put == built.expect("the executable that was built"), "the new version is not there");
    assert_eq!(container.ask("echo still here"), "still here");
    assert_eq!(pod.shell("second", "exec sleep 100000").ask("echo started"), "started");

    let remover = job(&installer, 3);
    remover.wait_for_log("Palisade goes when the last sandbox has ended; there are still: 1");
    assert_eq!(daemon(), installed, "containerd was restarted under a pod");
    assert_eq!(container.pid(), pid);
    assert_eq!(container.ask("echo still here"), "still here");
    drop(pod);
    finish(&containerd, &remover);

    drop(remover);
    drop(installer);
    drop(containerd);
    assert_same(&before, &files());
}

/// Returns the package under test. Fails on a machine that is no node.
fn package() -> PathBuf {
    let package = std::env::var_os("PALISADE_TEST_PACKAGE").map(PathBuf::from);
    package.expect(
        "PALISADE_TEST_PACKAGE names no package: this installs into the machine, run it by ci/node",
    )
}

/// Returns the lines of a section of the README that an administrator types as
/// root.
fn run_lines(package: &Path, section: &str) {
    let readme = fs::read_to_string(repository().join("README.md")).expect("read the README");
    let after = readme.split_once(&format!("\n### {section}\n"));
    let (_, text) = after.unwrap_or_else(|| panic!("the README has no section {section:?}"));
    let text = text.split("\n##").next().expect("a section");
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# ")).collect();
    assert!(!lines.is_empty(), "no line to type in section {section:?} of the README");
    lines.iter().for_each(|line| succeeds(line, package));
}

fn succeeds(line: &str, package: &Path) {
    let output = run(line, package);
    let printed = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&printed));
}

fn refuses(line: &str, why: &str, package: &Path) {
    let output = run(line, package);
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    assert!(!output.status.success() && printed.contains(why), "{line}: {printed}");
}

/// Runs a line in the package's directory, without a terminal.
fn run(line: &str, package: &Path) -> Output {
    let answers = std::env::temp_dir().join("palisade-test-apt.conf");
    fs::write(&answers, "APT::Get::Assume-Yes \"true\";\n").expect("write apt's configuration");
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(package.parent().expect("a folder"));
    command.env("APT_CONFIG", &answers).env("DEBIAN_FRONTEND", "noninteractive");
    let output = command.output().expect("run sh");
    fs::remove_file(answers).expect("remove apt's configuration");
    output
}

/// Returns a pod. Its images have the names that containerd looks for.
fn first_pod<'a>(containerd: &'a Containerd, name: &str) -> Pod<'a> {
    containerd.import_images_for_cri();
    tag(image::PAUSE, &containerd_s_pause_image());
    containerd.pod(name)
}

fn containerd_s_pause_image() -> String {
    let dump =
        Command::new("containerd").args(["config", "dump"]).output().expect("run containerd");
    let dump = String::from_utf8(dump.stdout).expect("UTF-8");
    let mut names = dump.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        let name = value.trim().trim_matches(['"', '\'']);
        (["sandbox_image", "sandbox"].contains(&key.trim()) && !name.is_empty())
            .then(|| name.to_owned())
    });
    names.next_back().expect("containerd has a name for the image of pods")
}

fn tag(image: &str, name: &str) {
    let mut command = Command::new("ctr");
    command.args(["--namespace", "k8s.io", "image", "tag", "--force", image, name]);
    let output = command.output().expect("run ctr");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A program of the DaemonSet on a node. The first two times it installs.
struct Job<'a> {
    container: PodContainer<'a>,
    pid: i32,
    _scratch: tempfile::TempDir,
}

impl Job<'_> {
    fn log(&self) -> String {
        fs::read_to_string(&self.container.log).unwrap_or_default()
    }

    fn wait_for_log(&self, text: &str) {
        wait::until(&format!("the installer logs {text:?}"), || {
            self.log().contains(text).then_some(())
        });
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the installer logged:\n{}", self.log());
        }
    }
}

/// Starts it as the kubelet would, with the DaemonSet's own command.
fn job<'a>(pod: &Pod<'a>, attempt: u32) -> Job<'a> {
    let verb = if attempt < 3 { "install" } else { "remove" };
    let daemon_set = daemon_set(verb);
    let pids = pid_mode(&daemon_set);
    let spec = pod_spec(&daemon_set).clone();
    let node = spec.init_containers.expect("an init container").swap_remove(0);
    let volumes = spec.volumes.expect("volumes");
    let scratch = tempfile::tempdir().expect("make the folder that is emptyDir");
    let container = pod.create("node", attempt, "", |config| {
        config.image.get_or_insert_default().image = node.image.clone().expect("an image");
        config.command = node.command.clone().expect("a command");
        for wanted in node.volume_mounts.clone().expect("mounts") {
            let volume =
                volumes.iter().find(|volume| volume.name == wanted.name).expect("a volume");
            let source = volume.host_path.as_ref().map(|volume| volume.path.clone());
            config.mounts.push(Mount {
                container_path: wanted.mount_path,
                host_path: source.unwrap_or_else(|| scratch.path().to_string_lossy().into_owned()),
                ..Default::default()
            });
        }
        let options = security(config).namespace_options.get_or_insert_default();
        options.pid = pids.into();
        secure(config, node.security_context.as_ref().expect("a security context"));
    });
    let container = container.unwrap_or_else(|e| panic!("create the installer: {}", e.message()));
    container.start().unwrap_or_else(|e| panic!("start the installer: {}", e.message()));
    Job { pid: container.pid(), container, _scratch: scratch }
}

fn daemon_set(verb: &str) -> DaemonSet {
    let text = include_str!("../kubernetes/palisade.yaml");
    let mut documents = serde_norway::Deserializer::from_str(text)
        .map(|document| serde_json::Value::deserialize(document).expect("YAML"));
    let name = format!("palisade-{verb}");
    let found = documents.find(|document| document["metadata"]["name"] == name.as_str());
    serde_json::from_value(found.expect("a DaemonSet of that name")).expect("a DaemonSet")
}

fn pod_spec(daemon_set: &DaemonSet) -> &PodSpec {
    let spec = daemon_set.spec.as_ref().expect("a spec");
    spec.template.spec.as_ref().expect("a pod")
}

/// Returns the PID mode of its pods.
fn pid_mode(daemon_set: &DaemonSet) -> NamespaceMode {
    match pod_spec(daemon_set).host_pid {
        Some(true) => NamespaceMode::Node,
        _ => NamespaceMode::Container,
    }
}

fn secure(config: &mut k8s_cri::v1::ContainerConfig, wanted: &kubernetes::SecurityContext) {
    let capabilities = wanted.capabilities.clone().expect("capabilities");
    let context = security(config);
    context.capabilities = Some(Capability {
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        ..Default::default()
    });
    context.readonly_rootfs = wanted.read_only_root_filesystem == Some(true);
    context.no_new_privs = wanted.allow_privilege_escalation == Some(false);
    context.privileged = wanted.privileged == Some(true);
    // Kind 0 is the runtime's default profile.
    context.seccomp = Some(SecurityProfile::default());
}

/// Waits for its end, even if containerd restarts meanwhile.
fn finish(containerd: &Containerd, job: &Job<'_>) {
    wait::until("the installer ends", || host::process(job.pid).is_none().then_some(()));
    answers_again(containerd);
    let status = job.container.wait();
    assert_eq!(status.exit_code, 0, "{}", job.log());
}

/// Waits for the end of a restart.
fn answers_again(containerd: &Containerd) {
    wait::until("containerd answers", || containerd.answers().then_some(()));
    containerd.prepare_cri();
}

/// Returns the process of the node's containerd.
fn daemon() -> Option<i32> {
    let mut processes = host::processes().into_iter();
    let found = processes
        .find(|process| process.args.first().is_some_and(|arg| arg.ends_with("/containerd")));
    found.map(|process| process.pid)
}

fn sandboxes() -> usize {
    let namespaces = fs::read_dir("/run/palisade/k8s.io").into_iter().flatten().flatten();
    namespaces.filter(|sandbox| sandbox.path().join("state.json").exists()).count()
}

/// Replaces a file by an equivalent one.
fn make_other(executable: &Path) {
    let mut content = fs::read(executable).expect("read an executable");
    content.push(0);
    let other = executable.with_extension("other");
    fs::write(&other, content).expect("write an executable");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::rename(other, executable).expect("replace an executable");
}

/// Returns all files that an installation may change: mode, size, and the
/// content of configuration files.
fn files() -> BTreeMap<PathBuf, (u32, u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let folders = [
        "/etc/containerd",
        "/etc/palisade",
        "/usr/bin",
        "/usr/lib/systemd/system",
        "/usr/sbin",
        "/usr/local",
        "/usr/share",
    ];
    let mut folders = folders.map(PathBuf::from).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, metadata) = (entry.path(), entry.metadata().expect("stat"));
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            let size = if metadata.is_file() { metadata.len() } else { 0 };
            let content = match path.starts_with("/etc/containerd") && metadata.is_file() {
                true => fs::read(&path).expect("read a configuration"),
                false => Vec::new(),
            };
            found.insert(path, (metadata.permissions().mode(), size, content));
        }
    }
    found
}

#[track_caller]
fn assert_same<T: PartialEq>(before: &BTreeMap<PathBuf, T>, after: &BTreeMap<PathBuf, T>) {
    let paths = before.keys().chain(after.keys());
    let changed: BTreeSet<_> = paths.filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(changed.is_empty(), "these files are not what they were: {changed:?}");
}
