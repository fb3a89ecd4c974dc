//! The processes that hold a pod together are killed. The kernel ends the
//! others, containerd learns of it, and nothing is left, which the end of each
//! test checks. And a shim that holds nothing ends by itself.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use containerd_client::tonic::{Code, Status};
use containerd_shim_protos::api::ConnectRequest;
use integration::container::pidfd;
use integration::containerd::{Containerd, Version};
use integration::events::{Subscriber, TaskEvent};
use integration::shim::{Bundle, Shim};
use integration::stdio::Streams;
use integration::{host, on_each_containerd, sandbox, spec, wait};
use k8s_cri::v1::ContainerState;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

on_each_containerd!(
    a_killed_shim_ends_its_container,
    a_killed_boot_ends_every_process,
    a_boot_that_dies_while_a_container_is_made_leaves_no_process,
    requests_that_meet_an_end_name_it,
    a_killed_init_ends_the_container,
    a_killed_shim_ends_its_pod,
    a_killed_boot_ends_its_pod,
    a_killed_container_leaves_the_others_alone,
    the_sandbox_cannot_outlive_its_boot,
    a_shim_that_gets_sigterm_publishes_its_container_s_exit,
    boot_has_no_child_but_its_containers_processes,
);

fn kill_now(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill from the host");
}

#[track_caller]
fn ends(pidfd: &OwnedFd, what: &str) {
    assert!(wait::readable(pidfd, wait::deadline()), "{what} lives on");
}

/// The contract: exit 137 is published, the task is gone, and the container's
/// record stays and can be removed.
fn a_killed_shim_ends_its_container(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let container = containerd.container("orphan", ["sleep", "1000"]).start();
    let (first, shim) = (container.pidfd(), container.shim());
    kill_now(shim);
    ends(&first, "the container");
    let exit = TaskEvent::Exit("orphan".into(), "orphan".into(), 137);
    events.until(|event| *event == exit);
    wait::until("the task is gone", || container.state().is_err().then_some(()));
}

fn a_killed_boot_ends_every_process(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let container = containerd.container("headless", ["sleep", "1000"]).start();
    let exec = container.exec("extra", spec::process(&["sleep", "1000"]), Streams::Null);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    let processes = [container.pidfd(), pidfd(exec.pid())];

    kill_now(sandbox::boot_of(container.shim()).pid);
    processes.iter().for_each(|process| ends(process, "a process of the sandbox"));
    assert_eq!((exec.wait().code, container.wait().code), (137, 137));
    let exit = |id: &str| TaskEvent::Exit("headless".into(), id.into(), 137);
    let seen = events.until(|event| *event == exit("headless"));
    assert!(seen.contains(&exit("extra")), "{seen:?}");
    assert_eq!(container.delete_task().expect("delete it"), 137);
}

/// Whatever the new process waits for then: boot answers what it asks of the views. The harness
/// looks for what is left.
fn a_boot_that_dies_while_a_container_is_made_leaves_no_process(containerd: Containerd) {
    for round in 0..40 {
        let (id, later) = (format!("first-{round}"), format!("later-{round}"));
        let first = containerd.container(&id, ["sleep", "1000"]).start();
        let boot = sandbox::boot_of(first.shim()).pid;
        let later = containerd.container(&later, ["true"]).spec(|spec| {
            spec::join_sandbox(spec, &id, first.pid(), &["network"]);
        });
        thread::scope(|scope| {
            let made = scope.spawn(|| later.try_create().map(drop));
            let children = format!("/proc/{boot}/task/{boot}/children");
            let count = || fs::read_to_string(&children).map_or(0, |all| all.split(' ').count());
            let before = count();
            let born = Instant::now();
            while count() == before && born.elapsed() < Duration::from_secs(1) {}
            // It is on its way; in each round for a little longer.
            let born = Instant::now();
            while born.elapsed() < Duration::from_micros(25 * round) {}
            kill_now(boot);
            if let Err(refused) = made.join().expect("the thread") {
                names_the_end(&refused);
            }
        });
        assert_eq!(first.wait().code, 137);
    }
}

/// Asserts that an error is about the end of a container or of its pod, and not about what the
/// kernel said to one step or other.
#[track_caller]
fn names_the_end(refused: &Status) {
    let codes = [Code::FailedPrecondition, Code::NotFound];
    assert!(codes.contains(&refused.code()), "{:?}: {}", refused.code(), refused.message());
    assert!(!refused.message().contains("os error"), "{}", refused.message());
}

