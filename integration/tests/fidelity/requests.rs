//! The requests: kinds of spec as clients of containerd write them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use integration::cgroup::Driver;
use integration::container::{Container, NewContainer};
use integration::containerd::{Containerd, Version};
use integration::cri::{self, security};
use integration::stdio::Streams;
use integration::{image, spec, wait};
use k8s_cri::v1::{ContainerConfig, NamespaceMode, PodSandboxConfig};
use prost_types::Any;
use serde_json::{Value, json};

use crate::Facts;

/// The program that prints facts, inside.
const PROBE: &str = "/probe";

/// Starts a containerd whose CRI has both runtimes. Palisade takes the driver from the form of
/// a cgroup's path, and runc is told.
pub fn start(version: Version) -> Containerd {
    let by_systemd = Driver::of_tests() == Driver::Systemd;
    let keys = format!(
        "runtime_type = \"io.containerd.runc.v2\"\noptions = {{ SystemdCgroup = {by_systemd} }}"
    );
    Containerd::start_with_handler(version, "beside", &keys)
}

/// Returns runc's options: `systemd_cgroup` of `containerd.runc.v1.Options`.
fn options_of_runc() -> Option<Any> {
    let value = vec![9 << 3, 1];
    (Driver::of_tests() == Driver::Systemd)
        .then(|| Any { type_url: "containerd.runc.v1.Options".to_owned(), value })
}

/// Whether this host has cgroups of version 2 only.
pub fn cgroup_version_2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Returns the host's namespaces, as a probe prints them.
pub fn host_namespaces() -> BTreeMap<String, String> {
    let entries = fs::read_dir("/proc/self/ns").expect("read /proc/self/ns");
    let pairs = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let inode = fs::read_link(entry.path()).expect("read a namespace's link");
        (entry.file_name().to_string_lossy().into_owned(), inode.display().to_string())
    });
    pairs.collect()
}

/// A request, by which one container or one process is made.
pub struct Request {
    /// The name by which the table calls it.
    pub name: &'static str,
    kind: Kind,
}

enum Kind {
    /// A container by containerd's API, with a changed spec.
    Container(fn(&mut Value)),
    /// The same with a terminal.
    Terminal(fn(&mut Value)),
    /// A process that is exec'd in a container.
    Exec(fn(&mut Value), fn(&mut Value)),
    /// A container of a pod.
    Pod(fn(&mut PodSandboxConfig), fn(&mut ContainerConfig)),
}

/// Returns all requests.
pub fn all() -> Vec<Request> {
    use Kind::{Container, Exec, Pod, Terminal};
    let list = [
        ("default", Container(|_| ())),
        ("privileged", Container(privileged)),
        ("read-only", Container(|spec| spec["root"]["readonly"] = true.into())),
        ("user", Container(|spec| user(&mut spec["process"]))),
        ("capabilities", Container(|spec| capabilities(&mut spec["process"]))),
        ("no-capabilities", Container(|spec| spec["process"]["capabilities"] = json!({}))),
        ("new-privileges", Container(|spec| spec["process"]["noNewPrivileges"] = false.into())),
        ("network-admin", Container(|spec| add_capability(spec, "CAP_NET_ADMIN"))),
        ("system-admin", Container(|spec| add_capability(spec, "CAP_SYS_ADMIN"))),
        ("mounts", Container(mounts)),
        ("propagation", Container(propagation)),
        ("rlimits", Container(rlimits)),
        ("sysctls", Container(sysctls)),
        ("devices", Container(devices)),
        ("unmasked", Container(unmasked)),
        ("host-network", Container(|spec| without_namespace(spec, "network"))),
        ("host-pid", Container(|spec| without_namespace(spec, "pid"))),
        ("host-ipc", Container(|spec| without_namespace(spec, "ipc"))),
        ("hostname", Container(|spec| spec["hostname"] = "a-name".into())),
        ("cgroup-namespace", Container(|spec| cgroup_namespace(spec, "ro"))),
        ("cgroup-writable", Container(|spec| cgroup_namespace(spec, "rw"))),
        ("resources", Container(resources)),
        ("seccomp", Container(seccomp)),
        ("oom-score", Container(|spec| spec["process"]["oomScoreAdj"] = 500.into())),
        ("environment", Container(environment)),
        (
            "terminal",
            Terminal(|spec| spec["process"]["consoleSize"] = json!({ "height": 30, "width": 100 })),
        ),
        ("exec", Exec(|_| (), |_| ())),
        ("exec-in-privileged", Exec(privileged, |_| ())),
        ("exec-as-user", Exec(|_| (), user)),
        ("exec-with-options", Exec(|spec| user(&mut spec["process"]), exec_options)),
        ("pod", Pod(|_| (), |_| ())),
        ("pod-user", Pod(|_| (), pod_user)),
        ("pod-read-only", Pod(|_| (), |container| security(container).readonly_rootfs = true)),
        ("pod-privileged", Pod(pod_privileged, |container| security(container).privileged = true)),
        (
            "pod-host-network",
            Pod(pod_host_network, |container| {
                options(container).network = NamespaceMode::Node.into();
            }),
        ),
        ("pod-sysctls", Pod(pod_sysctls, |_| ())),
    ];
    list.map(|(name, kind)| Request { name, kind }).into()
}

