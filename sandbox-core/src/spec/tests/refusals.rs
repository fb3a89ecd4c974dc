//! Specs that are wrong or not supported are refused, and the error names the
//! field.

use serde_json::json;

use super::*;

#[test]
fn sections_without_support_are_refused_by_name() {
    let table = [
        ("/windows", json!({"layerFolders": ["x"]}), "windows: is a section for another platform"),
        ("/solaris", json!({}), "solaris: is a section"),
        ("/vm", json!({"kernel": {"path": "/k"}}), "vm: is a section"),
        ("/zos", json!({}), "zos: is a section"),
        ("/linux", Value::Null, "linux: expected the section"),
    ];
    for (pointer, value, expected) in table {
        Story::of(CTR).set(pointer, value).refused(expected);
    }
}

#[test]
fn namespaces_that_make_no_sense_are_refused() {
    let list = |list: Value| Story::of(CTR).set("/linux/namespaces", list);
    list(json!([])).refused("expected a mount namespace in the list");
    list(json!([{"type": "mount"}, {"type": "pid"}, {"type": "pid"}]))
        .refused("linux.namespaces[2]: pid is listed twice");
    list(json!([{"type": "mount"}, {"type": "uts", "path": "ns"}]))
        .refused("linux.namespaces[1].path: \"ns\" is not an absolute path");
    list(json!([{"type": "mount"}, {"type": "cgroup", "path": "/proc/self/ns/cgroup"}]))
        .refused("cgroup: joining");
    list(json!([{"type": "mount"}, {"type": "user"}]))
        .refused("linux.uidMappings: expected beside the user namespace");
    list(json!([{"type": "mount"}, {"type": "user", "path": "/proc/self/ns/user"}]))
        .refused("user: joining");
    // Go programs write an absent path as an empty one.
    list(json!([{"type": "mount", "path": ""}, {"type": "network", "path": ""}])).accepted();
}

#[test]
fn classes_of_service_have_names_and_lines() {
    let with = |rdt: Value| Story::of(CTR).set("/linux/intelRdt", rdt);
    let rdt = json!({"closID": "gold", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=10",
        "schemata": ["L2:0=f"], "enableMonitoring": true});
    let planned = with(rdt).accepted().host.intel_rdt.expect("a class");
    assert_eq!(planned.class.as_deref(), Some("gold"));
    assert_eq!(planned.schemata, ["L3:0=f", "MB:0=10", "L2:0=f"]);
    assert!(planned.monitoring);
    let own = with(json!({"closID": ""})).accepted().host.intel_rdt.expect("a class");
    assert_eq!((own.class, own.schemata.len(), own.monitoring), (None, 0, false));
    with(json!({"closID": "/"})).accepted();
    for wrong in ["..", ".", "a/b", "/a", "info", "mon_groups", "mon_data", "a\nb"] {
        with(json!({"closID": wrong})).refused("linux.intelRdt.closID: ");
    }
    with(json!({"memBwSchema": "L3:0=f"})).refused("linux.intelRdt.memBwSchema: ");
    with(json!({"l3CacheSchema": "L3:0=f\nMB:0=1"})).refused("linux.intelRdt.l3CacheSchema: ");
    with(json!({"schemata": ["a", "b\nc"]})).refused("linux.intelRdt.schemata: ");
    let pause = Story::of(CRI_SANDBOX).set("/linux/intelRdt", json!({}));
    pause.refused("linux.intelRdt: no process would have it");
}

#[test]
fn what_no_kernel_gives_is_told() {
    let told = |wanted: bool| {
        let memory = json!({"limit": 1 << 30, "useHierarchy": wanted});
        let plan = Story::of(CTR).set("/linux/resources/memory", memory).accepted();
        plan.host.powerless.iter().any(|lost| lost.field.ends_with("memory.useHierarchy"))
    };
    assert!(told(false));
    assert!(!told(true));
}

