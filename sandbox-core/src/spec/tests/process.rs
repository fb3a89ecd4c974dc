use serde_json::json;

use super::*;

#[test]
fn ids_beyond_the_range_of_a_sandbox_are_listed() {
    let story = |uid: u32| Story::of(CTR).set("/process/user/uid", uid);
    let foreign = |story: &Story| story.accepted().host.foreign_ids;
    assert_eq!(foreign(&story(65535)), [0; 0]);
    assert_eq!(foreign(&story(65536)), [65536]);
    assert_eq!(foreign(&story(65536).userns(Userns::Never)), [0; 0]);
    story(u32::MAX).userns(Userns::Never).refused("is not a valid ID");
    story(u32::MAX).refused("is not a valid ID");
    Story::of(RUNC_ROOTLESS)
        .set("/process/user/gid", 1)
        .refused("process.user.gid: 1 is not mapped");
    let tmpfs = json!({"destination": "/a", "type": "tmpfs", "options": ["uid=80000"]});
    let device = json!({"path": "/dev/x", "type": "p", "gid": 90000});
    let all = story(70000)
        .set("/process/user/additionalGids", json!([1, 70000, 1_000_680_000]))
        .set("/mounts", json!([tmpfs]))
        .set("/linux/devices", json!([device]));
    assert_eq!(foreign(&all), [70000, 80000, 90000, 1_000_680_000]);
}

/// The map of a container is written by the time of an exec.
#[test]
fn an_exec_has_no_ids_but_its_container_s() {
    let container = Story::of(CTR).set("/process/user/uid", 70000).accepted();
    let exec = |uid: u32| {
        let process = json!({"args": ["a"], "cwd": "/", "user": {"uid": uid, "gid": 0}});
        let process = serde_json::from_value(process).expect("a process");
        crate::spec::plan_process(&process, &crate::spec::ProcessDefaults::of(&container))
    };
    assert_eq!(exec(70000).expect("it is the container's").uid, 70000);
    let error = exec(70001).expect_err("it is not").to_string();
    assert!(error.contains("process.user.uid: 70001 does not exist in the container"), "{error}");
}

#[test]
fn an_error_names_the_property_of_the_process() {
    let table = [
        ("/process", Value::Null, "process: is missing"),
        ("/process/args", json!([]), "process.args: expected"),
        ("/process/args", json!([""]), "process.args: expected"),
        ("/process/args", json!(["a", "b\0c"]), "process.args[1]: holds a NUL"),
        ("/process/env", json!(["A=1", "B"]), "process.env[1]: \"B\" is not of the form"),
        ("/process/env", json!(["A=\0"]), "process.env[0]: holds a NUL"),
        ("/process/cwd", json!("tmp"), "process.cwd: \"tmp\" is not an absolute path"),
        ("/process/cwd", json!(""), "process.cwd"),
        ("/process/user/username", json!("root"), "process.user.username"),
        ("/process/user/umask", json!(0o1000), "process.user.umask"),
        ("/process/commandLine", json!("cmd"), "process.commandLine: is for Windows"),
        ("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]),
            "RLIMIT_CPU: soft limit 2 is above",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU"}, {"type": "RLIMIT_CPU"}]),
            "process.rlimits[1]: RLIMIT_CPU is given twice",
        ),
        (
            "/process/capabilities/permitted",
            json!([]),
            "process.capabilities.effective: CAP_CHOWN is not in",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            "process.ioPriority.priority",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_FIFO"}),
            "process.scheduler.priority: is 0; expected 1 to 99",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_OTHER", "priority": 1}),
            "process.scheduler.priority: belongs to",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_FIFO", "priority": 1, "nice": 1}),
            "process.scheduler.nice: belongs to",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "nice": 20}),
            "process.scheduler.nice: is 20",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_RR", "priority": 1, "period": 1}),
            "process.scheduler: runtime",
        ),
        ("/process/scheduler", json!({"policy": "SCHED_ISO"}), "process.scheduler.policy"),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN"]}),
            "process.scheduler.flags",
        ),
        (
            "/linux/personality",
            json!({"domain": "LINUX", "flags": ["X"]}),
            "linux.personality.flags",
        ),
    ];
    for (pointer, value, expected) in table {
        Story::of(CTR).set(pointer, value).refused(expected);
    }
    let size = json!({"width": 70000, "height": 1});
    let story = Story::of(CTR).set("/process/consoleSize", size);
    story.accepted();
    story.set("/process/terminal", true).refused("process.consoleSize: is 70000 by 1");
}

#[test]
fn names_become_the_kernels_numbers() {
    let plan = Story::of(CTR)
        .set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE", "priority": 7}))
        .set("/process/scheduler", json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3}))
        .set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}, {"type": "RLIMIT_RTTIME", "hard": u64::MAX}]))
        .set("/process/capabilities/bounding", json!(["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"]))
        .set("/process/user/umask", 0o27)
        .accepted();
    let process = process(&plan);
    assert_eq!(process.io_priority, Some(3 << 13 | 7));
    let scheduler = process.scheduler.expect("a scheduler");
    assert_eq!(
        (scheduler.policy, scheduler.runtime, scheduler.deadline, scheduler.period),
        (6, 1, 2, 3)
    );
    let limits: Vec<_> = process.rlimits.iter().map(|l| (l.resource, l.soft, l.hard)).collect();
    assert_eq!(limits, [(7, 1, 2), (15, 0, u64::MAX)]);
    assert_eq!(process.capabilities.bounding, 1 | 1 << 40);
    assert_eq!(process.umask, Some(0o27));
}