/// The requests of a client that does not know yet, at any moment of the end.
fn requests_that_meet_an_end_name_it(containerd: Containerd) {
    for round in 0..30 {
        let id = format!("ends-{round}");
        let container = containerd.container(&id, ["sleep", "1000"]).start();
        let boot = sandbox::boot_of(container.shim()).pid;
        let killed = if round % 2 == 0 { boot } else { container.pid() };
        thread::scope(|scope| {
            let execs = scope.spawn(|| {
                (0..100)
                    .map_while(|n| {
                        let exec = format!("{id}-{n}");
                        let exec = container.exec(&exec, spec::process(&["true"]), Streams::Null);
                        let started = exec.and_then(|exec| exec.start());
                        Some(started.err())
                    })
                    .flatten()
                    .take(5)
                    .collect::<Vec<_>>()
            });
            let updates = scope.spawn(|| {
                let shares = serde_json::json!({ "cpu": { "shares": 512 } });
                (0..1000)
                    .filter_map(|_| container.update(&shares).err())
                    .take(5)
                    .collect::<Vec<_>>()
            });
            let pauses = scope.spawn(|| {
                let both = || container.pause().and_then(|()| container.resume());
                (0..1000).filter_map(|_| both().err()).take(5).collect::<Vec<_>>()
            });
            thread::sleep(Duration::from_micros(5000 + 300 * round));
            kill_now(killed);
            for refused in
                [execs, updates, pauses].into_iter().flat_map(|them| them.join().expect("a thread"))
            {
                names_the_end(&refused);
            }
        });
        assert_eq!(container.wait().code, 137);
    }
}

fn a_killed_init_ends_the_container(containerd: Containerd) {
    let container = containerd.shell("beheaded", "sleep 1000 & echo up; wait").start();
    container.stdio().wait_for_output("up");
    let child = wait::until("its child runs", || {
        host::children(container.pid()).first().map(|child| pidfd(child.pid))
    });
    kill_now(container.pid());
    assert_eq!(container.wait().code, 137);
    ends(&child, "the child");
    assert_eq!(container.delete_task().expect("delete it"), 137);
}

fn a_killed_shim_ends_its_pod(containerd: Containerd) {
    let pod = containerd.pod("orphans");
    let containers = ["one", "two"].map(|name| pod.shell(name, "sleep 1000"));
    let processes = containers.each_ref().map(|container| pidfd(container.pid()));
    kill_now(sandbox::shim_of(containers[0].pid()));
    processes.iter().for_each(|process| ends(process, "a container"));
    for container in &containers {
        let status = container.wait();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_ne!(status.exit_code, 0);
    }
    wait::until("the pod is not ready", || (!pod.is_ready()).then_some(()));
}

fn a_killed_boot_ends_its_pod(containerd: Containerd) {
    let pod = containerd.pod("headless");
    let containers = ["one", "two"].map(|name| pod.shell(name, "sleep 1000"));
    let processes = containers.each_ref().map(|container| pidfd(container.pid()));
    let shim = sandbox::shim_of(containers[0].pid());
    kill_now(sandbox::boot_of(shim).pid);
    processes.iter().for_each(|process| ends(process, "a container"));
    for container in &containers {
        assert_eq!(container.wait().exit_code, 137);
    }
    wait::until("the pod is not ready", || (!pod.is_ready()).then_some(()));
}

fn a_killed_container_leaves_the_others_alone(containerd: Containerd) {
    let pod = containerd.pod("pod-of-two");
    let (one, two) = (pod.shell("one", "sleep 1000"), pod.shell("two", "sleep 1000"));
    kill_now(one.pid());
    assert_eq!(one.wait().exit_code, 137);
    assert_eq!(two.ask("echo alive"), "alive");
    assert!(pod.is_ready());
}

/// This includes a process that has left its session, its parent and its
/// signals behind.
fn the_sandbox_cannot_outlive_its_boot(containerd: Containerd) {
    let script = "trap '' TERM HUP INT; (setsid sh -c 'trap \"\" TERM HUP INT; sleep 1000' &); echo up; sleep 1000";
    let container = containerd.shell("clings", script).start();
    container.stdio().wait_for_output("up");
    let shim = container.shim();
    let boot = sandbox::boot_of(shim).pid;
    let inside: Vec<OwnedFd> = wait::until("the daemon runs", || {
        let inside = sandbox::descendants(boot);
        (inside.len() >= 2).then(|| inside.iter().map(|process| pidfd(process.pid)).collect())
    });
    kill_now(boot);
    inside.iter().for_each(|process| ends(process, "a process of the sandbox"));
    assert_eq!(container.wait().code, 137);
}