#[test]
fn an_agent_that_is_never_asked_is_told() {
    let told = |action: &str| {
        let rule = json!({"names": ["mkdir"], "action": action});
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/agent", "syscalls": [rule]});
        let plan = Story::of(CTR).set("/linux/seccomp", profile).accepted();
        plan.host.powerless.iter().any(|lost| lost.field == "linux.seccomp.listenerPath")
    };
    assert!(told("SCMP_ACT_ERRNO"));
    assert!(!told("SCMP_ACT_NOTIFY"));
}

#[test]
fn network_devices_have_names_of_the_kernel_s_kind() {
    let with = |devices: Value| Story::of(CTR).set("/linux/netDevices", devices);
    let plan = with(json!({"eth1": {"name": "net%d"}, "eth0": {"name": ""}})).accepted();
    let names = plan.host.net_devices.iter().map(|d| (d.name.as_str(), d.new_name.as_str()));
    assert_eq!(names.collect::<Vec<_>>(), [("eth0", "eth0"), ("eth1", "net%d")]);
    for wrong in [".", "..", "a/b", "a b", "a:b", "sixteen-letters-", "a\tb"] {
        let field = "no name of a network device";
        with(json!({wrong: {}})).refused(field);
        with(json!({"eth0": {"name": wrong}})).refused("linux.netDevices[\"eth0\"].name: ");
    }
    let host = json!([{"type": "mount"}]);
    with(json!({"eth0": {}})).set("/linux/namespaces", host).refused("the host's network");
    with(json!({})).set("/linux/namespaces", json!([{"type": "mount"}])).accepted();
}

#[test]
fn clocks_have_offsets_in_a_new_time_namespace_only() {
    let offsets = json!({"monotonic": {"secs": 1}, "boottime": {"secs": -2, "nanosecs": 3}});
    let with = |namespace: Value| {
        Story::of(CTR)
            .set("/linux/namespaces/5", namespace)
            .set("/linux/timeOffsets", offsets.clone())
    };
    let plan = with(json!({"type": "time"})).accepted().container;
    assert!(plan.namespaces.time);
    let given = plan.time_offsets.iter().map(|o| (o.clock.as_str(), o.seconds, o.nanoseconds));
    assert_eq!(given.collect::<Vec<_>>(), [("boottime", -2, 3), ("monotonic", 1, 0)]);
    let hosts = "/proc/self/ns/time";
    with(json!({"type": "time", "path": hosts})).refused("linux.timeOffsets: expected a time");
    with(json!({"type": "cgroup"})).refused("linux.timeOffsets: expected a time namespace");
    let new = with(json!({"type": "time"}));
    new.set("/linux/timeOffsets/realtime", json!({"secs": 1})).refused("[\"realtime\"]: is no");
    let nanos = json!({"secs": 1, "nanosecs": 1_000_000_000});
    with(json!({"type": "time"})).set("/linux/timeOffsets/monotonic", nanos).refused("nanosecs is");
    // Go programs write an absent map as an empty one.
    let shared = with(json!({"type": "time", "path": hosts})).set("/linux/timeOffsets", json!({}));
    let plan = shared.accepted();
    assert_eq!((plan.container.namespaces.time, plan.host.time_namespace), (false, None));
    // The mount namespace stands for a time namespace that is not the host's.
    let other = json!({"type": "time", "path": "/proc/self/ns/mnt"});
    let joined = Story::of(CTR).set("/linux/namespaces/5", other.clone());
    assert_eq!(joined.accepted().host.time_namespace, Some("/proc/self/ns/mnt".into()));
    let later = Story::of(CRI_CONTAINER).inside(sandbox()).set("/linux/namespaces/6", other);
    later.refused("time: /proc/self/ns/mnt is neither");
    let pause = Story::of(CRI_SANDBOX).set("/linux/namespaces/5", json!({"type": "time"}));
    pause.refused("time: no process would be in it");
}

