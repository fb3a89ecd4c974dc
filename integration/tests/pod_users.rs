//! The user namespace of a pod's containers, and what it owns: a capability that a spec
//! grants over the network, the host name or the message queues has its effect, and one
//! that it does not grant has none.

use std::fs;

use integration::containerd::{Containerd, Version};
use integration::cri::{Pod, PodContainer, pod_security, security};
use integration::{host, on_each_containerd};
use k8s_cri::v1::{Capability, IdMapping, NamespaceMode, UserNamespace};
use serde_json::{Value, json};

on_each_containerd!(
    a_container_administers_its_own_network,
    a_container_without_the_capability_does_not,
    low_ports_take_a_capability_in_an_own_network,
    a_container_names_its_own_host,
    ping_groups_are_the_container_s,
);

fn grant<const N: usize>(names: [&'static str; N]) -> impl Fn(&mut Value) {
    move |spec| {
        for set in ["bounding", "effective", "permitted", "inheritable"] {
            let sets = &mut spec["process"]["capabilities"];
            let mut held = sets[set].as_array().cloned().unwrap_or_default();
            held.extend(names.iter().map(|name| json!(name)));
            sets[set] = held.into();
        }
    }
}

/// Administers the network as ip(8) does. Prints what the last command reads.
const ADMINISTER: &str = "exec 2>&1; set -e\n\
    ip link set lo up\n\
    ip link add v0 type veth peer name v1\n\
    ip addr add 10.99.0.1/24 dev v0\n\
    ip link set v0 up\n\
    for peer in /sys/class/net/veth*; do ip link set ${peer##*/} up; done\n\
    ip route add 10.98.0.0/16 via 10.99.0.2\n\
    arping -q -c 1 -w 1 -I v0 10.99.0.2 || test $? = 1\n\
    ip route | grep -c 10.98";

fn a_container_administers_its_own_network(containerd: Containerd) {
    let granted = grant(["CAP_NET_ADMIN", "CAP_NET_RAW"]);
    let container = containerd.shell("admin", ADMINISTER).spec(granted).start();
    assert_eq!(container.finish(), (0, "1\n".to_owned()));
    let tun = |spec: &mut Value| {
        grant(["CAP_NET_ADMIN"])(spec);
        let node = json!({ "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666 });
        spec["linux"]["devices"] = json!([node]);
        let allow =
            json!({ "allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm" });
        spec["linux"]["resources"]["devices"].as_array_mut().expect("devices").push(allow);
    };
    let script = "tunctl -t tun7 && ip link show tun7 | grep -c tun7";
    let (code, output) = containerd.shell("tun", script).spec(tun).start().finish();
    assert_eq!((code, output.lines().last()), (0, Some("1")), "{output}");
}

fn a_container_without_the_capability_does_not(containerd: Containerd) {
    let attempts = "ip link set lo down && echo down\n\
        ip addr add 10.99.0.1/24 dev lo && echo address\n\
        ip link add v0 type veth peer name v1 && echo link\n\
        hostname other && echo name\n\
        echo done";
    let (code, output) = containerd.shell("plain", attempts).start().finish();
    assert_eq!((code, output.as_str()), (0, "done\n"));
    // The same with the capabilities: each can succeed.
    let granted = grant(["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    let (_, output) = containerd.shell("control", attempts).spec(granted).start().finish();
    assert_eq!(output, "down\naddress\nlink\nname\ndone\n");
}

/// Whether a socket of TCP can be bound to port 80, as `bound` or `refused`.
const BIND: &str = "error=$(timeout 1 nc -l -p 80 2>&1 </dev/null); \
    case $error in *'Permission denied'*) echo refused;; *) echo bound;; esac";

fn low_ports_take_a_capability_in_an_own_network(containerd: Containerd) {
    let binds = |id: &str, change: &dyn Fn(&mut Value)| {
        containerd.shell(id, BIND).spec(change).start().finish().1
    };
    assert_eq!(binds("root", &|_| ()), "bound\n");
    let user = |spec: &mut Value| {
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        spec["process"]["capabilities"] = json!({});
    };
    assert_eq!(binds("user", &user), "refused\n");
    // Docker sets this, and containerd's CRI where it is configured to.
    let free = |spec: &mut Value| {
        user(spec);
        spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_unprivileged_port_start": "0" });
    };
    assert_eq!(binds("free", &free), "bound\n");
}

fn a_container_names_its_own_host(containerd: Containerd) {
    let granted = grant(["CAP_SYS_ADMIN"]);
    let container = containerd.shell("named", "hostname b && hostname").spec(granted).start();
    assert_eq!(container.finish(), (0, "b\n".to_owned()));
}

fn ping_groups_are_the_container_s(containerd: Containerd) {
    let range = |id: &str, range: &str| {
        let read = "cat /proc/sys/net/ipv4/ping_group_range";
        let container = containerd.shell(id, read).spec(|spec| {
            spec["linux"]["sysctl"] = json!({ "net.ipv4.ping_group_range": range });
        });
        container.start().finish().1.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(range("some", "1000 2000"), "1000 2000");
    assert_eq!(range("all", "0 2147483647"), "0 65535");
}

/// Requests `hostUsers: false`.
fn own_users(host_id: u32) -> UserNamespace {
    let ids = vec![IdMapping { host_id, container_id: 0, length: 65536 }];
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids }
}

/// Runs a pod with its own users, and a container there that may administer the network.
fn pod_that_administers(containerd: &Containerd) -> (Pod<'_>, PodContainer<'_>) {
    let pod = containerd.pod_with("users", |config| {
        let options = pod_security(config).namespace_options.get_or_insert_default();
        options.userns_options = Some(own_users(700_000_000));
    });
    let container = pod.container("main", "sleep 1000", |config| {
        let add = vec!["NET_ADMIN".to_owned(), "NET_RAW".to_owned()];
        security(config).capabilities =
            Some(Capability { add_capabilities: add, ..Default::default() });
    });
    let uid = host::status(container.pid(), "Uid");
    assert_eq!(uid.split_whitespace().next(), Some("700000000"));
    let map = container.ask("cat /proc/self/uid_map");
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "700000000", "65536"]);
    assert!(!pod.ip().is_empty(), "CNI gave the pod an address");
    (pod, container)
}

/// containerd 1.7 takes such a pod's network namespace from the sandbox.
#[test]
fn a_pod_with_its_own_users_owns_its_network() {
    let containerd = Containerd::start(Version::V1_7);
    let (_pod, container) = pod_that_administers(&containerd);
    assert_eq!(container.ask("ip link add v0 type veth peer name v1 && echo made"), "made");
    let told = containerd.log().lines().filter(|line| line.contains("has no effect")).count();
    assert_eq!(told, 0, "nothing is powerless");
}

/// containerd 2.1 makes it before, in a user namespace of its own that no process of the
/// sandbox can enter.
#[test]
fn a_network_of_another_user_namespace_is_told() {
    let containerd = Containerd::start(Version::V2_1);
    let (_pod, container) = pod_that_administers(&containerd);
    assert_ne!(container.exec("ip link add v0 type veth peer name v1").code, 0);
    let log = containerd.log();
    let told = log.lines().find(|line| line.contains("CAP_NET_ADMIN") && line.contains("warning"));
    assert!(told.is_some_and(|told| !told.contains("set hostUsers")), "{told:?}");
}

/// In a network of the host's, the same is told, with what to set instead.
#[test]
fn a_pod_in_a_network_of_the_host_is_told() {
    let containerd = Containerd::start(Version::V2_1);
    let pod = containerd.pod("host-s");
    let container = pod.container("main", "sleep 1000", |config| {
        let add = vec!["NET_ADMIN".to_owned()];
        security(config).capabilities =
            Some(Capability { add_capabilities: add, ..Default::default() });
    });
    assert_ne!(container.exec("ip link add v0 type veth peer name v1").code, 0);
    let log = containerd.log();
    let told = log.lines().find(|line| line.contains("CAP_NET_ADMIN"));
    let told = told.unwrap_or_else(|| panic!("nothing is told"));
    assert!(told.contains("level=warning") && told.contains("hostUsers: false"), "{told}");
}

/// Containers of a pod share their user namespace, which is below boot's.
#[test]
fn the_containers_of_a_pod_share_their_users() {
    let containerd = Containerd::start(Version::V2_1);
    let pod = containerd.pod("shared");
    let (one, two) = (pod.shell("one", "sleep 1000"), pod.shell("two", "sleep 1000"));
    let users = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).expect("a link");
    assert_eq!(users(one.pid()), users(two.pid()));
    assert_ne!(users(one.pid()), users(pod.pid()));
    let mounts = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).expect("a link");
    assert_ne!(mounts(one.pid()), mounts(two.pid()));
}
