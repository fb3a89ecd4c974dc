//! Fields that newer versions of the runtime-spec have, and others that few clients set.
//! Each test has its control: what holds without the field.

use integration::container::{Container, options};
use integration::containerd::{Containerd, Version};
use integration::stdio::Streams;
use integration::{on_each_containerd, on_each_cri, spec};
use serde_json::{Value, json};

on_each_containerd!(
    sysctls_of_the_user_namespace_are_the_pod_s,
    a_memory_policy_holds_for_init_and_execs,
    an_exec_keeps_its_initial_cpus,
    a_container_has_clocks_of_its_own,
    a_container_joins_another_s_clocks,
    containers_of_a_pod_share_clocks_if_asked,
    nobody_inside_changes_the_clocks,
    a_network_device_moves_with_its_addresses,
    a_network_device_that_cannot_move_stays,
);

/// Prints the output of an exec.
fn run(container: &Container<'_>, id: &str, process: Value) -> String {
    let exec = container.exec(id, process, Streams::Captured);
    let exec = exec.unwrap_or_else(|e| panic!("exec {id}: {}", e.message()));
    exec.start().unwrap_or_else(|e| panic!("start {id}: {}", e.message()));
    exec.wait();
    exec.stdio().output()
}

const LIMIT: &str = "/proc/sys/user/max_uts_namespaces";

/// The limit counts: with zero there are no more such namespaces. The host's stays.
fn sysctls_of_the_user_namespace_are_the_pod_s(containerd: Containerd) {
    let before = std::fs::read_to_string(LIMIT).expect("read the host's limit");
    let script = format!("cat {LIMIT}; sleep 1000");
    let with = |id: &str, limit: Option<&str>| {
        let script = script.clone();
        let container = containerd.shell(id, &script).spec(|spec| {
            if let Some(limit) = limit {
                spec["linux"]["sysctl"] = json!({ "user.max_uts_namespaces": limit });
            }
        });
        let container = container.start();
        let output = container.stdio().wait_for_output("\n");
        (container, output)
    };
    let may_unshare = |container: &Container<'_>| {
        let mut process = spec::process(&["sh", "-c", "unshare -u true 2>&1 && echo made"]);
        spec::add_all_capabilities(&mut process);
        run(container, "look", process)
    };
    let (limited, output) = with("limited", Some("0"));
    assert_eq!(output, "0\n");
    assert!(may_unshare(&limited).contains("No space left"));
    let (control, output) = with("control", None);
    assert_ne!(output, "0\n");
    assert_eq!(may_unshare(&control), "made\n");
    assert_eq!(std::fs::read_to_string(LIMIT).expect("read the host's limit"), before);
}

on_each_cri!(a_pod_sets_sysctls_of_its_user_namespace);

/// The pause container has no process that could set them.
fn a_pod_sets_sysctls_of_its_user_namespace(containerd: Containerd) {
    let limit_in = |id: &str, limit: Option<&str>| {
        let pod = containerd.pod_with(id, |config| {
            let sysctls = &mut config.linux.get_or_insert_default().sysctls;
            if let Some(limit) = limit {
                sysctls.insert("user.max_uts_namespaces".into(), limit.into());
            }
        });
        let container = pod.container("main", "sleep 1000", |_| ());
        container.exec(&format!("cat {LIMIT}")).stdout
    };
    assert_eq!(limit_in("seven", Some("7")), "7\n");
    assert_ne!(limit_in("control", None), "7\n");
}

const POLICY: &str = "cut -d' ' -f2 /proc/self/numa_maps | sort -u";

/// The kernel shows the policy of each mapping.
fn a_memory_policy_holds_for_init_and_execs(containerd: Containerd) {
    let script = format!("{POLICY}; sleep 1000");
    let policy = json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] });
    let bound = containerd.shell("bound", &script).spec(|spec| {
        spec["linux"]["memoryPolicy"] = policy;
    });
    let bound = bound.start();
    let wanted = "bind=static:0\n";
    assert_eq!(bound.stdio().wait_for_output("\n"), wanted);
    assert_eq!(bound.exec_shell("look", POLICY), (0, wanted.into()));
    let control = containerd.shell("free", &script).start();
    assert_eq!(control.stdio().wait_for_output("\n"), "default\n");
    // The machine has no such node.
    let missing = containerd.shell("missing", "true").spec(|spec| {
        spec["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "1000" });
    });
    let error = missing.try_create().expect_err("there is no node 1000");
    assert!(error.message().contains("linux.memoryPolicy: set_mempolicy"), "{error:?}");
}