#[test]
fn mappings_that_the_kernel_would_not_take_are_refused() {
    let with = |uids: Value, gids: Value| {
        Story::of(RUNC_ROOTLESS).set("/linux/uidMappings", uids).set("/linux/gidMappings", gids)
    };
    let line = |inside: u64, outside: u64, size: u64| json!({"containerID": inside, "hostID": outside, "size": size});
    let good = json!([line(0, 5, 10)]);
    with(good.clone(), Value::Null).refused("linux.gidMappings: expected beside uidMappings");
    with(json!([line(0, 0, 0)]), good.clone()).refused("linux.uidMappings[0]: 0 IDs");
    with(json!([line(0, 1, u64::from(u32::MAX))]), good.clone()).refused("linux.uidMappings[0]");
    with(good.clone(), json!([line(0, 5, 10), line(9, 50, 1)]))
        .refused("linux.gidMappings[1]: overlaps");
    with(good.clone(), json!([line(0, 5, 10), line(20, 14, 1)]))
        .refused("linux.gidMappings[1]: overlaps");
    with(json!([line(1, 5, 10)]), good.clone())
        .refused("linux.uidMappings: expected container ID 0");
    Story::of(CTR)
        .set("/linux/uidMappings", good.clone())
        .set("/linux/gidMappings", good)
        .refused("no user namespace is listed");
}

#[test]
fn sysctls_outside_of_the_pods_namespaces_are_refused() {
    let with = |name: &str| {
        let mut story = Story::of(CTR);
        story.spec["linux"]["sysctl"] = json!({name: "1"});
        story
    };
    for good in [
        "net.core.somaxconn",
        "net/core/somaxconn",
        "kernel.msgmax",
        "fs.mqueue.msg_max",
        "kernel.hostname",
    ] {
        with(good).accepted();
    }
    for machine in
        ["vm.swappiness", "kernel.pid_max", "kernel/core_pattern", "fs.file-max", "users.x"]
    {
        with(machine).refused("belongs to no namespace");
    }
    for none in ["", "net", "net..core", "net/../kernel/core_pattern", ".", "kernel."] {
        with(none).refused("is no sysctl");
    }
    let user = with("user.max_pid_namespaces");
    let plan = user.accepted();
    assert_eq!(plan.container.user_sysctls[0], ("user.max_pid_namespaces".into(), "1".into()));
    assert_eq!(plan.container.sysctls, []);
    user.userns(Userns::Never).refused("would change the whole machine: the pod has no user");
    with("kernel.hostname").set("/hostname", "a").refused("is given beside hostname");
    let only_mount = json!([{"type": "mount"}]);
    for (name, reason) in [
        ("net.core.somaxconn", "the host's network"),
        ("kernel.sem", "the host's IPC"),
        ("kernel.domainname", "the host's name"),
    ] {
        with(name).set("/linux/namespaces", only_mount.clone()).refused(reason);
    }
    let mut twice = Story::of(CTR);
    twice.spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "1", "net/core/somaxconn": "2"});
    twice.refused("net.core.somaxconn is given twice");
    let mut later = Story::of(CRI_CONTAINER).inside(sandbox());
    later.spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "1"});
    later.refused("belongs to the pod's network");
}

#[test]
fn hooks_are_planned_in_their_order_or_refused() {
    let hook = |path: &str| json!([{"path": path, "args": ["x"], "timeout": 3}]);
    let plan = Story::of(CTR)
        .set("/hooks/createRuntime", hook("/second"))
        .set("/hooks/prestart", hook("/first"))
        .set("/hooks/startContainer", json!([{"path": "/in"}]))
        .set("/hooks/poststop", hook("/last"))
        .accepted();
    let ran: Vec<_> = plan.host.hooks.create_runtime.iter().map(|hook| hook.path.clone()).collect();
    assert_eq!(ran, paths(["/first", "/second"]));
    assert_eq!(plan.host.hooks.poststop[0].timeout.map(|t| t.as_secs()), Some(3));
    assert_eq!(plan.container.start_hooks[0].args, ["/in"]);
    Story::of(CTR)
        .set("/hooks/poststart", hook("x"))
        .refused("hooks.poststart[0].path: \"x\" is not an absolute path");
    for timeout in [0, -1] {
        let hook = json!([{"path": "/x", "timeout": timeout}]);
        Story::of(CTR)
            .set("/hooks/createContainer", hook)
            .refused("hooks.createContainer[0].timeout: is");
    }
}

