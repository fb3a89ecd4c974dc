//! The cases of critest (cri-tools, `pkg/validate`) that touch a runtime and that no other story
//! over CRI tells, in our own words. critest itself is in no registry that the tests use.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use integration::containerd::{Containerd, Version};
use integration::cri::{Pod, PodContainer, pod_security, security};
use integration::stream::Session;
use integration::{host, on_each_containerd, on_each_cri, wait};
use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerState, Mount, MountPropagation, NamespaceMode,
    SecurityProfile,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

on_each_cri!(
    containers_are_removed_in_each_state,
    a_volume_can_be_a_symlink_of_the_host,
    paths_are_masked_and_read_only,
    a_profile_of_the_node_holds,
    a_profile_decides_over_a_capability,
    a_privileged_container_has_no_profile,
    new_privileges_are_allowed_without_the_flag,
    an_unprivileged_container_administers_no_network,
    logs_and_commands_of_two_containers_are_apart,
    a_pod_s_stats_show_its_containers,
    mounts_go_both_ways_in_a_privileged_pod,
    host_ipc_and_the_pod_s_are_apart,
);

on_each_containerd!(starting unmasked_proc_allows_a_second_proc);

// containerd 2.1.9 itself crashes at a host-network pod with `sandboxer = "shim"`.
on_each_containerd!(ports_of_the_host_s_network_are_forwarded);

fn volume(containerd: &Containerd, name: &str) -> PathBuf {
    let path = containerd.directory().join("volumes").join(name);
    fs::create_dir_all(&path).expect("make a volume");
    path
}

fn at(container_path: &str, host_path: &Path) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

/// Runs a pod that the kubelet marks as privileged.
fn privileged<'a>(containerd: &'a Containerd, name: &str) -> Pod<'a> {
    containerd.pod_with(name, |config| {
        pod_security(config).privileged = true;
        // Before 2.0, only the kubelet's log directory shows who asks.
        let pod = config.metadata.as_ref().expect("metadata");
        let name = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
        config.log_directory = format!("{}/{name}", config.log_directory);
    })
}

fn containers_are_removed_in_each_state(containerd: Containerd) {
    let pod = containerd.pod("removed");
    let created = pod.create("created", 0, "sleep 1000", |_| ()).expect("create it");
    created.remove().expect("remove what never ran");
    let running = pod.shell("running", "sleep 1000");
    assert_eq!(running.status().state(), ContainerState::ContainerRunning);
    let pid = running.pid();
    running.remove().expect("remove what runs");
    assert!(host::process(pid).is_none_or(|process| process.args[0] != "sleep"));
    let exited = pod.shell("exited", "exit 0");
    exited.wait();
    exited.remove().expect("remove what has ended");
    let again = pod.shell("created", "echo again");
    again.wait_for_log("again");
    // containerd fails to stop a container while it still takes its exit ("ttrpc: closed").
    again.wait();
}

fn a_volume_can_be_a_symlink_of_the_host(containerd: Containerd) {
    let real = volume(&containerd, "real");
    fs::write(real.join("file"), "found\n").expect("write a file");
    let link = real.with_file_name("link");
    symlink(&real, &link).expect("symlink");
    let pod = containerd.pod("linked");
    let container = pod.container("main", "sleep 1000", |config| {
        config.mounts.push(at("/linked", &link));
    });
    assert_eq!(container.ask("cat /linked/file; echo new > /linked/new; echo done"), "found\ndone");
    assert_eq!(fs::read_to_string(real.join("new")).expect("the file"), "new\n");
}

fn paths_are_masked_and_read_only(containerd: Containerd) {
    let pod = containerd.pod("masked");
    let container = pod.container("main", "sleep 1000", |config| {
        let context = security(config);
        context.masked_paths = ["/home", "/etc/group", "/no/such/path"].map(str::to_owned).into();
        context.readonly_paths = ["/tmp", "/no/such/path"].map(str::to_owned).into();
    });
    assert_eq!(container.ask("ls -A /home; cat /etc/group"), "");
    let attempts = ["touch /home/new", "echo x > /tmp/new", "mount -o remount,rw /tmp"];
    for attempt in attempts {
        assert_ne!(container.exec(attempt).code, 0, "{attempt}");
    }
    let free = pod.shell("free", "sleep 1000");
    assert_ne!(free.ask("ls -A /home; cat /etc/group"), "");
    free.ask("touch /home/new; echo x > /tmp/new");
}

