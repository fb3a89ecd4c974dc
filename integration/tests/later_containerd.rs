//! What containerd 2.2 to 2.4 ask of a shim and no containerd of Debian's does yet, by their
//! protocol (core/runtime/v2 of containerd 2.4).

use std::path::Path;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    ConnectRequest, CreateTaskRequest, DeleteRequest, KillRequest, PidsRequest, ShutdownRequest,
    StartRequest, StateRequest, WaitRequest,
};
use integration::cgroup::Frozen;
use integration::containerd::{Containerd, Version};
use integration::shim::{Bundle, Shim};
use integration::wait;
use serde_json::json;

fn containerd() -> Containerd {
    Containerd::start(Version::V2_1)
}

/// Makes a bundle for a container that joins the pod of a root container.
fn other(containerd: &Containerd, id: &str, root: u32) -> Bundle {
    Bundle::new(containerd, id, "sleep 1000").spec(|spec| {
        let shared = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];
        let shared = shared
            .map(|(kind, file)| json!({ "type": kind, "path": format!("/proc/{root}/ns/{file}") }));
        let own = [json!({ "type": "mount" }), json!({ "type": "pid" })];
        spec["linux"]["namespaces"] = [&shared[..], &own[..]].concat().into();
    })
}

/// Returns the bundle of a pod's root container, as CRI writes it.
fn root(containerd: &Containerd) -> Bundle {
    Bundle::new(containerd, "root", "").spec(|spec| {
        spec["process"]["args"] = json!(["/pause"]);
        spec["annotations"] = json!({ "io.kubernetes.cri.container-type": "sandbox" });
    })
}