#[test]
fn devices_are_made_as_the_kernel_numbers_them() {
    let plan = Story::of(CTR)
        .set("/linux/devices", json!([
            {"path": "/dev/./pipe", "type": "p"},
            {"path": "/dev/disk", "type": "b", "major": 8, "minor": 1, "fileMode": 0o060640, "uid": 3, "gid": 6},
            {"path": "/dev/raw", "type": "u", "major": 162, "minor": 1},
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
            {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "gid": 0},
            {"path": "/dev/tty", "type": "c", "major": 5, "minor": 0, "gid": 5},
            {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2, "gid": 5},
            {"path": "/dev/raw", "type": "c", "major": 162, "minor": 2}
        ]))
        .accepted();
    let made = paths(["/dev/pipe", "/dev/disk", "/dev/null", "/dev/tty", "/dev/raw"]);
    assert_eq!(plan.container.devices, made, "those that every container has are not made again");
    let modes: Vec<_> = plan.host.devices.iter().map(|node| node.mode).collect();
    assert_eq!(modes, [0o010666, 0o060640, 0o020600, 0o020666, 0o020666]);
    let refused = |device: Value, reason: &str| {
        Story::of(CTR).set("/linux/devices", json!([device])).refused(reason)
    };
    refused(json!({"path": "", "type": "c"}), "linux.devices[0].path");
    refused(json!({"path": "dev/../proc/x", "type": "c"}), "inside of proc");
    refused(json!({"path": "/proc/self/attr", "type": "c"}), "inside of proc");
    refused(json!({"path": "/dev/x", "type": "a"}), "linux.devices[0].type");
    refused(json!({"path": "/dev/x", "type": "c", "major": -1}), "linux.devices[0].major: is -1");
    refused(json!({"path": "/dev/x", "type": "c", "minor": 1 << 20}), "linux.devices[0].minor");
    refused(
        json!({"path": "/dev/x", "type": "b", "fileMode": 0o020666}),
        "linux.devices[0].fileMode",
    );
    refused(json!({"path": "/dev/x", "type": "p", "uid": u32::MAX}), "linux.devices[0].uid");
}

#[test]
fn the_rest_of_the_linux_section_is_checked_too() {
    let table = [
        ("/linux/maskedPaths/0", json!("a\0b"), "linux.maskedPaths[0]: holds a NUL byte"),
        ("/linux/readonlyPaths/1", json!(""), "linux.readonlyPaths[1]: is empty"),
        ("/linux/rootfsPropagation", json!("sideways"), "linux.rootfsPropagation: \"sideways\""),
        ("/linux/cgroupsPath", json!("/a/../../b"), "linux.cgroupsPath"),
        ("/hostname", json!("h".repeat(65)), "hostname: "),
        ("/domainname", json!("a\0b"), "domainname: holds a NUL byte"),
    ];
    for (pointer, value, expected) in table {
        Story::of(CTR).set(pointer, value).refused(expected);
    }
}

#[test]
fn ids_are_names_of_directories() {
    let story = Story::of(CTR);
    story.write();
    let spec = crate::spec::load(story.bundle.path()).unwrap();
    let plan = |id: &str| {
        let context = Context {
            id,
            bundle: story.bundle.path(),
            rootfs_mounts_given: true,
            userns: Userns::Auto,
            id_pool: IdPool::default(),
            baseline: Default::default(),
            tells_refusals: false,
            views: None,
            sandbox: None,
            other_containers: &[],
        };
        crate::spec::plan(&spec, &context)
    };
    assert!(plan("a_b-c.d+1").is_ok());
    for id in ["", ".", "..", "a/b", "a b", "ü", &"x".repeat(256)] {
        assert!(plan(id).unwrap_err().to_string().starts_with("container ID"), "{id}");
    }
}