/// `procMount: Unmasked`: with a proc that hides nothing, the kernel lets a container mount one
/// for a PID namespace of its own. Kubernetes allows it with `hostUsers: false` only.
fn unmasked_proc_allows_a_second_proc(version: Version) {
    let nested = "baseline_allow = ['user_namespaces']";
    let containerd = Containerd::start_with_option_file(version, nested);
    let pod = containerd.pod("nested");
    let with = |name: &str, masked: &[&str], read_only: &[&str]| {
        let list = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        pod.container(name, "sleep 1000", |config| {
            let context = security(config);
            (context.masked_paths, context.readonly_paths) = (list(masked), list(read_only));
            // containerd's profile for nodes that have AppArmor denies every mount.
            context.apparmor = Some(SecurityProfile {
                profile_type: ProfileType::Unconfined.into(),
                localhost_ref: String::new(),
            });
            unconfined(config);
        })
    };
    let nested = "mkdir -p /tmp/p && unshare -Urmpf sh -c \
                  'mount -t proc proc /tmp/p && cat /tmp/p/1/comm && ls -d /tmp/p/[0-9]* | wc -l'";
    let masked = with("default", &["/proc/kcore", "/proc/keys"], &["/proc/sys"]);
    assert_ne!(masked.exec(nested).code, 0);
    assert_ne!(
        masked
            .exec("[ -w /proc/sys/kernel/hostname ] && echo x > /proc/sys/kernel/domainname")
            .code,
        0
    );
    let unmasked = with("unmasked", &[], &[]);
    let answer = unmasked.ask(nested);
    assert!(answer.starts_with("sh\n"), "{answer}");
    // It is no way to the host: what is not the container's stays closed.
    for attempt in ["echo 1 > /proc/sys/kernel/panic", "echo h > /proc/sysrq-trigger"] {
        assert_ne!(unmasked.exec(attempt).code, 0, "{attempt}");
    }
    // A container in the container.
    let inner = "mkdir -p /tmp/root && cp /bin/busybox /tmp/root/sh && unshare -Urmpf \
                 chroot /tmp/root /sh -c 'echo inner'";
    assert_eq!(unmasked.ask(inner), "inner");
}

fn unconfined(config: &mut ContainerConfig) {
    profiled(config, ProfileType::Unconfined, "");
}

fn profiled(config: &mut ContainerConfig, kind: ProfileType, path: &str) {
    security(config).seccomp =
        Some(SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() });
}

/// Writes a profile that forbids some system calls.
fn profile(containerd: &Containerd, forbidden: &[&str]) -> String {
    let path = containerd.directory().join("profile.json");
    let rule = serde_json::json!({ "names": forbidden, "action": "SCMP_ACT_ERRNO" });
    let profile = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
    fs::write(&path, profile.to_string()).expect("write a profile");
    path.to_string_lossy().into_owned()
}

fn a_profile_of_the_node_holds(containerd: Containerd) {
    let path = profile(&containerd, &["chmod", "fchmod", "fchmodat", "fchmodat2"]);
    let pod = containerd.pod("profiled");
    let container = pod.container("main", "sleep 1000", |config| {
        profiled(config, ProfileType::Localhost, &path);
    });
    let refused = container.exec("chmod 400 /tmp");
    assert!(refused.stderr.contains("Operation not permitted"), "{refused:?}");
    pod.container("free", "sleep 1000", unconfined).ask("chmod 400 /tmp");
}

fn a_profile_decides_over_a_capability(containerd: Containerd) {
    let path = profile(&containerd, &["sethostname"]);
    let pod = containerd.pod("named");
    let with = |name: &str, kind: ProfileType| {
        pod.container(name, "sleep 1000", |config| {
            security(config).capabilities = Some(Capability {
                add_capabilities: vec!["SYS_ADMIN".to_owned()],
                ..Default::default()
            });
            profiled(config, kind, if kind == ProfileType::Localhost { &path } else { "" });
        })
    };
    assert_ne!(with("blocked", ProfileType::Localhost).exec("hostname blocked").code, 0);
    assert_eq!(with("free", ProfileType::Unconfined).ask("hostname free; hostname"), "free");
}

fn a_privileged_container_has_no_profile(containerd: Containerd) {
    let path = profile(&containerd, &["sethostname"]);
    let pod = privileged(&containerd, "mighty");
    let container = pod.container("main", "sleep 1000", |config| {
        security(config).privileged = true;
        profiled(config, ProfileType::Localhost, &path);
    });
    assert_eq!(container.ask("hostname mighty; hostname"), "mighty");
    assert_eq!(container.ask("grep '^Seccomp:' /proc/self/status | cut -f2"), "0");
}