/// Without `final`, an exec keeps the CPUs of `initial`, as far as its cpuset has them.
fn an_exec_keeps_its_initial_cpus(containerd: Containerd) {
    let container = containerd.container("roams", ["sleep", "1000"]).start();
    let cpus = |id: &str, affinity: Value| {
        let mut process = spec::process(&["grep", "Cpus_allowed_list", "/proc/self/status"]);
        process["execCPUAffinity"] = affinity;
        run(&container, id, process).trim_start_matches("Cpus_allowed_list:").trim().to_owned()
    };
    let all = cpus("all", json!({}));
    assert_ne!(all, "0");
    assert_eq!(cpus("initial", json!({ "initial": "0" })), "0");
    assert_eq!(cpus("both", json!({ "initial": "0", "final": "1" })), "1");
    let mut process = spec::process(&["true"]);
    process["execCPUAffinity"] = json!({ "initial": "1000" });
    let refused = match container.exec("nowhere", process, Streams::Captured) {
        Ok(exec) => exec.start().expect_err("the machine has no CPU 1000"),
        Err(error) => error,
    };
    assert!(refused.message().to_lowercase().contains("initial"), "{refused:?}");
}

/// Prints the clocks: the namespace's number, and the offsets from the host.
const CLOCKS: &str = "readlink /proc/self/ns/time; \
    while read clock seconds nanoseconds; do echo $clock $seconds $nanoseconds; done \
    < /proc/self/timens_offsets; cut -d. -f1 /proc/uptime";

fn set_clocks(spec: &mut Value) {
    add_namespace(spec, json!({ "type": "time" }));
    spec["linux"]["timeOffsets"] = json!({
        "monotonic": { "secs": 7, "nanosecs": 500 }, "boottime": { "secs": 100_000_000 },
    });
}

fn add_namespace(spec: &mut Value, namespace: Value) {
    spec["linux"]["namespaces"].as_array_mut().expect("namespaces").push(namespace);
}

fn lines(output: &str) -> Vec<&str> {
    output.lines().collect()
}

/// The clocks of the host's namespace, by its own number.
fn host_clock() -> String {
    let link = std::fs::read_link("/proc/self/ns/time").expect("the host's time namespace");
    link.display().to_string()
}

/// The clocks of a container whose spec names none: the host's, but for the time since the
/// start, which is the pod's where that has views.
#[track_caller]
fn check_unshifted(containerd: &Containerd, seen: &[&str]) {
    assert_eq!(seen[1], "monotonic 0 0");
    if !containerd.runtime_name().contains("palisade") {
        assert_eq!((seen[0], seen[2]), (host_clock().as_str(), "boottime 0 0"));
        return;
    }
    assert_ne!(seen[0], host_clock());
    assert!(seen[2].starts_with("boottime -"), "{seen:?}");
    assert!(seen[3].parse::<u64>().expect("seconds") < 1000, "{seen:?}");
}

fn a_container_has_clocks_of_its_own(containerd: Containerd) {
    let script = format!("{CLOCKS}; echo ready; sleep 1000");
    let container = containerd.shell("shifted", &script).spec(set_clocks).start();
    let seen = container.stdio().wait_for_output("ready\n");
    let seen = lines(&seen);
    assert_ne!(seen[0], host_clock());
    assert_eq!(seen[1..3], ["monotonic 7 500", "boottime 100000000 0"]);
    assert!(seen[3].parse::<u64>().expect("seconds") > 100_000_000, "{seen:?}");
    let (_, in_exec) = container.exec_shell("look", CLOCKS);
    assert_eq!(lines(&in_exec)[..3], seen[..3]);
    let control = containerd.shell("control", CLOCKS).start();
    let (_, seen) = control.finish();
    check_unshifted(&containerd, &lines(&seen));
    // The machine would not have started yet.
    let early = containerd.shell("early", "true").spec(|spec| {
        set_clocks(spec);
        spec["linux"]["timeOffsets"] = json!({ "boottime": { "secs": -1_000_000_000 } });
    });
    let error = early.try_create().map(drop).expect_err("no such time");
    let ours = containerd.runtime_name().contains("palisade");
    assert!(!ours || error.message().contains("linux.timeOffsets: set"), "{error:?}");
}