/// Even if the exit still waits for output that no client reads.
fn a_shim_that_gets_sigterm_publishes_its_container_s_exit(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let unread = containerd.directory().join("unread");
    mkfifo(&unread, Mode::S_IRWXU).expect("mkfifo");
    let container = containerd.shell("punctual", "echo unread; exit 3");
    let container = container.output_to(&unread.to_string_lossy()).create();
    let (first, shim) = (container.pidfd(), container.shim());
    container.start().expect("start it");
    ends(&first, "the container");
    wait::until("boot has collected it", || container.kill(Signal::SIGCONT as i32).err());
    // boot replies to this after it has told the shim of the exit, if the shim asks it.
    let late = container.exec("late", spec::process(&["true"]), Streams::Null);
    late.and_then(|exec| exec.start()).expect_err("an exec after the end");
    kill(Pid::from_raw(shim), Signal::SIGTERM).expect("end the shim");
    let exit = TaskEvent::Exit("punctual".into(), "punctual".into(), 3);
    events.until(|event| *event == exit);
}

/// What boot clones for itself has ended and is collected.
fn boot_has_no_child_but_its_containers_processes(containerd: Containerd) {
    let pod = containerd.pod("idle");
    let container = pod.shell("main", "sleep 1000");
    let boot = sandbox::boot_of(sandbox::shim_of(container.pid()));
    // This file lists those as well that have ended and were not collected.
    let children = format!("/proc/{0}/task/{0}/children", boot.pid);
    let init = container.pid().to_string();
    wait::until("boot has the init alone", || {
        let all = fs::read_to_string(&children).expect("read boot's children");
        (all.trim() == init).then_some(())
    });
}

/// Returns the process that serves a connection.
fn connected_to(shim: &Shim<'_>) -> i32 {
    let connect = ConnectRequest::default();
    let connected = shim.tasks.connect(shim.context(), &connect).expect("ask for its process");
    connected.shim_pid.cast_signed()
}

/// Returns how often a process has gone to sleep, once it sleeps.
fn settled(pid: i32) -> String {
    let count = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
        line.expect("its count of switches").to_owned()
    };
    wait::until("it sleeps", || {
        let before = count();
        thread::sleep(Duration::from_millis(200));
        (count() == before).then_some(before)
    })
}

/// containerd kills `start` when its client gives up, and does not know of the shim that it has
/// started. A shim that is needed is not ended.
#[test]
fn a_shim_that_nobody_needs_ends_itself() {
    let containerd = Containerd::start(Version::V2_1);
    let [unknown, connected, busy] =
        ["unknown", "connected", "busy"].map(|id| Bundle::new(&containerd, id, "sleep 1000"));
    let address = |bundle: &Bundle| {
        fs::read_to_string(bundle.path.join("address")).expect("the shim's address")
    };
    let shim_pid = |shim: &Shim<'_>| pidfd(connected_to(shim));
    let sandbox = connected.start_shim().expect("start a shim");
    let container = busy.start_shim().expect("start a shim");
    container.create().expect("create a container");
    let busy_pid = connected_to(&container);
    let lives = [shim_pid(&sandbox), shim_pid(&container)];
    drop(container);
    let woken = settled(busy_pid);
    // One to which a client was connected, and has hung up.
    let ends = shim_pid(&unknown.start_shim().expect("start a shim"));
    assert!(wait::readable(&ends, wait::deadline()), "it lives on");
    let socket = address(&unknown);
    assert!(!Path::new(socket.trim_start_matches("unix://")).exists(), "its socket is left");
    assert_eq!(settled(busy_pid), woken, "a shim with a container was woken up");
    for shim in lives {
        assert!(!wait::readable(&shim, Duration::ZERO), "a shim that is needed has ended");
    }
    sandbox.create().expect("create a container late");
    sandbox.delete().expect("delete it");
    sandbox.shutdown();
    let container = busy.connect(&address(&busy)).expect("connect once more");
    container.delete().expect("delete the container");
    container.shutdown();
}