fn new_privileges_are_allowed_without_the_flag(containerd: Containerd) {
    let pod = containerd.pod("privileges");
    let flag = |name: &str, no_new_privs: bool| {
        let container = pod.container(name, "sleep 1000", |config| {
            security(config).no_new_privs = no_new_privs;
        });
        let own = container.ask("grep NoNewPrivs /proc/1/status | cut -f2");
        (own, container.ask("grep NoNewPrivs /proc/self/status | cut -f2"))
    };
    assert_eq!(flag("free", false), ("0".into(), "0".into()));
    assert_eq!(flag("held", true), ("1".into(), "1".into()));
}

fn an_unprivileged_container_administers_no_network(containerd: Containerd) {
    let pod = containerd.pod("plain");
    let container = pod.shell("main", "sleep 1000");
    let answer = container.exec("ip link add dummy0 type dummy");
    assert!(answer.code != 0 && answer.stderr.contains("Operation not permitted"), "{answer:?}");
    assert_ne!(container.exec("mount -t tmpfs none /tmp").code, 0);
}

fn logs_and_commands_of_two_containers_are_apart(containerd: Containerd) {
    let pod = containerd.pod("two");
    let containers = ["one", "two"]
        .map(|name| (name, pod.shell(name, &format!("echo from {name}; sleep 1000"))));
    for (name, container) in &containers {
        container.wait_for_log(&format!("from {name}"));
        assert_eq!(container.log_lines().len(), 1);
        container.ask(&format!("echo {name} > /tmp/name"));
    }
    for (name, container) in &containers {
        assert_eq!(container.ask("cat /tmp/name"), *name);
    }
}

/// The kubelet's summary. containerd counts in the pod's cgroup and the pod's network.
fn a_pod_s_stats_show_its_containers(containerd: Containerd) {
    let pod = containerd.pod("counted");
    let containers = ["one", "two"].map(|name| {
        let fill = format!("dd if=/dev/zero of=/dev/shm/{name} bs=1M count=16 2>/dev/null");
        pod.shell(name, &format!("{fill}; echo done; sleep 1000"))
    });
    containers.iter().for_each(|container| container.wait_for_log("done"));
    // containerd computes rates from two looks.
    let stats = wait::until("the pod's memory is counted", || {
        let stats = pod.stats().linux?;
        let used = stats.memory.as_ref()?.usage_bytes.as_ref()?.value;
        (used >= 32 << 20 && stats.containers.len() == 2).then_some(stats)
    });
    let network = stats.network.expect("the pod's network");
    assert_eq!(network.default_interface.expect("an interface").name, "eth0");
    let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).expect("CPU time").value;
    assert!(cpu > 100_000, "{cpu} ns");
    let processes =
        stats.process.and_then(|process| process.process_count).map(|count| count.value);
    assert!(processes.is_none_or(|count| count >= 2), "{processes:?}");
}

/// A mount of the host that is shared, taken off on drop.
struct Shared(PathBuf);

