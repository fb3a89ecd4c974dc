//! Pods that use namespaces of the host: they get these, as with runc, where they have no
//! user namespace. Otherwise that is told.

use std::fs;
use std::process::{Child, Command};

use integration::containerd::{Containerd, Version};
use integration::cri::pod_security;
use integration::events::{Subscriber, TaskEvent};
use integration::{host, on_each_containerd, sandbox, wait};
use k8s_cri::v1::NamespaceMode;
use serde_json::Value;

on_each_containerd!(
    a_container_of_the_host_s_pids_sees_and_signals_them,
    a_container_of_the_host_s_pids_leaves_no_process,
    containers_of_the_host_s_pids_end_with_boot,
    containers_of_the_host_s_pids_end_with_the_shim,
    ipc_and_names_are_the_host_s,
    a_name_for_the_host_is_refused,
    names_of_the_host_are_told_where_there_is_a_user_namespace,
);

/// Removes these namespaces from the list, so that the host's are asked for.
fn of_host<const N: usize>(kinds: [&'static str; N]) -> impl Fn(&mut Value) {
    move |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| kinds.iter().all(|kind| namespace["type"] != *kind));
    }
}

fn own(kind: &str) -> String {
    let link = fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace of this process");
    link.to_string_lossy().into_owned()
}

/// A process of the host, killed on drop.
struct Bystander(Child);

impl Bystander {
    fn new() -> Bystander {
        Bystander(Command::new("sleep").arg("1000").spawn().expect("run sleep"))
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_container_of_the_host_s_pids_sees_and_signals_them(containerd: Containerd) {
    let mut bystander = Bystander::new();
    let pid = bystander.0.id();
    let script = format!("cat /proc/{pid}/comm; kill {pid}; sleep 1000");
    let container = containerd.shell("hosts", &script).spec(of_host(["pid"])).start();
    assert!(!bystander.0.wait().expect("wait for sleep").success(), "it was killed");
    let ask = |id: &str, script: &str| container.exec_shell(id, script);
    assert_eq!(ask("exec", "readlink /proc/self/ns/pid"), (0, own("pid") + "\n"));
    assert_eq!(ask("shim", &format!("test -d /proc/{}", container.shim())).0, 0);
    // Its own PID is the host's.
    assert_eq!(ask("init", &format!("cat /proc/{}/comm", container.pid())), (0, "sleep\n".into()));
    container.kill(9).expect("kill it");
    assert_eq!(container.wait().code, 137);
}

fn a_container_of_the_host_s_pids_leaves_no_process(containerd: Containerd) {
    let script = "setsid sleep 1000 & (setsid sleep 1000 &) ; sleep 0; exit 3";
    let container = containerd.shell("leaver", script).spec(of_host(["pid"])).start();
    assert_eq!(container.wait().code, 3);
    container.delete_task().expect("delete it");
    let left = host::processes().into_iter().filter(|p| p.args == ["sleep", "1000"]);
    let group = containerd.cgroups_path("leaver");
    let left: Vec<_> = left
        .filter(|p| {
            fs::read_to_string(format!("/proc/{}/cgroup", p.pid)).is_ok_and(|c| c.contains(&group))
        })
        .map(|p| p.pid)
        .collect();
    assert_eq!(left, [0; 0], "processes that outlive their container");
}

fn containers_of_the_host_s_pids_end_with_boot(containerd: Containerd) {
    let container = containerd.container("orphan", ["sleep", "1000"]).spec(of_host(["pid"]));
    let container = container.start();
    let pidfd = container.pidfd();
    let boot = sandbox::boot_of(container.shim());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(boot.pid), nix::sys::signal::SIGKILL)
        .expect("kill boot");
    assert_eq!(container.wait().code, 137);
    assert!(wait::readable(&pidfd, wait::deadline()), "its process ends");
}

fn containers_of_the_host_s_pids_end_with_the_shim(containerd: Containerd) {
    let container = containerd.container("orphan", ["sleep", "1000"]).spec(of_host(["pid"]));
    let container = container.start();
    let pidfd = container.pidfd();
    let shim = nix::unistd::Pid::from_raw(container.shim());
    nix::sys::signal::kill(shim, nix::sys::signal::SIGKILL).expect("kill the shim");
    // containerd calls the shim's `delete`, which finds the processes by their cgroup.
    assert!(wait::readable(&pidfd, wait::deadline()), "its process ends");
}

fn ipc_and_names_are_the_host_s(containerd: Containerd) {
    let script = "readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts; uname -n";
    let container = containerd.shell("shares", script).spec(of_host(["ipc", "uts"])).start();
    let name = fs::read_to_string("/proc/sys/kernel/hostname").expect("the host's name");
    let wanted = format!("{}\n{}\n{name}", own("ipc"), own("uts"));
    assert_eq!(container.finish(), (0, wanted));
}

fn a_name_for_the_host_is_refused(containerd: Containerd) {
    let container = containerd.shell("namer", "true").spec(of_host(["network", "uts"]));
    let container = container.spec(|spec| spec["hostname"] = "mine".into());
    let error = container.try_create().expect_err("it would name the host").message().to_owned();
    assert!(error.contains("hostname") || error.contains("UTS"), "{error}");
}

fn names_of_the_host_are_told_where_there_is_a_user_namespace(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let script = "readlink /proc/self/ns/uts";
    let (code, link) = containerd.shell("told", script).spec(of_host(["uts"])).start().finish();
    assert_eq!(code, 0);
    assert_ne!(link.trim(), own("uts"));
    let seen = events.until(|event| matches!(event, TaskEvent::Powerless(_)));
    let Some(TaskEvent::Powerless(sentence)) = seen.last() else { panic!("{seen:?}") };
    assert!(sentence.contains("linux.namespaces") && sentence.contains("uts"), "{sentence}");
}

/// `hostPID` and `hostIPC`.
#[test]
fn pods_share_what_they_ask_for() {
    let containerd = Containerd::start(Version::V2_1);
    let pod = containerd.pod_with("hosts", |config| {
        let options = pod_security(config).namespace_options.get_or_insert_default();
        options.pid = NamespaceMode::Node.into();
        options.ipc = NamespaceMode::Node.into();
    });
    let (one, two) = (pod.shell("one", "sleep 1000"), pod.shell("two", "sleep 1000"));
    for container in [&one, &two] {
        assert_eq!(container.ask("readlink /proc/self/ns/pid"), own("pid"));
        assert_eq!(container.ask("readlink /proc/self/ns/ipc"), own("ipc"));
        assert_eq!(
            container.ask("cat /proc/1/comm"),
            fs::read_to_string("/proc/1/comm").expect("its name").trim()
        );
    }
    // Each ends alone, and the pod with all of them.
    one.stop(std::time::Duration::ZERO).expect("stop a container");
    assert_eq!(two.ask("echo fine"), "fine");
    let pidfd = integration::container::pidfd(two.pid());
    pod.stop().expect("stop the pod");
    assert!(wait::readable(&pidfd, wait::deadline()), "its process ends");
}
