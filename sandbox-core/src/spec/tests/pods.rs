//! Pods: the sandbox container with the namespaces, and the containers that
//! join.

use serde_json::json;

use super::*;
use crate::spec::plan::{Namespaces, Network};

const LOG_DIRECTORY: &str = "/annotations/io.kubernetes.cri.sandbox-log-directory";

#[test]
fn boot_takes_the_place_of_the_pause_container() {
    let plan = Story::of(CRI_SANDBOX).accepted();
    assert_eq!(plan.container.process, None);
    assert_eq!(
        plan.container.namespaces,
        Namespaces { pid: false, ipc: false, uts: false, cgroup: true, time: false }
    );
    assert_eq!(plan.container.hostname.as_deref(), Some("web"));
    assert_eq!(plan.host.network, Network::Path("/proc/self/ns/mnt".into()));
    assert_eq!(plan.host.no_user_namespace, None);
}

#[test]
fn another_pause_program_runs_in_the_pods_namespaces() {
    let plan = Story::of(CRI_SANDBOX).set("/process/args/0", "/usr/bin/pod").accepted();
    assert!(plan.container.process.is_some());
    assert_eq!(
        plan.container.namespaces,
        Namespaces { pid: false, ipc: false, uts: false, cgroup: true, time: false }
    );
    // The same command line outside of a pod is a program like any other.
    let plan = Story::of(CTR).set("/process/args", json!(["/pause"])).accepted();
    assert!(plan.container.process.is_some());
}

#[test]
fn sysctls_go_where_they_belong() {
    let plan = Story::of(CRI_SANDBOX).accepted();
    let names =
        |list: &[(String, String)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&plan.container.sysctls), ["kernel.shm_rmid_forced"]);
    assert_eq!(
        names(&plan.host.network_sysctls),
        ["net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"]
    );
    let story = Story::of(CTR).set("/linux/sysctl/net~1ipv4~1conf~1eth0.1~1forwarding", "1");
    let name = &story.accepted().host.network_sysctls[0].0;
    assert_eq!(name, "net.ipv4.conf.eth0/1.forwarding");
    assert_eq!(crate::spec::plan::sysctl_file(name), "net/ipv4/conf/eth0.1/forwarding");
}

#[test]
fn a_container_joins_its_pod() {
    let story = Story::of(CRI_CONTAINER).inside(sandbox());
    let plan = story.accepted();
    assert_eq!(
        plan.container.namespaces,
        Namespaces { pid: true, ipc: false, uts: false, cgroup: true, time: false }
    );
    assert!(plan.container.user_namespace);
    assert_eq!(plan.host.network, Network::Path("/proc/self/ns/mnt".into()));
    assert_eq!(process(&plan).additional_gids, [1000, 2000]);

    // shareProcessNamespace
    let shared = story.set("/linux/namespaces/0/path", "/proc/self/ns/pid");
    assert!(!shared.accepted().container.namespaces.pid);
}

#[test]
fn a_container_joins_no_namespace_but_its_pods() {
    let story = || Story::of(CRI_CONTAINER).inside(sandbox());
    for (index, name) in [(1, "ipc"), (2, "uts"), (4, "network")] {
        let path = format!("/linux/namespaces/{index}/path");
        story().set(&path, "/proc/self/ns/user").refused(&format!("linux.namespaces: {name}"));
        story().set(&path, "/proc/self/ns/none").refused("No such file");
    }
    story().set("/linux/namespaces/0/path", "/proc/self/ns/user").refused("linux.namespaces: pid");
    story()
        .set("/linux/namespaces/4", json!({"type": "network"}))
        .refused("network: a new one is asked for");
    story()
        .set("/linux/namespaces/4", json!({"type": "user"}))
        .refused("network: the host's is asked for");
    story().set("/linux/namespaces/3/path", "/proc/self/ns/mnt").refused("mount: joining");
}

