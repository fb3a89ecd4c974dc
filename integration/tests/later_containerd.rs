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
use integration::events::{Subscriber, TaskEvent};
use integration::shim::{Bundle, Shim};
use integration::{leaks, wait};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
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

fn shut_down(shim: &Shim<'_>, id: &str) {
    let shutdown = ShutdownRequest { id: id.into(), ..Default::default() };
    shim.tasks.shutdown(shim.context(), &shutdown).expect("shut it down");
}

fn wait_for_the_end(shim: &Shim<'_>) {
    wait::until("the shim is gone", || {
        shim.tasks.connect(shim.context(), &ConnectRequest::default()).is_err().then_some(())
    });
}

/// A Delete that overtakes a Create finds nothing. containerd then sends Shutdown and forgets the
/// container, whatever has become of the Create.
#[test]
fn a_shutdown_ends_the_create_of_its_container() {
    let containerd = containerd();
    let events = Subscriber::new(&containerd);
    let (begun, never) =
        (containerd.directory().join("begun"), containerd.directory().join("never"));
    mkfifo(&never, Mode::S_IRWXU).expect("mkfifo");
    let script = format!(": > {}; read x < {}", begun.display(), never.display());
    let bundle = Bundle::new(&containerd, "overtaken", "sleep 1000").spec(|spec| {
        let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
        spec["hooks"] = json!({ "createRuntime": [hook] });
    });
    let shim = bundle.start_shim().expect("start a shim");
    let address = std::fs::read_to_string(bundle.path.join("address")).expect("its address");
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| shim.create());
        wait::until("it is being created", || begun.exists().then_some(()));
        let other = bundle.connect(&address).expect("connect once more");
        let delete = DeleteRequest { id: "another".into(), ..Default::default() };
        other.tasks.delete(other.context(), &delete).expect_err("there is no such container");
        shut_down(&other, "overtaken");
        let error = creating.join().expect("the one that creates").expect_err("it is cancelled");
        assert!(error.contains("cancelled"), "{error}");
        wait_for_the_end(&other);
    });
    assert_eq!(leaks::left_of(&containerd.traces()), [""; 0]);
    let after = containerd.container("after", ["true"]).create();
    let created = TaskEvent::Create("after".into(), after.pid().cast_unsigned());
    assert_eq!(events.next(), created, "of the other one nothing was published");
}

/// The same, once it is made, or even runs: its events are complete.
#[test]
fn a_shutdown_ends_its_container() {
    let containerd = containerd();
    let events = Subscriber::new(&containerd);
    let id = || "forgotten".to_owned();
    let is_delete = |event: &TaskEvent| matches!(event, TaskEvent::Delete(..));
    for starts in [false, true] {
        let bundle = Bundle::new(&containerd, "forgotten", "sleep 1000");
        let shim = bundle.start_shim().expect("start a shim");
        let pid = shim.create().expect("create it");
        let mut wanted = vec![TaskEvent::Create(id(), pid)];
        if starts {
            start(&shim, "forgotten");
            wanted.push(TaskEvent::Start(id(), pid));
        }
        shut_down(&shim, "forgotten");
        wait_for_the_end(&shim);
        wanted.extend([TaskEvent::Exit(id(), id(), 137), TaskEvent::Delete(id(), 137)]);
        assert_eq!(events.until(is_delete), wanted);
        assert_eq!(leaks::left_of(&containerd.traces()), [""; 0]);
    }
}

/// Even where others live: containerd calls `delete` once its connection for a container is
/// closed, and so it does for a container of a pod whose Create comes too late.
#[test]
fn what_containerd_forgets_of_a_pod_is_ended_alone() {
    let containerd = containerd();
    let bundle = root(&containerd);
    let shim = bundle.start_shim().expect("start a shim");
    let pid = shim.create().expect("create the root container");
    start(&shim, "root");
    let address = std::fs::read_to_string(bundle.path.join("address")).expect("its address");
    let [one, two, three] = ["one", "two", "three"].map(|id| other(&containerd, id, pid));
    for container in [&one, &two, &three] {
        shim.create_with(&request(container)).expect("create a container");
        start(&shim, &container.id);
        std::fs::write(container.path.join("address"), &address).expect("write its address");
    }
    shut_down(&shim, "one");
    assert!(two.delete().status.success());
    assert!(!is_there(&shim, "one") && !is_there(&shim, "two"), "they are forgotten");
    assert!(is_there(&shim, "three") && is_there(&shim, "root"), "others live");
    end(&shim, "three");
    end(&shim, "root");
}

/// It waits for its last events then, and would make what nobody takes away.
#[test]
fn a_shim_that_ends_creates_nothing_more() {
    let containerd = containerd();
    let bundle = Bundle::new(&containerd, "last", "sleep 1000");
    let late = Bundle::new(&containerd, "late", "sleep 1000");
    let shim = bundle.start_shim().expect("start a shim");
    shim.create().expect("create a container");
    containerd.kill();
    shim.delete().expect("delete it");
    let address = std::fs::read_to_string(bundle.path.join("address")).expect("its address");
    let other = bundle.connect(&address).expect("connect once more");
    let mut impatient = other.context();
    impatient.timeout_nano = 300_000_000;
    let shutdown = ShutdownRequest { id: "last".into(), ..Default::default() };
    other.tasks.shutdown(impatient, &shutdown).expect_err("it waits for containerd");
    let error = shim.create_with(&request(&late)).expect_err("it is about to end");
    assert!(error.contains("is ending"), "{error}");
    wait_for_the_end(&shim);
    containerd.launch();
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
