//! The differences between Palisade's clients that the shared stories do not
//! cover: how each containerd passes options, and how nerdctl makes networks by
//! hooks. (nerdctl itself is in no Debian.)

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use integration::config::cni_conflist;
use integration::container::pidfd;
use integration::containerd::{Containerd, Version};
use integration::cri::{pod_security, security};
use integration::host::HostProcess;
use integration::{host, leaks, on_each_containerd, spec, wait};
use k8s_cri::v1::{IdMapping, NamespaceMode, PodSandboxConfig, UserNamespace};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};

on_each_containerd!(starting
    pods_take_options_from_a_file,
    pods_take_options_from_containerd_s_configuration,
);

on_each_containerd!(
    ctr_takes_options_from_a_file,
    a_hook_makes_the_network,
    a_hook_that_fails_is_quoted,
    a_create_that_its_client_cancels_is_rolled_back,
    a_cancelled_create_in_a_pod_is_rolled_back,
    a_create_that_a_delete_overtakes_leaves_nothing,
    a_create_that_its_shim_s_sigterm_overtakes_is_rolled_back,
    a_namespace_s_directory_may_go_at_any_time,
);

/// Returns the first line of its user namespace's map.
const MAP: &str = "head -n 1 /proc/self/uid_map";

fn is_the_host_s(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[track_caller]
fn pod_is_refused(containerd: &Containerd, words: &str) {
    let refused = containerd.try_pod("refused", |_| ()).expect_err("there is no such option");
    assert!(refused.message().contains(words), "{words:?} is missing in: {}", refused.message());
}

/// `ConfigPath` in the runtime's table `options`.
fn pods_take_options_from_a_file(version: Version) {
    let containerd = Containerd::start_with_options(version, |directory| {
        format!("ConfigPath = \"{}/palisade.toml\"", directory.display())
    });
    let file = containerd.directory().join("palisade.toml");
    pod_is_refused(&containerd, "palisade.toml");

    fs::write(&file, "colour = \"red\"\n").expect("write the options");
    pod_is_refused(&containerd, "colour");

    fs::write(&file, "userns = \"never\"\n").expect("write the options");
    let pod = containerd.pod("configured");
    let map = pod.shell("main", "sleep 1000").ask(MAP);
    assert!(is_the_host_s(&map), "{map}");
}

/// Our keys themselves in that table, which containerd 1.6 does not pass on.
fn pods_take_options_from_containerd_s_configuration(version: Version) {
    let containerd = Containerd::start_with_options(version, |_| "userns = \"never\"".to_owned());
    let pod = containerd.pod("configured");
    let map = pod.shell("main", "sleep 1000").ask(MAP);
    assert_eq!(is_the_host_s(&map), version != Version::V1_6, "{map}");
    drop(pod);
    drop(containerd);
    let containerd = Containerd::start_with_options(version, |_| "colour = \"red\"".to_owned());
    match version {
        Version::V1_6 => drop(containerd.pod("configured")),
        _ => pod_is_refused(&containerd, "colour"),
    }
}

/// Requests `hostUsers: false`.
fn with_own_users(config: &mut PodSandboxConfig) {
    let ids = vec![IdMapping { host_id: 700_000_000, container_id: 0, length: 65536 }];
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    pod_security(config).namespace_options.get_or_insert_default().userns_options = Some(users);
}

/// This containerd asks only runc's shim what it can do. By runc's name and our path it asks
/// ours, and sends runc's options.
#[test]
fn by_runc_s_name_containerd_learns_of_user_namespaces() {
    let keys = "runtime_type = \"io.containerd.runc.v2\"\n\
        runtime_path = \"BIN/containerd-shim-palisade-v1\"";
    let containerd = Containerd::start_with_handler(Version::V2_1, "users", keys);
    containerd.prepare_cri();
    assert!(containerd.handler_has_user_namespaces("users"));
    assert!(!containerd.handler_has_user_namespaces("palisade"));

    let pod = containerd.try_pod_by("users", "users", with_own_users).expect("run a pod");
    let map = pod.shell("main", "sleep 1000").ask(MAP);
    assert!(map.split_whitespace().eq(["0", "700000000", "65536"]), "{map}");
}

/// Runc's options are read there, and refused by name where Palisade cannot follow.
#[test]
fn by_runc_s_name_runc_s_options_are_refused_by_name() {
    let keys = "runtime_type = \"io.containerd.runc.v2\"\n\
        runtime_path = \"BIN/containerd-shim-palisade-v1\"\n\
        options = { BinaryName = \"/usr/bin/crun\" }";
    let containerd = Containerd::start_with_handler(Version::V2_1, "users", keys);
    let refused = containerd.try_pod_by("users", "refused", |_| ()).expect_err("no crun here");
    assert!(refused.message().contains("BinaryName"), "{}", refused.message());
}

/// containerd 2.1 reads the options of such a pod's container as runc's, which docs/options.md
/// says. 1.7 does not.
#[test]
fn options_keep_containerd_2_1_from_starting_containers_with_their_own_users() {
    let containerd = Containerd::start_with_options(Version::V2_1, |_| "debug = true".to_owned());
    let pod = containerd.pod_with("users", with_own_users);
    let started = pod.create("main", 0, "sleep 1000", |config| {
        let users = pod_security(&mut pod.config.clone()).namespace_options.clone();
        security(config).namespace_options = users;
    });
    let refused = started.and_then(|container| container.start());
    let refused = refused.expect_err("containerd refuses");
    assert!(refused.message().contains("unmarshal"), "{}", refused.message());
}

fn ctr_takes_options_from_a_file(containerd: Containerd) {
    let file = containerd.directory().join("palisade.toml");
    let run = |id: &str, content: &str| {
        fs::write(&file, content).expect("write the options");
        let run = containerd.run(id).flag(["--runtime-config-path", &file.to_string_lossy()]);
        run.output(["sh", "-c", MAP])
    };
    let map = run("configured", "userns = \"never\"\n").succeeded().stdout;
    assert!(is_the_host_s(&map), "{map}");

    let refused = run("refused", "colour = \"red\"\n");
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("colour"), "{}", refused.stderr);
}

