//! What cannot be saved is refused by name, before anything is frozen.

use std::fs;

use containerd_client::tonic::Code;
use integration::checkpoint::{Options, allowed, criu};
use integration::container::{Container, NewContainer, options};
use integration::containerd::{Containerd, Version};
use integration::{spec, wait};
use serde_json::json;

/// Prepares a container that runs a line of shell and then sleeps.
fn sleeper<'a>(containerd: &'a Containerd, id: &str, script: &str) -> NewContainer<'a> {
    let script = format!("{script}\n: > /run/ready; while :; do sleep 1000; done");
    containerd.shell(id, &script).options(options(&allowed(""), ""))
}

/// Waits until the line of shell is done.
fn ready(container: &Container<'_>) {
    let path = format!("/proc/{}/root/run/ready", container.pid());
    wait::until("the container is ready", || fs::exists(&path).ok()?.then_some(()));
}

/// Checks that a Checkpoint is refused with all these words, and harms nothing.
fn refused(container: &Container<'_>, words: &[&str]) -> Code {
    refused_with(container, &Options::default(), words)
}

fn refused_with(container: &Container<'_>, wanted: &Options, words: &[&str]) -> Code {
    let folder = tempfile::tempdir().expect("a folder");
    let error = container.checkpoint_to(&folder.path().join("image"), wanted);
    let error = error.expect_err("it cannot be saved");
    for word in words {
        assert!(error.message().contains(word), "{word:?}: {error}");
    }
    let left = fs::read_dir(folder.path().join("image")).into_iter().flatten().count();
    assert_eq!(left, 0, "something is left in the folder");
    assert_eq!(container.exec_shell("look", "echo unharmed").1, "unharmed\n");
    error.code()
}

#[test]
fn a_node_allows_checkpoints_and_a_pod_may_forbid_them() {
    let containerd = Containerd::start(Version::V2_1);
    let criu = format!("criu = {:?}", criu());
    let container = containerd.container("plain", ["sleep", "1000"]).options(options(&criu, ""));
    let code = refused(&container.start(), &["checkpoint = true", "root of the host"]);
    assert_eq!(code, Code::FailedPrecondition);
    let container = sleeper(&containerd, "forbids", "").spec(|spec| {
        spec["annotations"] = json!({ "dev.palisade.checkpoint": "false" });
    });
    refused(&container.start(), &["checkpoint = true"]);
    let container = containerd.container("asks", ["true"]).spec(|spec| {
        spec["annotations"] = json!({ "dev.palisade.checkpoint": "true" });
    });
    let error = container.try_create().expect_err("a pod cannot allow it");
    assert!(error.message().contains("dev.palisade.checkpoint"), "{error}");
}

#[test]
fn a_node_without_criu_says_what_to_install() {
    let containerd = Containerd::start(Version::V2_1);
    let with = |id: &str, criu: &str| {
        let text = format!("checkpoint = true\ncriu = {criu:?}");
        containerd.container(id, ["sleep", "1000"]).options(options(&text, "")).start()
    };
    refused(&with("missing", "/nowhere/criu"), &["/nowhere/criu", "install the package criu"]);
    // This executable says nothing of what criu says, and ends.
    refused(&with("another", "/bin/true"), &["criu ended before it answered"]);
}

#[test]
fn options_that_are_not_served_are_refused_by_name() {
    let containerd = Containerd::start(Version::V2_1);
    let container = sleeper(&containerd, "sleeper", "").start();
    let empty = Options { empty_namespaces: vec!["network".into()], ..Options::default() };
    let code = refused_with(&container, &empty, &["empty_namespaces"]);
    assert_eq!(code, Code::InvalidArgument);
    let mode = Options { cgroups_mode: "strict".into(), ..Options::default() };
    refused_with(&container, &mode, &["cgroups_mode"]);
}