impl Request {
    /// Makes the request to a runtime, and returns what the probe prints.
    pub fn facts(&self, containerd: &Containerd, runtime: &str) -> Facts {
        let id = format!("{}-{runtime}", self.name);
        let (id, output) = match self.kind {
            Kind::Container(change) => {
                let container = prepare(containerd, &id, runtime, PROBE).spec(change).start();
                (id, finish(&container))
            }
            Kind::Terminal(change) => {
                let container = prepare(containerd, &id, runtime, PROBE);
                let container = container.streams(Streams::Terminal).spec(change).start();
                (id, finish(&container))
            }
            Kind::Exec(change, change_process) => {
                let container =
                    prepare(containerd, &id, runtime, "sleep 1000").spec(change).start();
                let mut process = spec::process(&[PROBE]);
                change_process(&mut process);
                let exec = container.exec(&format!("e-{id}"), process, Streams::Captured);
                let exec = exec.unwrap_or_else(|e| panic!("exec in {id}: {}", e.message()));
                exec.start().unwrap_or_else(|e| panic!("start exec in {id}: {}", e.message()));
                exec.wait();
                let output = exec.stdio().output();
                (id, output)
            }
            Kind::Pod(change, change_container) => {
                pod(containerd, &id, runtime, change, change_container)
            }
        };
        crate::facts(self.name, &output, containerd, &id)
    }
}

fn finish(container: &Container<'_>) -> String {
    container.finish().1
}

fn prepare<'a>(
    containerd: &'a Containerd,
    id: &str,
    runtime: &str,
    command: &str,
) -> NewContainer<'a> {
    let args: Vec<&str> = command.split(' ').collect();
    let path = image::sibling("probe");
    let container = containerd.container(id, args);
    let container = match (runtime, options_of_runc()) {
        ("runc", None) => container.runtime("io.containerd.runc.v2"),
        ("runc", Some(options)) => container.runtime("io.containerd.runc.v2").options(options),
        _ => container.runtime("io.containerd.palisade.v1"),
    };
    container.bind(path.to_str().expect("an ASCII path"), PROBE, &["bind", "ro"])
}

fn pod(
    containerd: &Containerd,
    name: &str,
    runtime: &str,
    change: fn(&mut PodSandboxConfig),
    change_container: fn(&mut ContainerConfig),
) -> (String, String) {
    let handler = if runtime == "runc" { "beside" } else { cri::HANDLER };
    let change = |config: &mut PodSandboxConfig| {
        config.hostname = "a-pod".into();
        change(config);
    };
    let pod = containerd.try_pod_by(handler, name, change);
    let pod = pod.unwrap_or_else(|e| panic!("run pod {name}: {}", e.message()));
    let container = pod.container("main", "", |config| {
        config.command = vec![PROBE.into()];
        config.mounts.push(k8s_cri::v1::Mount {
            container_path: PROBE.into(),
            host_path: image::sibling("probe").to_str().expect("an ASCII path").into(),
            readonly: true,
            ..Default::default()
        });
        change_container(config);
    });
    container.wait();
    wait::until("the probe's last line in the log", || {
        container
            .log_lines()
            .iter()
            .any(|(_, line)| line.starts_with("may.more-files"))
            .then_some(())
    });
    let lines: Vec<String> = container.log_lines().into_iter().map(|(_, line)| line).collect();
    (container.id.clone(), lines.join("\n"))
}