fn a_container_joins_another_s_clocks(containerd: Containerd) {
    let first = containerd.shell("first", "sleep 1000").spec(set_clocks).start();
    let path = format!("/proc/{}/ns/time", first.pid());
    let second =
        containerd.shell("second", &format!("{CLOCKS}; echo ready; sleep 1000")).spec(|spec| {
            add_namespace(spec, json!({ "type": "time", "path": path }));
        });
    let second = second.start();
    let seen = second.stdio().wait_for_output("ready\n");
    let (_, of_first) = first.exec_shell("look", CLOCKS);
    let (_, in_exec) = second.exec_shell("look", CLOCKS);
    assert_eq!(lines(&seen)[..3], lines(&of_first)[..3]);
    assert_eq!(lines(&in_exec)[..3], lines(&of_first)[..3]);
    assert_ne!(lines(&seen)[0], host_clock());
}

fn containers_of_a_pod_share_clocks_if_asked(containerd: Containerd) {
    let first = containerd.shell("first", "sleep 1000").spec(set_clocks).start();
    let later = |id: &str, namespace: Option<Value>| {
        let container =
            containerd.shell(id, &format!("{CLOCKS}; echo ready; sleep 1000")).spec(|spec| {
                spec::join_sandbox(spec, "first", first.pid(), &["network"]);
                let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
                namespaces.extend(namespace);
            });
        let container = container.start();
        let seen = container.stdio().wait_for_output("ready\n");
        let (_, in_exec) = container.exec_shell("look", CLOCKS);
        assert_eq!(lines(&in_exec)[..3], lines(&seen)[..3]);
        seen
    };
    let (_, of_first) = first.exec_shell("look", CLOCKS);
    let path = format!("/proc/{}/ns/time", first.pid());
    let same = later("same", Some(json!({ "type": "time", "path": path })));
    assert_eq!(lines(&same)[..3], lines(&of_first)[..3]);
    check_unshifted(&containerd, &lines(&later("control", None)));
}

/// The kernel refuses it since a process is inside. The control makes a time namespace of its
/// own, and sets its clocks: unshare(2) with CLONE_NEWTIME.
fn nobody_inside_changes_the_clocks(containerd: Containerd) {
    let container = containerd.shell("shifted", "sleep 1000").spec(|spec| {
        set_clocks(spec);
        for (source, place) in [("/usr", "/usr"), ("/usr/lib", "/lib"), ("/usr/lib64", "/lib64")] {
            spec::add_bind(spec, source, place, &["bind", "ro"]);
        }
    });
    let container = container.start();
    let attempt = |id: &str, first: &str| {
        let script = format!(
            "{first}; open(F, q(>), q(/proc/self/timens_offsets)) or die qq(open $!); \
             syswrite(F, qq(monotonic 9 0\\n)) and print q(changed) or print qq($!)"
        );
        let mut process = spec::process(&["/usr/bin/perl", "-e", &script]);
        spec::add_capabilities_of_host(&mut process);
        run(&container, id, process)
    };
    assert_eq!(attempt("attack", "1"), "Permission denied");
    assert_eq!(attempt("control", "syscall(272, 128) == 0 or die"), "changed");
    assert!(container.exec_shell("look", CLOCKS).1.contains("monotonic 7 500"));
}

/// Two devices of the host that are joined by a cable, taken away on drop.
struct Cable([String; 2]);

impl Cable {
    fn new() -> Self {
        Self::named("a")
    }

    fn named(letter: &str) -> Self {
        // Tests run beside each other.
        let ends = ["", "-"].map(|end| format!("p{}{letter}{end}", std::process::id()));
        ip(&["link", "add", &ends[0], "type", "veth", "peer", "name", &ends[1]]);
        Self(ends)
    }

    fn is_on_host(&self) -> bool {
        std::path::Path::new("/sys/class/net").join(&self.0[0]).exists()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // It goes with the other end, wherever that is.
        let _ = ip_status(&["link", "delete", &self.0[1]]);
    }
}

fn ip(args: &[&str]) {
    assert!(ip_status(args), "ip {args:?}");
}

fn ip_status(args: &[&str]) -> bool {
    let output = std::process::Command::new("ip").args(args).output().expect("run ip");
    output.status.success()
}

const GLOBAL: [&str; 2] = ["10.77.1.1/24", "fd77::1/64"];

