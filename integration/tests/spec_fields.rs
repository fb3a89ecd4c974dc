//! Fields that newer versions of the runtime-spec have, and others that few clients set.
//! Each test has its control: what holds without the field.

use integration::container::Container;
use integration::containerd::Containerd;
use integration::stdio::Streams;
use integration::{on_each_containerd, on_each_cri, spec};
use serde_json::{Value, json};

on_each_containerd!(
    sysctls_of_the_user_namespace_are_the_pod_s,
    a_memory_policy_holds_for_init_and_execs,
    an_exec_keeps_its_initial_cpus,
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