fn privileged(spec: &mut Value) {
    spec::add_capabilities_of_host(&mut spec["process"]);
    spec["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    unmasked(spec);
    for mount in spec["mounts"].as_array_mut().expect("a spec has mounts") {
        if mount["destination"] == "/sys" {
            mount["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
        }
    }
}

fn unmasked(spec: &mut Value) {
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
}

fn user(process: &mut Value) {
    process["user"] =
        json!({ "uid": 1000, "gid": 1001, "additionalGids": [10, 2000], "umask": 0o027 });
    process["cwd"] = "/tmp".into();
}

fn capabilities(process: &mut Value) {
    let all = ["CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_SETPCAP"];
    process["capabilities"] = json!({
        "bounding": all, "effective": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"], "permitted": all,
        "inheritable": ["CAP_NET_BIND_SERVICE"], "ambient": ["CAP_NET_BIND_SERVICE"],
    });
    process["user"] = json!({ "uid": 1000, "gid": 1000 });
}

fn add_capability(spec: &mut Value, name: &str) {
    for set in ["bounding", "effective", "permitted"] {
        let set = spec["process"]["capabilities"][set].as_array_mut();
        set.expect("a list of capabilities").push(name.into());
    }
}

fn add_mount(spec: &mut Value, destination: &str, kind: &str, source: &str, options: &[&str]) {
    let mount =
        json!({ "destination": destination, "type": kind, "source": source, "options": options });
    spec["mounts"].as_array_mut().expect("a spec has mounts").push(mount);
}

fn mounts(spec: &mut Value) {
    add_mount(
        spec,
        "/m/tmpfs",
        "tmpfs",
        "tmpfs",
        &["size=1m", "mode=1770", "nosuid", "noexec", "nr_inodes=100"],
    );
    add_mount(spec, "/m/plain", "tmpfs", "tmpfs", &[]);
    add_mount(spec, "/m/read-only", "bind", "/usr/share", &["bind", "ro", "nosuid", "nodev"]);
    add_mount(spec, "/m/recursive", "bind", "/usr/share", &["rbind", "rw", "noexec", "noatime"]);
    add_mount(spec, "/m/relatime", "bind", "/usr/share", &["rbind", "ro", "relatime", "nosuid"]);
    add_mount(spec, "/m/file", "bind", "/etc/hostname", &["bind", "ro"]);
    add_mount(spec, "/m/strict", "bind", "/usr/share", &["rbind", "strictatime", "nodev"]);
}

fn propagation(spec: &mut Value) {
    spec["linux"]["rootfsPropagation"] = "rslave".into();
    add_mount(spec, "/m/private", "bind", "/usr/share", &["rbind", "rprivate", "ro"]);
    add_mount(spec, "/m/slave", "bind", "/usr/share", &["rbind", "rslave", "ro"]);
}

fn rlimits(spec: &mut Value) {
    let limit =
        |kind: &str, soft: u64, hard: u64| json!({ "type": kind, "soft": soft, "hard": hard });
    spec["process"]["rlimits"] = json!([
        limit("RLIMIT_NOFILE", 1000, 4000),
        limit("RLIMIT_CORE", 0, 0),
        limit("RLIMIT_NPROC", 500, 600),
        limit("RLIMIT_STACK", 1 << 22, 1 << 23),
        limit("RLIMIT_FSIZE", 1 << 30, 1 << 31),
        limit("RLIMIT_MEMLOCK", 1 << 20, 1 << 21),
        limit("RLIMIT_CPU", 1000, 2000),
    ]);
}

fn sysctls(spec: &mut Value) {
    spec["linux"]["sysctl"] = json!({
        "net.ipv4.ip_forward": "1",
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.core.somaxconn": "512",
        "kernel.shmmax": "1048576",
        "kernel.msgmax": "4096",
        "kernel.sem": "100 2000 50 64",
        "fs.mqueue.msg_max": "20",
    });
}

fn devices(spec: &mut Value) {
    spec["linux"]["devices"] = json!([
        { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 0, "gid": 0 },
        { "path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 1000, "gid": 1001 },
        { "path": "/dev/sub/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600 },
        { "path": "/dev/tty", "type": "c", "major": 5, "minor": 0, "fileMode": 0o666, "uid": 0, "gid": 5 },
    ]);
    spec["linux"]["resources"]["devices"] = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" },
        { "allow": true, "type": "c", "major": 1, "minor": 5, "access": "r" },
        { "allow": true, "type": "c", "major": 5, "minor": 0, "access": "rwm" },
    ]);
}

fn without_namespace(spec: &mut Value, kind: &str) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list of namespaces");
    namespaces.retain(|namespace| namespace["type"] != kind);
}

fn cgroup_namespace(spec: &mut Value, access: &str) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list of namespaces");
    namespaces.push(json!({ "type": "cgroup" }));
    add_mount(spec, "/sys/fs/cgroup", "cgroup", "cgroup", &[access, "nosuid", "noexec", "nodev"]);
}