#[test]
fn what_does_not_run_is_not_saved() {
    let containerd = Containerd::start(Version::V2_1);
    let folder = containerd.directory().join("image");
    let container = sleeper(&containerd, "waiting", "").create();
    let error = container.checkpoint_to(&folder, &Options::default());
    let error = error.expect_err("it is at its gate");
    assert!(error.message().contains("not running"), "{error}");
    container.start().expect("start it");
    ready(&container);
    container.kill(9).expect("kill it");
    container.wait();
    let error = container.checkpoint_to(&folder, &Options::default());
    error.expect_err("it has ended");
    assert!(!folder.exists(), "a folder was made for nothing");
}

#[test]
fn pods_without_a_user_namespace_and_containers_that_share_pids_are_refused() {
    let containerd = Containerd::start(Version::V2_1);
    let text = allowed("userns = 'never'");
    let container = sleeper(&containerd, "rooted", "").options(options(&text, "")).start();
    refused(&container, &["no user namespace"]);
    let container = sleeper(&containerd, "first", "").start();
    let shares = sleeper(&containerd, "second", "").spec(|spec| {
        spec::join_sandbox(spec, "first", container.pid(), &["network"]);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    refused(&shares.start(), &["linux.namespaces: pid"]);
}

#[test]
fn mounts_that_the_container_made_are_refused_by_name() {
    let containerd = Containerd::start(Version::V2_1);
    let text = allowed("baseline = 'off'");
    let container =
        sleeper(&containerd, "mounter", "mount -t tmpfs none /mnt || mount -t tmpfs none /home");
    let container = container.spec(|spec| spec::add_all_capabilities(&mut spec["process"]));
    let container = container.options(options(&text, "")).start();
    ready(&container);
    refused(&container, &["has made the mount", "tmpfs"]);
    container.exec_shell("off", "umount /mnt || umount /home");
}

#[test]
fn namespaces_inside_a_container_are_refused_by_name() {
    let containerd = Containerd::start(Version::V2_1);
    let text = allowed("baseline = 'off'");
    for (kind, flag) in [("user namespace", "-U"), ("network namespace", "-n")] {
        let script = format!(
            "unshare {flag} sh -c ': > /tmp/in; sleep 1234; true' &\n\
             while ! [ -e /tmp/in ]; do sleep 0.01; done"
        );
        let id = format!("nested{flag}");
        let container = sleeper(&containerd, &id, &script);
        let container = container.spec(|spec| spec::add_all_capabilities(&mut spec["process"]));
        let container = container.options(options(&text, "")).start();
        ready(&container);
        refused(&container, &[kind, "of its own"]);
    }
}

#[test]
fn mount_points_that_criu_has_no_form_for_are_refused_by_name() {
    let containerd = Containerd::start(Version::V2_1);
    let container = sleeper(&containerd, "odd", "").bind("/etc", "/a:b", &["bind", "ro"]).start();
    ready(&container);
    refused(&container, &["\"/a:b\"", "colon"]);
}

#[test]
fn a_profile_without_what_a_restore_needs_is_refused_by_name() {
    let containerd = Containerd::start(Version::V2_1);
    let container = sleeper(&containerd, "filtered", "").spec(|spec| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["munmap"], "action": "SCMP_ACT_ERRNO" }],
        });
    });
    let container = container.start();
    ready(&container);
    refused(&container, &["linux.seccomp", "munmap"]);
}

/// criu would wait for it for ever, and hold the container meanwhile.
#[test]
fn a_process_that_a_signal_has_stopped_is_refused_by_name() {
    let containerd = Containerd::start(Version::V2_1);
    let script = "sleep 1234 & kill -STOP $!; echo $! > /tmp/stopped";
    let container = sleeper(&containerd, "stopped", script).start();
    ready(&container);
    refused(&container, &["was stopped by a signal (send it SIGCONT)"]);
    container.exec_shell("goes-on", "kill -CONT $(cat /tmp/stopped)");
    crate::checkpoint_of(&container);
}
