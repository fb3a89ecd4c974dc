//! The user namespace of a pod's containers, and what it owns: a capability that a spec
//! grants over the network, the host name or the message queues has its effect, and one
//! that it does not grant has none.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use integration::container::options;
use integration::containerd::{Containerd, Version};
use integration::cri::{Pod, PodContainer, pod_security, security};
use integration::events::{Subscriber, TaskEvent};
use integration::stdio::Streams;
use integration::{host, on_each_containerd, spec};
use k8s_cri::v1::{Capability, IdMapping, Int64Value, Mount, NamespaceMode, UserNamespace};
use serde_json::{Value, json};

on_each_containerd!(
    a_container_administers_its_own_network,
    a_container_without_the_capability_does_not,
    low_ports_take_a_capability_in_an_own_network,
    a_container_names_its_own_host,
    ping_groups_are_the_container_s,
    ids_beyond_the_range_exist_where_the_spec_names_them,
    an_exec_has_the_ids_of_its_container,
    a_volume_that_belongs_to_nobody_is_told,
    a_sandbox_can_have_more_ids,
    subordinate_ids_are_mapped_inside,
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

/// Makes a directory of this owner that only it may enter.
fn volume_of(uid: u32, gid: u32) -> tempfile::TempDir {
    let volume = tempfile::tempdir_in("/var/tmp").expect("make a volume");
    chown(volume.path(), Some(uid), Some(gid)).expect("give it away");
    fs::set_permissions(volume.path(), Permissions::from_mode(0o770)).expect("close it");
    volume
}

fn as_user(uid: u32, gid: u32, groups: &[u32]) -> impl Fn(&mut Value) {
    let user = json!({ "uid": uid, "gid": gid, "additionalGids": groups });
    move |spec| {
        spec["process"]["user"] = user.clone();
        spec["process"]["capabilities"] = json!({});
    }
}

fn ids_beyond_the_range_exist_where_the_spec_names_them(containerd: Containerd) {
    let volume = volume_of(1_000_680_000, 70_000);
    let path = volume.path().to_str().expect("an ASCII path");
    let script = "id -u; id -g; id -G; cd /volume && echo mine > note && stat -c '%u %g' note .";
    let container = containerd.shell("high", script).bind(path, "/volume", &["rbind", "rw"]);
    let container = container.spec(as_user(1_000_680_000, 70_000, &[4711, 80_000])).start();
    let (code, output) = container.finish();
    let wanted = "1000680000\n70000\n70000 4711 80000\n1000680000 70000\n1000680000 70000\n";
    assert_eq!((code, output.as_str()), (0, wanted));
    let note = fs::metadata(volume.path().join("note")).expect("the file");
    assert_eq!((note.uid(), note.gid()), (1_000_680_000, 70_000), "on disk");
    // On the host, it was nobody all the same.
    let container = containerd.container("seen", ["sleep", "1000"]);
    let container = container.spec(as_user(1_000_680_000, 70_000, &[])).start();
    let uid: u32 = host::status(container.pid(), "Uid")
        .split_whitespace()
        .next()
        .and_then(|uid| uid.parse().ok())
        .expect("a user ID");
    assert_ne!(uid, 1_000_680_000);
    assert!(uid >= 1 << 30, "{uid} is one of Palisade's");
}

fn an_exec_has_the_ids_of_its_container(containerd: Containerd) {
    let container = containerd.container("high", ["sleep", "1000"]);
    let container = container.spec(as_user(70_000, 70_000, &[])).start();
    let exec = |id: &str, uid: u32| {
        let mut process = spec::process(&["id", "-u"]);
        process["user"] = json!({ "uid": uid, "gid": 0 });
        container.exec(id, process, Streams::Captured)
    };
    let known = exec("known", 70_000).expect("add an exec");
    known.start().expect("start it");
    assert_eq!(known.wait().code, 0);
    assert_eq!(known.stdio().output(), "70000\n");
    let error = exec("unknown", 70_001).expect_err("the ID is not there").message().to_owned();
    assert!(error.contains("70001") && error.contains("ids_per_sandbox"), "{error}");
}

fn a_volume_that_belongs_to_nobody_is_told(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let volume = volume_of(90_000, 90_000);
    let path = volume.path().to_str().expect("an ASCII path");
    let look = || containerd.shell("look", "stat -c %u /volume").bind(path, "/volume", &["rbind"]);
    assert_eq!(look().start().finish(), (0, "65534\n".to_owned()));
    let seen = events.until(|event| matches!(event, TaskEvent::Powerless(_)));
    let Some(TaskEvent::Powerless(sentence)) = seen.last() else { panic!("{seen:?}") };
    assert!(sentence.contains(path) && sentence.contains("90000:90000"), "{sentence}");
    let refuse = look().options(options("on_powerless = 'refuse'", ""));
    let error = refuse.try_create().expect_err("it is refused").message().to_owned();
    assert!(error.contains("90000:90000"), "{error}");
}

fn a_sandbox_can_have_more_ids(containerd: Containerd) {
    let script = "touch /tmp/given && chown 100000:131071 /tmp/given && stat -c '%u %g' /tmp/given; \
        awk '{ print $3 }' /proc/self/uid_map";
    let more = options("ids_per_sandbox = 131072", "");
    let container = containerd.shell("more", script).options(more).start();
    assert_eq!(container.finish(), (0, "100000 131071\n131072\n".to_owned()));
}

/// Maps the IDs that Debian's /etc/subuid gives the first user, as newuidmap does for Podman
/// and others without root. Prints the map, and gives a file to the last of them.
const MAP_SUBORDINATES: &str = "mkfifo /tmp/go; touch /tmp/f; chmod 777 /tmp\n\
    unshare -U sh -c 'read go < /tmp/go; cat /proc/self/uid_map; \
        env chown 65536:65536 /tmp/f && stat -c %u /tmp/f' & child=$!\n\
    until [ \"$(readlink /proc/$child/ns/user)\" != \"$(readlink /proc/self/ns/user)\" ]; do :; done\n\
    for map in uid_map gid_map; do printf '0 0 1\\n1 100000 65536\\n' > /proc/$child/$map; done\n\
    echo > /tmp/go; wait $child; stat -c %u /tmp/f";

/// The range is beyond the 65536 IDs of a sandbox. The control has no more than those.
fn subordinate_ids_are_mapped_inside(containerd: Containerd) {
    let run = |id: &str, option: &str| {
        let mut container = containerd.shell(id, MAP_SUBORDINATES).spec(|spec| {
            grant(["CAP_SETFCAP"])(spec);
            spec["process"]["noNewPrivileges"] = false.into();
            spec["mounts"].as_array_mut().expect("mounts").push(json!({
                "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
            }));
        });
        let nested = "baseline_allow = ['user_namespaces']";
        container = container.options(options(&format!("{option}\n{nested}"), ""));
        let (_, output) = container.start().finish();
        output.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    let mapped = "0 0 1 1 100000 65536 65536 165535";
    assert_eq!(run("more", "ids_per_sandbox = 196608"), mapped);
    assert_ne!(run("control", ""), mapped);
}

/// Later containers of a pod get them beside the pod's user namespace.
#[test]
fn each_container_of_a_pod_may_have_its_own_high_ids() {
    let containerd = Containerd::start(Version::V2_1);
    let pod = containerd.pod("openshift");
    let volume = volume_of(0, 1_000_690_000);
    let container = |name: &str, uid: i64| {
        pod.container(name, "sleep 1000", |config| {
            security(config).run_as_user = Some(Int64Value { value: uid });
            security(config).run_as_group = Some(Int64Value { value: uid });
            security(config).supplemental_groups = vec![1_000_690_000];
            config.mounts.push(Mount {
                container_path: "/volume".into(),
                host_path: volume.path().to_string_lossy().into(),
                ..Default::default()
            });
        })
    };
    let (one, two) = (container("one", 1_000_680_000), container("two", 1_000_680_001));
    assert_eq!(
        one.ask("echo one > /volume/one; stat -c '%u %g' /volume/one"),
        "1000680000 1000680000"
    );
    assert_eq!(two.ask("cat /volume/one; stat -c %u /volume/one"), "one\n65534");
    assert_eq!(two.ask("stat -c %g /volume"), "1000690000");
    let on_disk = fs::metadata(volume.path().join("one")).expect("the file");
    assert_eq!((on_disk.uid(), on_disk.gid()), (1_000_680_000, 1_000_680_000));
    // The ID that both have is one ID on the host.
    let groups = |pid: i32| -> BTreeSet<String> {
        host::status(pid, "Groups").split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(groups(one.pid()).intersection(&groups(two.pid())).count(), 1);
    // Their network is still the pod's.
    assert_eq!(one.ask("readlink /proc/self/ns/net"), two.ask("readlink /proc/self/ns/net"));
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
    let instead = "leave hostUsers: false out and run the pod without a user namespace";
    assert!(told.is_some_and(|told| told.contains(instead)), "{told:?}");
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

/// And what it says to set instead helps.
#[test]
fn a_pod_without_a_user_namespace_administers_its_network() {
    let never = |_: &_| "userns = \"never\"".to_owned();
    let containerd = Containerd::start_with_options(Version::V2_1, never);
    let pod = containerd.pod("host-s");
    let container = pod.container("main", "sleep 1000", |config| {
        let add = vec!["NET_ADMIN".to_owned()];
        security(config).capabilities =
            Some(Capability { add_capabilities: add, ..Default::default() });
    });
    assert_eq!(container.ask("ip link add v0 type veth peer name v1 && echo made"), "made");
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