fn resources(spec: &mut Value) {
    add_mount(spec, "/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]);
    let resources = &mut spec["linux"]["resources"];
    resources["memory"] = json!({ "limit": 100 << 20 });
    resources["cpu"] = json!({ "shares": 512, "quota": 50000, "period": 100_000, "cpus": "0" });
    resources["pids"] = json!({ "limit": 100 });
}

fn seccomp(spec: &mut Value) {
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{ "names": ["chroot", "mknod", "mknodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    });
}

fn environment(spec: &mut Value) {
    spec["process"]["env"] =
        json!(["PATH=/bin", "EMPTY=", "EQUALS=a=b", "SPACES= a  b ", "UNICODE=é"]);
    spec["process"]["cwd"] = "/home".into();
    let args = spec["process"]["args"].as_array_mut().expect("arguments");
    args.extend(["", "two words", "é"].map(Value::from));
}

fn exec_options(process: &mut Value) {
    process["user"] = json!({ "uid": 1001, "gid": 0, "additionalGids": [5] });
    process["cwd"] = "/etc".into();
    process["env"] = json!(["PATH=/bin", "MORE=1"]);
    process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 50, "hard": 60 }]);
    process["capabilities"] = json!({});
    process["oomScoreAdj"] = 100.into();
}

fn options(container: &mut ContainerConfig) -> &mut k8s_cri::v1::NamespaceOption {
    security(container).namespace_options.get_or_insert_default()
}

fn pod_user(container: &mut ContainerConfig) {
    let security = security(container);
    security.run_as_user = Some(k8s_cri::v1::Int64Value { value: 1000 });
    security.run_as_group = Some(k8s_cri::v1::Int64Value { value: 1001 });
    security.supplemental_groups = vec![10, 2000];
    security.no_new_privs = true;
    security.capabilities = Some(k8s_cri::v1::Capability {
        drop_capabilities: vec!["ALL".into()],
        add_capabilities: vec!["NET_BIND_SERVICE".into()],
        ..Default::default()
    });
}

fn pod_privileged(config: &mut PodSandboxConfig) {
    cri::pod_security(config).privileged = true;
}

fn pod_host_network(config: &mut PodSandboxConfig) {
    config.hostname = String::new();
    let options = cri::pod_security(config).namespace_options.get_or_insert_default();
    options.network = NamespaceMode::Node.into();
}

fn pod_sysctls(config: &mut PodSandboxConfig) {
    let linux = config.linux.get_or_insert_default();
    for (name, value) in [("net.ipv4.ping_group_range", "0 1000"), ("kernel.shm_rmid_forced", "1")]
    {
        linux.sysctls.insert(name.into(), value.into());
    }
}