fn request(bundle: &Bundle) -> CreateTaskRequest {
    CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: bundle.path.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

fn start(shim: &Shim<'_>, id: &str) {
    let request = StartRequest { id: id.into(), ..Default::default() };
    shim.tasks.start(shim.context(), &request).expect("start it");
}

/// What containerd does to a task from 2.3 on: Delete, then Shutdown, for each.
fn end(shim: &Shim<'_>, id: &str) {
    let kill = KillRequest { id: id.into(), signal: 9, ..Default::default() };
    shim.tasks.kill(shim.context(), &kill).expect("kill it");
    let exited = WaitRequest { id: id.into(), ..Default::default() };
    shim.tasks.wait(shim.context(), &exited).expect("wait for it");
    let delete = DeleteRequest { id: id.into(), ..Default::default() };
    shim.tasks.delete(shim.context(), &delete).expect("delete it");
    let shutdown = ShutdownRequest { id: id.into(), ..Default::default() };
    shim.tasks.shutdown(shim.context(), &shutdown).expect("shut it down");
}

fn is_there(shim: &Shim<'_>, id: &str) -> bool {
    let state = StateRequest { id: id.into(), ..Default::default() };
    shim.tasks.state(shim.context(), &state).is_ok()
}

/// Task.Shutdown comes after every task, with task API version 3 too, and means the shim only
/// once no other is left.
#[test]
fn a_shutdown_after_every_task_ends_the_shim_with_the_last() {
    let containerd = containerd();
    let bundle = root(&containerd);
    let shim = bundle.start_shim().expect("start a shim");
    let pid = shim.create().expect("create the root container");
    start(&shim, "root");
    let containers = ["one", "two"].map(|id| other(&containerd, id, pid));
    for container in &containers {
        shim.create_with(&request(container)).expect("create a container");
        start(&shim, &container.id);
    }
    end(&shim, "one");
    assert!(is_there(&shim, "two") && is_there(&shim, "root"), "others live");
    // A pod's container comes again, as after a restart.
    let again = other(&containerd, "again", pid);
    shim.create_with(&request(&again)).expect("create one after a Shutdown");
    start(&shim, "again");
    end(&shim, "two");
    end(&shim, "again");
    assert!(is_there(&shim, "root"), "the pod outlives its containers");
    end(&shim, "root");
    let connect = ConnectRequest { id: "root".into(), ..Default::default() };
    wait::until("the shim is gone", || {
        shim.tasks.connect(shim.context(), &connect).is_err().then_some(())
    });
}

/// containerd 2.4 gives each shim five seconds in all when it starts
/// (`io.containerd.timeout.shim.load`), for Connect and Pids. Otherwise it kills the pod.
#[test]
fn a_shim_answers_a_containerd_that_starts_while_it_creates() {
    let containerd = containerd();
    let bundle = root(&containerd);
    let shim = bundle.start_shim().expect("start a shim");
    let pid = shim.create().expect("create the root container");
    start(&shim, "root");
    let one = other(&containerd, "one", pid);
    shim.create_with(&request(&one)).expect("create a container");
    let two = other(&containerd, "two", pid);
    let address = std::fs::read_to_string(bundle.path.join("address")).expect("its address");
    std::thread::scope(|scope| {
        let frozen = Frozen::new(containerd.slot());
        let creating = scope.spawn(|| shim.create_with(&request(&two)));
        let new = bundle.connect(&address).expect("connect as a containerd that starts");
        wait::until("the other one is being created", || {
            let state = StateRequest { id: "two".into(), ..Default::default() };
            let error = new.tasks.state(new.context(), &state).err()?.to_string();
            error.contains("being").then_some(())
        });
        for id in ["root", "one"] {
            let began = Instant::now();
            let connect = ConnectRequest { id: id.into(), ..Default::default() };
            let connected = new.tasks.connect(new.context(), &connect).expect("connect");
            assert!(connected.task_pid > 0 && connected.shim_pid > 0);
            let pids = PidsRequest { id: id.into(), ..Default::default() };
            let pids = new.tasks.pids(new.context(), &pids).expect("ask for its processes");
            assert!(!pids.processes.is_empty(), "{id} would be deleted as leaked");
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        }
        drop(frozen);
        creating.join().expect("the one that creates").expect("create it");
    });
    for id in ["two", "one", "root"] {
        end(&shim, id);
    }
}

/// `hostNetwork` with `hostUsers: false`, for which containerd 2.4 binds the host's /sys, since no
/// sysfs of the host's network can be mounted from a user namespace.
#[test]
fn a_pod_of_the_host_s_network_has_its_own_users_and_the_host_s_sys() {
    let containerd = containerd();
    let spec = |spec: &mut serde_json::Value| {
        let linux = &mut spec["linux"];
        let kinds = ["pid", "ipc", "mount", "user"];
        linux["namespaces"] = kinds.map(|kind| json!({ "type": kind })).to_vec().into();
        let ids = json!([{ "containerID": 0, "hostID": 700_000_000, "size": 65536 }]);
        (linux["uidMappings"], linux["gidMappings"]) = (ids.clone(), ids);
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| mount["destination"] != "/sys");
        mounts.push(json!({
            "destination": "/sys", "type": "bind", "source": "/sys",
            "options": ["rbind", "rro", "nosuid", "nodev", "noexec"],
        }));
    };
    let container = containerd.shell("host-network", "sleep 1000").spec(spec).start();
    let ask = |id: &str, script: &str| container.exec_shell(id, script);
    let network = std::fs::read_link("/proc/self/ns/net").expect("this network namespace");
    let network = format!("{}\n", network.display());
    assert_eq!(ask("network", "readlink /proc/self/ns/net"), (0, network));
    let map = ask("users", "cat /proc/self/uid_map").1;
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "700000000", "65536"]);
    let interfaces: usize = std::fs::read_dir("/sys/class/net").expect("list interfaces").count();
    assert_eq!(ask("sys", "ls /sys/class/net | wc -l"), (0, format!("{interfaces}\n")));
    let attempts = [
        "echo 1 > /sys/class/net/lo/mtu",
        "echo never > /sys/kernel/mm/transparent_hugepage/enabled",
        "mkdir /sys/fs/cgroup/palisade-was-here",
        "umount /sys",
        "mount -o remount,rw /sys",
        "ip link set lo mtu 1400",
    ];
    for (index, attempt) in attempts.iter().enumerate() {
        assert_ne!(ask(&format!("attempt-{index}"), attempt).0, 0, "{attempt}");
    }
    assert!(!Path::new("/sys/fs/cgroup/palisade-was-here").exists());
}

/// `io_type = "streaming"` of containerd 2.
#[test]
fn streaming_addresses_are_refused_by_name() {
    let containerd = containerd();
    let bundle = Bundle::new(&containerd, "streams", "true");
    let shim = bundle.start_shim().expect("start a shim");
    for stream in ["stdin", "stdout", "stderr"] {
        let uri = format!("ttrpc+unix:///run/s.sock?streaming_id=streams-{stream}");
        let mut request = shim.request();
        match stream {
            "stdin" => request.stdin = uri.clone(),
            "stdout" => request.stdout = uri.clone(),
            _ => request.stderr = uri.clone(),
        }
        let error = shim.create_with(&request).expect_err("there is no such service");
        assert!(error.contains(&uri) && error.contains("io_type"), "{error}");
    }
    shim.shutdown();
}