#[test]
fn the_user_namespace_of_a_pod_is_recognised_by_itself_or_by_its_mappings() {
    let user = |path: &str| json!({"type": "user", "path": path});
    let line = json!([{"containerID": 0, "hostID": 200000, "size": 65536}]);
    let story =
        |facts, path| Story::of(CRI_CONTAINER).inside(facts).set("/linux/namespaces/6", user(path));
    story(sandbox(), "/proc/self/ns/user").accepted();
    story(sandbox(), "/proc/self/ns/uts").refused("user: is not the user namespace");

    // The sandbox's spec has mappings; the container's are the same.
    let brought = Story::of(CRI_SANDBOX)
        .set("/linux/namespaces/5", user("/proc/self/ns/user"))
        .set("/linux/uidMappings", line.clone())
        .set("/linux/gidMappings", line.clone())
        .accepted();
    let facts = SandboxFacts { mappings: brought.host.mappings, ..sandbox() };
    let with = |line: Value| {
        story(facts.clone(), "/proc/self/ns/uts")
            .set("/linux/uidMappings", line.clone())
            .set("/linux/gidMappings", line)
    };
    assert_eq!(with(line).accepted().host.mappings, facts.mappings);
    with(json!([{"containerID": 0, "hostID": 1, "size": 10}])).refused("nor has its mappings");
}

#[test]
fn a_pod_that_uses_the_hosts_namespaces_has_no_user_namespace() {
    let story = |kept: &[&str]| {
        let list: Vec<_> = kept.iter().map(|kind| json!({"type": kind})).collect();
        Story::of(CRI_SANDBOX).set("/linux/namespaces", list).set("/linux/sysctl", json!({}))
    };
    for (kept, name) in [
        (["mount", "uts", "pid", "ipc"], "network"),
        (["mount", "uts", "network", "ipc"], "PID"),
        (["mount", "uts", "network", "pid"], "IPC"),
    ] {
        let plan = story(&kept).accepted();
        let reason = format!("the pod uses the host's {name} namespace");
        assert_eq!(plan.host.no_user_namespace, Some(reason));
        assert!(!plan.container.user_namespace);
        let host = plan.host.host_namespaces;
        assert_eq!((host.pid, host.ipc, host.uts), (name == "PID", name == "IPC", false));
    }
    // A name of its own would be the host's.
    story(&["mount", "network", "pid", "ipc"]).refused("hostname: would name the host");
    // A path to the host's network namespace is no different from none.
    let plan = Story::of(CRI_SANDBOX)
        .set("/linux/namespaces/4/path", "/proc/self/ns/net")
        .set("/linux/sysctl", json!({}))
        .accepted();
    assert_eq!(plan.host.network, Network::Host);
    // The pod's containers have no user namespace and the host's network.
    let facts = SandboxFacts {
        network: namespace("net"),
        host_network: true,
        user_namespace: false,
        ..sandbox()
    };
    let container = || Story::of(CRI_CONTAINER).inside(facts.clone());
    let plan = container().set("/linux/namespaces/4/path", "/proc/self/ns/net").accepted();
    assert_eq!((plan.host.network, plan.container.user_namespace), (Network::Host, false));
    container()
        .set("/linux/namespaces/4", json!({"type": "user", "path": "/proc/self/ns/user"}))
        .accepted();
}

#[test]
fn a_privileged_pod_is_recognised_by_its_sandbox_container() {
    let reason = |story: Story| story.accepted().host.no_user_namespace;
    // containerd 2.0.3 and later.
    let story = Story::of(CRI_SANDBOX);
    let sys = story.spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .position(|m| m["destination"] == "/sys")
        .unwrap();
    let writable = story.set(&format!("/mounts/{sys}/options/3"), "rw");
    assert_eq!(reason(writable).as_deref(), Some("the pod is privileged"));
    // CRI-O.
    let story =
        Story::of(CRI_SANDBOX).set("/annotations/io.kubernetes.cri-o.PrivilegedRuntime", "true");
    assert_eq!(reason(story).as_deref(), Some("the pod is privileged"));
    // The kubelet with containerd 1.x: a privileged sandbox has no seccomp
    // profile.
    let story = || Story::of(CRI_SANDBOX).set("/linux/seccomp", Value::Null);
    assert!(reason(story()).is_some_and(|reason| reason.contains("no seccomp profile")));
    // Another client that requests no profile, and containerd 2.x, whose
    // sandbox would have a writable /sys.
    assert_eq!(reason(story().set(LOG_DIRECTORY, "/tmp/logs")), None);
    let newer = "/annotations/io.kubernetes.cri.podsandbox.image-name";
    assert_eq!(reason(story().set(newer, "localhost/pause:3.10")), None);
}