/// As in runc, blanks and more commas do no harm.
#[test]
fn execs_have_their_own_cpus_and_the_container_s_memory_policy() {
    let policy = json!({"mode": "MPOL_BIND", "nodes": "2, 0-1,", "flags": ["MPOL_F_STATIC_NODES"]});
    let story = Story::of(CTR)
        .set("/linux/memoryPolicy", policy)
        .set("/process/execCPUAffinity", json!({"initial": "0", "final": "1"}));
    let container = story.accepted();
    let init = process(&container);
    let policy = init.memory_policy.clone().expect("a policy");
    assert_eq!((policy.mode, policy.nodes.as_slice()), (2 | 1 << 15, [0, 1, 2].as_slice()));
    assert_eq!((&init.cpu_affinity.initial, &init.cpu_affinity.last), (&None, &None));
    let exec = |affinity: Value| {
        let process = json!({"args": ["a"], "cwd": "/", "user": {"uid": 0, "gid": 0},
            "execCPUAffinity": affinity});
        let process = crate::spec::load_process(process.to_string().as_bytes())?;
        crate::spec::plan_process(&process, &crate::spec::ProcessDefaults::of(&container))
    };
    let both = exec(json!({"initial": "0-2", "final": " 3 ,,0"})).expect("two lists");
    assert_eq!(both.memory_policy.as_ref(), Some(&policy));
    assert_eq!(both.cpu_affinity.initial, Some(vec![0, 1, 2]));
    assert_eq!(both.cpu_affinity.last, Some(vec![0, 3]));
    let error = exec(json!({"initial": "8000"})).expect_err("no such CPU").to_string();
    assert!(error.contains("initial: this machine has none of these CPUs"), "{error}");
    let none = exec(json!({"initial": "", "final": ""})).expect("empty lists");
    assert_eq!(none.cpu_affinity, Default::default());
    for (name, wrong) in [("initial", "2-1"), ("final", "a"), ("initial", ","), ("final", "9999")] {
        let error = exec(json!({name: wrong})).expect_err(wrong).to_string();
        assert!(error.contains(&format!("execCPUAffinity.{name}: ")), "{error}");
    }
    story.set("/process/execCPUAffinity/initial", "3-2").refused("process.execCPUAffinity.initial");
}

#[test]
fn a_memory_policy_has_the_nodes_that_its_mode_takes() {
    let with = |mode: &str, nodes: Value| {
        Story::of(CTR).set("/linux/memoryPolicy", json!({"mode": mode, "nodes": nodes}))
    };
    for mode in ["DEFAULT", "LOCAL"] {
        with(&format!("MPOL_{mode}"), Value::Null).accepted();
        with(&format!("MPOL_{mode}"), json!("0")).refused("linux.memoryPolicy.nodes: MPOL_");
    }
    for mode in ["BIND", "INTERLEAVE", "PREFERRED_MANY", "WEIGHTED_INTERLEAVE"] {
        with(&format!("MPOL_{mode}"), json!("0")).accepted();
        with(&format!("MPOL_{mode}"), json!("")).refused("takes at least one");
    }
    with("MPOL_PREFERRED", Value::Null).accepted();
    with("MPOL_PREFERRED", json!("1")).accepted();
    with("MPOL_BIND", json!("0-1024")).refused("no node number or range up to 1023");
    with("MPOL_SOMEHOW", Value::Null).refused("linux.memoryPolicy.mode");
}

#[test]
fn labels_are_applied_or_refused_but_never_dropped() {
    for harmless in ["", "unconfined"] {
        Story::of(CTR).set("/process/apparmorProfile", harmless).accepted();
    }
    let story = Story::of(CTR).set("/process/apparmorProfile", "cri-containerd.apparmor.d");
    let loaded = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles");
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
    let field = "process.apparmorProfile: \"cri-containerd.apparmor.d\"";
    if !enabled.is_ok_and(|answer| answer[0] == b'Y') {
        story.refused(&format!("{field} cannot be applied"));
    } else if loaded.is_ok_and(|all| !all.contains("cri-containerd.apparmor.d (")) {
        story.refused(&format!("{field} is not loaded"));
    } else {
        assert!(process(&story.accepted()).apparmor_profile.is_some());
    }
    for (pointer, field) in [
        ("/process/selinuxLabel", "process.selinuxLabel"),
        ("/linux/mountLabel", "linux.mountLabel"),
    ] {
        let story = Story::of(CTR).set(pointer, "system_u:system_r:container_t:s0");
        if Path::new("/sys/fs/selinux/enforce").exists() {
            story.accepted();
        } else {
            story.refused(field);
        }
    }
}