/// Addresses that are of no use elsewhere, or only for a while.
const LOCAL: [&str; 2] = ["10.77.2.1/24", "10.77.3.1/24"];

/// Gives a device the addresses, and sets it up.
fn configure(device: &str) {
    for address in GLOBAL {
        ip(&["address", "add", address, "dev", device, "nodad"]);
    }
    ip(&["address", "add", LOCAL[0], "dev", device, "scope", "link"]);
    let lifetime = ["valid_lft", "1000", "preferred_lft", "1000"];
    ip(&[&["address", "add", LOCAL[1], "dev", device], lifetime.as_slice()].concat());
    ip(&["link", "set", device, "mtu", "1400", "up"]);
}

/// The device of a later container goes into the same network.
fn a_network_device_moves_with_its_addresses(containerd: Containerd) {
    let cables = [Cable::new(), Cable::named("c"), Cable::named("e")];
    let [first, second, third] = cables.each_ref().map(|cable| cable.0[0].clone());
    configure(&first);
    let script = "ip address; sleep 1000";
    let container = containerd.shell("wired", script).spec(|spec| {
        spec["linux"]["netDevices"] = json!({ first: { "name": "wire0" }, second: {} });
    });
    let container = container.start();
    let seen = container.stdio().wait_for_output("10.77.1.1");
    assert!(!cables[0].is_on_host() && !cables[1].is_on_host() && cables[2].is_on_host());
    let (_, wire) = container.exec_shell("wire", "ip address show dev wire0");
    for there in GLOBAL.iter().chain(&["mtu 1400", "UP"]) {
        assert!(wire.contains(there), "{there} in: {wire}");
    }
    for gone in LOCAL {
        assert!(!wire.contains(gone), "{gone} in: {wire}");
    }
    assert!(seen.contains("wire0"), "{seen}");
    let name = &cables[1].0[0];
    assert_eq!(container.exec_shell("second", &format!("ip link show dev {name}")).0, 0);

    let later = containerd.shell("later", "ls /sys/class/net; sleep 1000").spec(|spec| {
        spec::join_sandbox(spec, "wired", container.pid(), &["network"]);
        spec["linux"]["netDevices"] = json!({ third: { "name": "plug%d" } });
    });
    let later = later.start();
    later.stdio().wait_for_output("wire0");
    assert_eq!(later.exec_shell("plug", "ip link show dev plug0").0, 0);
}

/// An error names the device, and what is left on the host is as it was.
fn a_network_device_that_cannot_move_stays(containerd: Containerd) {
    let cable = Cable::new();
    let device = &cable.0[0];
    configure(device);
    let refused = |id: &str, name: &str, new_name: &str| {
        let container = containerd.shell(id, "true").spec(|spec| {
            spec["linux"]["netDevices"] = json!({ name: { "name": new_name } });
        });
        let error = container.try_create().map(drop).expect_err(id).message().to_owned();
        assert!(error.contains(&format!("linux.netDevices[\"{name}\"]")), "{error}");
    };
    refused("missing", "no-such-dev", "eth0");
    refused("taken", device, "lo");
    let shown = std::process::Command::new("ip").args(["address", "show", "dev", device]).output();
    let shown = String::from_utf8(shown.expect("run ip").stdout).expect("text");
    for there in GLOBAL.iter().chain(&LOCAL).chain(&["UP"]) {
        assert!(shown.contains(there), "{there} in: {shown}");
    }
}

/// Without a user namespace, the container's root is the host's, and so are its limits.
#[test]
fn containerd_2_1_clocks_and_limits_without_a_user_namespace() {
    let containerd = Containerd::start(Version::V2_1);
    let never = || options("userns = 'never'", "");
    let script = format!("{CLOCKS}; echo ready; sleep 1000");
    let container = containerd.shell("shifted", &script).options(never()).spec(set_clocks).start();
    let seen = container.stdio().wait_for_output("ready\n");
    assert_eq!(lines(&seen)[1..3], ["monotonic 7 500", "boottime 100000000 0"]);
    assert_eq!(lines(&container.exec_shell("look", CLOCKS).1)[..3], lines(&seen)[..3]);
    let limited = containerd.shell("limited", "true").options(never()).spec(|spec| {
        spec["linux"]["sysctl"] = json!({ "user.max_uts_namespaces": "0" });
    });
    let error = limited.try_create().map(drop).expect_err("it would be the host's");
    assert!(error.message().contains("the pod has no user namespace"), "{error:?}");
}
