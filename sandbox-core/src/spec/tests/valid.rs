//! Specs as they come, and what is in their plans.

use super::*;
use crate::spec::plan::{IdMapping, Mappings, Namespaces, Network};
use crate::sys::mount::PropagationKind;

#[test]
fn the_spec_that_ctr_writes() {
    let plan = Story::of(CTR).accepted();
    let container = &plan.container;
    assert_eq!(
        container.namespaces,
        Namespaces { pid: true, ipc: true, uts: true, cgroup: true, time: false }
    );
    assert!(container.user_namespace);
    assert_eq!(container.mounts.len(), 7);
    assert_eq!(container.masked_paths.len(), 10);
    assert_eq!(container.root_propagation, None);
    assert_eq!(plan.host.network, Network::New);
    assert_eq!(plan.host.no_user_namespace, None);
    assert_eq!(plan.host.cgroups_path, "/default");
    // Only sysfs needs the host.
    assert_eq!(plan.host.delivered, [(5, crate::spec::plan::DeliveredSource::Sysfs)]);
    let process = process(&plan);
    assert_eq!(process.capabilities.bounding, 0xa80425fb);
    assert_eq!(process.capabilities.bounding, process.capabilities.effective);
    assert_eq!(process.rlimits.len(), 1);
    assert!(process.no_new_privileges);
}

#[test]
fn the_specs_that_runc_writes() {
    let plan = Story::of(RUNC).accepted();
    assert_eq!(plan.container.hostname.as_deref(), Some("runc"));
    assert!(plan.container.readonly_root);
    assert!(process(&plan).terminal.is_some());
    // It writes ambient capabilities that the kernel would not give.
    assert_eq!(process(&plan).capabilities.ambient, 0);

    // Rootless: its own mappings, host network, /sys by bind.
    let plan = Story::of(RUNC_ROOTLESS).accepted();
    let one = vec![IdMapping { inside: 0, outside: 0, size: 1 }];
    assert_eq!(plan.host.mappings, Some(Mappings { uids: one.clone(), gids: one }));
    assert_eq!(plan.host.network, Network::Host);
    assert_eq!(plan.host.no_user_namespace, None);
    assert!(plan.container.user_namespace);
}

#[test]
fn a_privileged_container_has_no_user_namespace_and_all_devices() {
    let plan = Story::of(CTR_PRIVILEGED).accepted();
    assert_eq!(plan.host.no_user_namespace.as_deref(), Some("the container is privileged"));
    assert!(!plan.container.user_namespace);
    assert_eq!(plan.host.network, Network::Host);
    let devices = &plan.container.devices;
    assert!(devices.contains(&PathBuf::from("/dev/fuse")));
    for default in ["/dev/null", "/dev/ptmx", "/dev/tty", "/dev/random"] {
        assert!(!devices.contains(&PathBuf::from(default)), "{default} is there anyway");
    }
    assert_eq!(devices.len(), plan.host.devices.len());

    // Asked for by mappings, it gets one nevertheless.
    let line = serde_json::json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    let story = Story::of(CTR_PRIVILEGED)
        .set("/linux/namespaces/4", serde_json::json!({"type": "user"}))
        .set("/linux/uidMappings", line.clone())
        .set("/linux/gidMappings", line);
    assert!(story.accepted().container.user_namespace);
    story.userns(Userns::Never).refused("userns = \"never\"");
}

#[test]
fn options_of_ctr_arrive_in_the_plan() {
    let story = Story::of(CTR_OPTIONS);
    // As `ctr --with-ns ipc:/proc/self/ns/ipc` has it: the host's.
    let plan = story.accepted();
    assert!(plan.host.host_namespaces.ipc && !plan.container.user_namespace);
    let story = story.set("/linux/namespaces/1/path", "/proc/self/ns/mnt");
    story.refused(
        "linux.namespaces: ipc: /proc/self/ns/mnt is not the namespace of this pod's sandbox",
    );
    let plan = story.set("/linux/namespaces/1", serde_json::json!({"type": "ipc"})).accepted();
    assert!(plan.container.readonly_root);
    assert_eq!(plan.container.devices, paths(["/dev/fuse"]));
    assert_eq!(plan.host.devices[0].mode, 0o020600);
    let propagation = plan.container.root_propagation.expect("one of its own");
    assert_eq!((propagation.kind, propagation.recursive), (PropagationKind::Slave, true));
    assert_eq!(process(&plan).cwd, PathBuf::from("/tmp"));
    let memory = plan.host.resources.memory().expect("memory");
    assert_eq!(memory.limit(), Some(1_000_000));
}

#[test]
fn the_option_userns_decides() {
    for (userns, expected) in [(Userns::Auto, true), (Userns::Spec, false), (Userns::Never, false)]
    {
        assert_eq!(Story::of(CTR).userns(userns).accepted().container.user_namespace, expected);
    }
    for userns in [Userns::Auto, Userns::Spec] {
        assert!(Story::of(RUNC_ROOTLESS).userns(userns).accepted().container.user_namespace);
    }
}

#[test]
fn the_root_file_system_must_exist_unless_it_is_mounted() {
    let mut story = Story::of(CTR).set("/root/path", "nowhere");
    story.refused("root.path");
    story.rootfs_mounts_given = true;
    let plan = story.accepted();
    assert_eq!(plan.host.rootfs, story.bundle.path().join("nowhere"));
    Story::of(CTR).set("/root/path", "hosts").refused("is not a directory");
    Story::of(CTR).set("/root", Value::Null).refused("root: is missing");
}