impl Shared {
    fn new(path: PathBuf) -> Shared {
        let tmpfs = mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>);
        tmpfs.expect("mount a tmpfs");
        let shared = mount(None::<&str>, &path, None::<&str>, MsFlags::MS_SHARED, None::<&str>);
        shared.expect("share it");
        for name in ["host", "container"] {
            fs::create_dir(path.join(name)).expect("make a mount point");
        }
        Shared(path)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for path in [&self.0.join("host"), &self.0.join("container"), &self.0] {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

/// A CSI driver's pod: Bidirectional, and HostToContainer beside it.
fn mounts_go_both_ways_in_a_privileged_pod(containerd: Containerd) {
    let tree = Shared::new(volume(&containerd, "tree"));
    let pod = privileged(&containerd, "driver");
    let with = |name: &str, propagation: MountPropagation| {
        pod.container(name, "sleep 1000", |config| {
            security(config).privileged = true;
            let propagation = propagation.into();
            config.mounts.push(Mount { propagation, ..at("/tree", &tree.0) });
        })
    };
    let both = with("both", MountPropagation::PropagationBidirectional);
    let receives = with("receives", MountPropagation::PropagationHostToContainer);
    let private = with("private", MountPropagation::PropagationPrivate);

    let host_s = tree.0.join("host");
    let made = mount(Some("none"), &host_s, Some("tmpfs"), MsFlags::empty(), None::<&str>);
    made.expect("mount on the host");
    fs::write(host_s.join("file"), "").expect("write a file");
    let sees =
        |container: &PodContainer<'_>, place: &str| container.ask(&format!("ls /tree/{place}"));
    assert_eq!([&both, &receives, &private].map(|c| sees(c, "host")), ["file", "file", ""]);

    both.ask("mount -t tmpfs none /tree/container && touch /tree/container/file");
    assert!(tree.0.join("container/file").exists(), "the host sees the container's mount");
    assert_eq!(sees(&receives, "container"), "file");
    assert_eq!(sees(&private, "container"), "");
    receives.ask("mkdir /tree/own && mount -t tmpfs none /tree/own && touch /tree/own/file");
    assert!(!tree.0.join("own/file").exists(), "HostToContainer is one way");
}

fn host_ipc_and_the_pod_s_are_apart(containerd: Containerd) {
    let own = fs::read_link("/proc/self/ns/ipc").expect("this IPC namespace");
    let ipc = |name: &str, mode: NamespaceMode| {
        let pod = containerd.pod_with(name, |config| {
            let options = pod_security(config).namespace_options.get_or_insert_default();
            options.ipc = mode.into();
        });
        pod.shell("main", "sleep 1000").ask("readlink /proc/self/ns/ipc")
    };
    assert_eq!(ipc("hosts", NamespaceMode::Node), own.to_string_lossy());
    assert_ne!(ipc("own", NamespaceMode::Pod), own.to_string_lossy());
}

fn ports_of_the_host_s_network_are_forwarded(containerd: Containerd) {
    let pod = containerd.pod_with("host-port", |config| {
        let options = pod_security(config).namespace_options.get_or_insert_default();
        options.network = NamespaceMode::Node.into();
        config.hostname = String::new();
    });
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|s| s.local_addr());
    let port = free.expect("a free port").port();
    let script = format!(
        "mkdir /tmp/www; echo forwarded > /tmp/www/index.html; \
         exec httpd -f -p 127.0.0.1:{port} -h /tmp/www"
    );
    let container = pod.shell("httpd", &script);
    wait::until("the server listens", || {
        let asked = format!("wget -q -O - http://127.0.0.1:{port}/");
        (container.exec(&asked).code == 0).then_some(())
    });
    let mut session = Session::connect(&containerd, &pod.port_forward(port.into()));
    session.write_port(b"GET / HTTP/1.0\r\n\r\n");
    session.wait_for("forwarded\n");
}

/// containerd gives `rro` only where the runtime's features have it, for which 2.1 asks nothing
/// but runc's shim. With another runtime it crashes itself at such a volume.
#[test]
fn recursively_read_only_volumes_are_so_to_the_last_mount() {
    let keys = "runtime_type = \"io.containerd.runc.v2\"\n\
                runtime_path = \"BIN/containerd-shim-palisade-v1\"";
    let containerd = Containerd::start_with_handler(Version::V2_1, "by-runc-s-name", keys);
    let tree = Shared::new(volume(&containerd, "tree"));
    let below = tree.0.join("host");
    let made = mount(Some("none"), &below, Some("tmpfs"), MsFlags::empty(), None::<&str>);
    made.expect("mount below the volume");
    fs::set_permissions(&below, fs::Permissions::from_mode(0o777)).expect("chmod");
    let pod = containerd.try_pod_by("by-runc-s-name", "recursive", |_| ()).expect("run a pod");
    let with = |name: &str, recursive_read_only: bool| {
        pod.container(name, "sleep 1000", |config| {
            let mount = Mount { readonly: true, recursive_read_only, ..at("/tree", &tree.0) };
            config.mounts.push(mount);
        })
    };
    let whole = with("whole", true);
    assert_ne!(whole.exec("touch /tree/file").code, 0);
    assert_ne!(whole.exec("touch /tree/host/file").code, 0);
    let top = with("top", false);
    assert_ne!(top.exec("touch /tree/file").code, 0);
    top.ask("touch /tree/host/file");
    let refused = pod.create("both", 0, "true", |config| {
        let propagation = MountPropagation::PropagationHostToContainer.into();
        let readonly = true;
        config.mounts.push(Mount {
            readonly,
            recursive_read_only: true,
            propagation,
            ..at("/tree", &tree.0)
        });
    });
    assert!(refused.is_err(), "a mount that comes later would not be read-only");
}