/// Makes a program for hooks, which saves the container's state and calls the
/// bridge plugin of CNI, as `nerdctl internal oci-hook` does.
fn network_hook(containerd: &Containerd) -> PathBuf {
    let list: Value = serde_json::from_str(&cni_conflist(containerd.slot())).expect("JSON");
    let mut network = list["plugins"][0].clone();
    for key in ["name", "cniVersion"] {
        network[key] = list[key].clone();
    }
    let directory = containerd.directory();
    fs::write(directory.join("network.json"), network.to_string()).expect("write the network");
    let script = format!(
        "#!/bin/sh\nset -eu\ncd {}\n\
         cat > state-$1\n\
         pid=$(sed -n 's/.*\"pid\":\\([0-9]*\\).*/\\1/p' state-$1)\n\
         export CNI_COMMAND=$COMMAND CNI_CONTAINERID=networked CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni\n\
         export CNI_NETNS=${{pid:+/proc/$pid/ns/net}}\n\
         exec /usr/lib/cni/bridge < network.json\n",
        directory.display()
    );
    program(directory.join("bin/network-hook"), &script)
}

fn program(path: PathBuf, script: &str) -> PathBuf {
    fs::write(&path, script).expect("write a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    path
}

fn hook(path: &std::path::Path, moment: &str, command: &str) -> Value {
    let env = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(), format!("COMMAND={command}")];
    json!([{ "path": path, "args": ["network-hook", moment], "env": env }])
}

/// The network namespace is the sandbox's own. The hook finds it by the process
/// in the container's state. The address exists before the program starts.
fn a_hook_makes_the_network(containerd: Containerd) {
    let path = network_hook(&containerd);
    let container = containerd.shell("networked", "ip -4 addr show eth0; sleep 1000").spec(|s| {
        s["annotations"] = json!({ "nerdctl/networks": "[\"bridge\"]" });
        s["hooks"]["createRuntime"] = hook(&path, "createRuntime", "ADD");
        s["hooks"]["poststop"] = hook(&path, "poststop", "DEL");
    });
    let container = container.start();
    let subnet = containerd.slot().subnet();
    container.stdio().wait_for_output(&format!("inet {subnet}."));
    let state = |moment: &str| -> Value {
        let file = containerd.directory().join(format!("state-{moment}"));
        let text = fs::read_to_string(file).expect("the hook has noted the state");
        serde_json::from_str(&text).expect("the state is JSON")
    };
    let created = state("createRuntime");
    assert_eq!((&created["id"], &created["status"]), (&json!("networked"), &json!("created")));
    assert_eq!(created["pid"], container.pid());
    assert_eq!(created["annotations"]["nerdctl/networks"], "[\"bridge\"]");
    let config = PathBuf::from(created["bundle"].as_str().expect("a path")).join("config.json");
    assert!(config.is_file(), "{} is no bundle", config.display());

    let (_, routes) = container.exec_shell("routes", "ip route");
    assert!(routes.contains(&format!("default via {subnet}.1")), "{routes}");

    container.kill(9).expect("end it");
    container.wait();
    container.delete_task().expect("delete it");
    assert_eq!(state("poststop")["status"], "stopped");
    let leases = containerd.directory().join("ipam").join(containerd.namespace());
    wait::until("its address is free again", || {
        let entries = fs::read_dir(&leases).expect("the addresses").flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        (!names.any(|name| name.starts_with(&subnet))).then_some(())
    });
}

fn a_hook_that_fails_is_quoted(containerd: Containerd) {
    let script = "#!/bin/sh\necho no address is left >&2\nexit 3\n";
    let path = program(containerd.directory().join("bin/failing-hook"), script);
    let (poststop, tidied) = tidying_hook(&containerd);
    let container = containerd.shell("unlucky", "true").spec(|s| {
        s["hooks"]["createRuntime"] = json!([{ "path": path }]);
        s["hooks"]["poststop"] = poststop;
    });
    let refused = container.try_create().expect_err("the hook fails");
    for words in ["failing-hook", "exit status 3", "no address is left"] {
        assert!(refused.message().contains(words), "{words:?} is missing in {}", refused.message());
    }
    assert!(tidied.is_file(), "the hooks have prepared something, and nothing has tidied it up");
}

/// Returns a poststop hook, and the file that it makes.
fn tidying_hook(containerd: &Containerd) -> (Value, PathBuf) {
    let tidied = containerd.directory().join("tidied");
    let script = format!("#!/bin/sh\n: > {}\n", tidied.display());
    let path = program(containerd.directory().join("bin/tidying-hook"), &script);
    (json!([{ "path": path }]), tidied)
}

/// Returns hooks of which the first never ends. It makes the file when it
/// starts.
fn endless_hooks(containerd: &Containerd) -> (Value, PathBuf) {
    let (begun, never) =
        (containerd.directory().join("begun"), containerd.directory().join("never"));
    mkfifo(&never, Mode::S_IRWXU).expect("mkfifo");
    let script = format!("#!/bin/sh\n: > {}\nread x < {}\n", begun.display(), never.display());
    let path = program(containerd.directory().join("bin/endless-hook"), &script);
    (json!({ "createRuntime": [{ "path": path }], "poststop": tidying_hook(containerd).0 }), begun)
}

/// As Ctrl-C in `ctr run` does.
fn a_create_that_its_client_cancels_is_rolled_back(containerd: Containerd) {
    let (hooks, begun) = endless_hooks(&containerd);
    let container = containerd.shell("abandoned", "true").spec(|s| s["hooks"] = hooks);
    let abandoned = container.cancel_create(&begun);
    assert_eq!(leaks::left_of(&containerd.traces()), [""; 0]);
    assert!(containerd.directory().join("tidied").is_file());
    drop(abandoned);
    let again = containerd.shell("abandoned", "echo again").start();
    assert_eq!(again.finish(), (0, "again\n".to_owned()));
}

/// As when the node shuts down.
fn a_create_that_its_shim_s_sigterm_overtakes_is_rolled_back(containerd: Containerd) {
    let (hooks, begun) = endless_hooks(&containerd);
    let container = containerd.shell("overtaken", "true").spec(|s| s["hooks"] = hooks);
    thread::scope(|scope| {
        let creating = scope.spawn(|| container.try_create().map(drop));
        wait::until("its hook runs", || begun.exists().then_some(()));
        let all = shims(&containerd);
        let [shim] = &all[..] else { panic!("one shim: {all:?}") };
        kill(Pid::from_raw(*shim), Signal::SIGTERM).expect("end the shim");
        creating.join().expect("the one that creates").expect_err("it is cancelled");
    });
    assert_eq!(leaks::left_of(&containerd.traces()), [""; 0]);
    assert!(containerd.directory().join("tidied").is_file());
}

/// Returns the shims of a containerd.
fn shims(containerd: &Containerd) -> Vec<i32> {
    let address = containerd.address().display().to_string();
    let is_shim = |process: &HostProcess| {
        let program = process.args.first().map(String::as_str).unwrap_or_default();
        program.ends_with("containerd-shim-palisade-v1") && process.args.contains(&address)
    };
    host::processes().into_iter().filter(is_shim).map(|process| process.pid).collect()
}

fn a_cancelled_create_in_a_pod_is_rolled_back(containerd: Containerd) {
    let root = containerd.container("root", ["sleep", "1000"]).start();
    let beside = |spec: &mut Value| {
        spec::join_sandbox(spec, "root", root.pid(), &["network"]);
    };
    let (hooks, begun) = endless_hooks(&containerd);
    let container = containerd.shell("abandoned", "true").spec(beside);
    let abandoned = container.spec(|s| s["hooks"] = hooks).cancel_create(&begun);
    wait::until("it is undone", || containerd.directory().join("tidied").is_file().then_some(()));
    drop(abandoned);
    assert_eq!(root.exec_shell("look", "echo alive"), (0, "alive\n".to_owned()));
    let again = containerd.shell("abandoned", "echo again").spec(beside).create();
    assert_eq!(again.shim(), root.shim());
    again.start().expect("start it");
    assert_eq!(again.finish(), (0, "again\n".to_owned()));
}

/// containerd passes a Delete on as soon as it has started the shim, and then has the shim shut
/// down. The harness looks for what is left.
fn a_create_that_a_delete_overtakes_leaves_nothing(containerd: Containerd) {
    for round in 0..20 {
        let container = containerd.container(&format!("overtaken-{round}"), ["sleep", "1000"]);
        let Err(refused) = container.create_amid_deletes().map(drop) else { continue };
        assert!(!refused.message().contains("os error"), "{}", refused.message());
    }
    let root = containerd.container("root", ["sleep", "1000"]).start();
    for round in 0..20 {
        let container = containerd.container(&format!("beside-{round}"), ["sleep", "1000"]);
        let container = container.spec(|spec| {
            spec::join_sandbox(spec, "root", root.pid(), &["network"]);
        });
        drop(container.create_amid_deletes());
    }
    assert_eq!(root.exec_shell("look", "echo alive"), (0, "alive\n".to_owned()));
    let state = PathBuf::from("/run/palisade").join(containerd.namespace()).join("root/containers");
    wait::until("only the first container is there", || {
        let entries = fs::read_dir(&state).expect("its state").flatten();
        (entries.count() == 1).then_some(())
    });
}

/// containerd kills `start` then, and does not know of the shim that it has started.
#[test]
fn clients_that_give_up_leave_no_shim() {
    let containerd = Containerd::start(Version::V2_1);
    let lives = containerd.container("lives", ["sleep", "1000"]).start();
    let shim = pidfd(lives.shim());
    for round in 0..40 {
        let container = containerd.container(&format!("given-up-{round}"), ["sleep", "1000"]);
        drop(container.give_up_create(Duration::from_millis(round)));
    }
    // Not before it has waited for a client in vain.
    wait::until("no other shim is left", || (shims(&containerd).len() == 1).then_some(()));
    assert!(!wait::readable(&shim, Duration::ZERO), "a shim with a container has ended");
    assert_eq!(lives.exec_shell("look", "echo alive"), (0, "alive\n".to_owned()));
}

/// As by the last of other sandboxes, which takes it along.
fn a_namespace_s_directory_may_go_at_any_time(containerd: Containerd) {
    let directory = PathBuf::from("/run/palisade").join(containerd.namespace());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = fs::remove_dir(&directory);
            }
        });
        for round in 0..10 {
            let container = containerd.container(&format!("comes-{round}"), ["true"]);
            let container = container.try_create();
            if let Err(error) = container.map(drop) {
                done.store(true, Ordering::Relaxed);
                panic!("{}", error.message());
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
