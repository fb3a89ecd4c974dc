//! Pods whose processes read without a pause end as others do, and leave nothing: the end of
//! each test checks that.

use std::fs;
use std::time::Duration;

use containerd_client::types::v1::Status;
use integration::container::{Container, pidfd};
use integration::containerd::{Containerd, Version};
use integration::stdio::Streams;
use integration::{host, on_each_cri, sandbox, spec, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{SMALL, add_reader, look, total};

on_each_cri!(a_pod_of_readers_ends);

/// Starts a container whose init reads without a pause, and prints `reads` at first.
fn reader<'a>(containerd: &'a Containerd, id: &str) -> Container<'a> {
    let container = containerd.container(id, ["/views", "hammer"]);
    let container = container.spec(|spec| SMALL.set(spec)).spec(add_reader).start();
    container.stdio().wait_for_output("reads\n");
    container
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("send a signal from the host");
}

#[test]
fn a_container_that_reads_is_killed_and_deleted() {
    let containerd = Containerd::start(Version::V2_1);
    for number in 0..5 {
        let container = reader(&containerd, &format!("reads-{number}"));
        container.kill(9).expect("kill it");
        assert_eq!(container.wait().code, 137);
        assert_eq!(container.delete_task().expect("delete it"), 137);
    }
}

/// The container goes on, and the exec'd process ends in the middle of a read.
#[test]
fn an_exec_that_reads_is_killed() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("holds", ["sleep", "1000"]);
    let container = container.spec(|spec| SMALL.set(spec)).spec(add_reader).start();
    let exec = container.exec("reads", spec::process(&["/views", "hammer"]), Streams::Captured);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    exec.stdio().wait_for_output("reads\n");
    exec.kill(9).expect("kill it");
    assert_eq!(exec.wait().code, 137);
    assert_eq!(look(&container, "after"), SMALL.seen_by(&containerd));
}

fn a_pod_of_readers_ends(containerd: Containerd) {
    let pod = containerd.pod("readers");
    let script = "echo reads; while :; do cat /proc/meminfo /proc/stat; done > /dev/null";
    for name in ["first", "second"] {
        let container = pod.container(name, script, |config| SMALL.set_in_pod(config));
        container.wait_for_log("reads");
    }
    pod.stop().expect("stop the pod");
}

/// The freezer waits for no read, and a read goes on afterwards.
#[test]
fn a_container_that_reads_is_paused_and_resumed() {
    let containerd = Containerd::start(Version::V2_1);
    let container = reader(&containerd, "reads");
    for _ in 0..5 {
        container.pause().expect("pause it");
        assert_eq!(container.status(), Status::Paused);
        let used = host::cpu_time(container.pid());
        // Nothing reports that something does not run.
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(host::cpu_time(container.pid()), used, "it reads on");
        container.resume().expect("resume it");
        wait::until("it reads again", || (host::cpu_time(container.pid()) > used).then_some(()));
    }
    assert_eq!(look(&container, "after"), SMALL.seen_by(&containerd));
    container.pause().expect("pause it");
    container.kill(9).expect("kill it");
    let _ = container.resume();
    assert_eq!(container.wait().code, 137);
}

/// The sandbox ends, and with it all who read.
#[test]
fn a_reader_outlives_neither_its_shim_nor_its_boot() {
    let containerd = Containerd::start(Version::V2_1);
    for (id, by_boot) in [("shim", false), ("boot", true)] {
        let container = reader(&containerd, id);
        let (ended, shim) = (container.pidfd(), container.shim());
        let boot = sandbox::boot_of(shim).pid;
        signal(if by_boot { boot } else { shim }, Signal::SIGKILL);
        assert!(wait::readable(&ended, wait::deadline()), "the reader outlives its {id}");
    }
}

/// A container whose init reads /proc/meminfo for the first time while `stopped`, a process of
/// its sandbox, is stopped. The read waits.
fn reader_of_stopped<'a>(
    containerd: &'a Containerd,
    id: &str,
    stopped: impl FnOnce(&Container<'a>) -> i32,
) -> Container<'a> {
    let go = containerd.directory().join(format!("go-{id}"));
    fs::create_dir(&go).expect("make a directory");
    let script = "trap 'echo caught' USR1; echo up; \
                  while [ ! -e /go/now ]; do sleep 0.05; done; \
                  line=; read line < /proc/meminfo; echo \"read: $line\"; sleep 1000 & wait";
    let container = containerd.shell(id, script).spec(|spec| SMALL.set(spec));
    let container = container.bind(&go.to_string_lossy(), "/go", &["bind", "ro"]).start();
    container.stdio().wait_for_output("up\n");
    signal(stopped(&container), Signal::SIGSTOP);
    fs::write(go.join("now"), "").expect("write a file");
    let channel = format!("/proc/{}/wchan", container.pid());
    wait::until("the read waits", || {
        let waits = fs::read_to_string(&channel).expect("read the wait channel");
        ["fuse", "request_wait"].iter().any(|name| waits.contains(name)).then_some(())
    });
    container
}

/// A read that a stopped boot has not taken waits, and its process can be killed all the same.
/// (One that it has taken waits until it goes on or ends: docs/threat-model.md.)
#[test]
fn a_reader_of_a_stopped_boot_can_be_killed() {
    let containerd = Containerd::start(Version::V2_1);
    let boot = |container: &Container<'_>| sandbox::boot_of(container.shim()).pid;
    let container = reader_of_stopped(&containerd, "waits", boot);
    let boot = boot(&container);
    let ended = pidfd(container.pid());
    signal(container.pid(), Signal::SIGKILL);
    let died = wait::readable(&ended, wait::deadline());
    signal(boot, Signal::SIGCONT);
    assert!(died, "it cannot be killed");
    assert_eq!(container.wait().code, 137);
}

/// Boot has to ask the stopped shim for what the file is made of.
fn first_look<'a>(containerd: &'a Containerd, id: &str) -> Container<'a> {
    reader_of_stopped(containerd, id, Container::shim)
}

#[test]
fn a_read_that_waits_for_the_shim_is_answered() {
    let containerd = Containerd::start(Version::V2_1);
    let container = first_look(&containerd, "patient");
    signal(container.shim(), Signal::SIGCONT);
    let output = container.stdio().wait_for_output(" kB\n");
    assert_eq!(total(output.split("read: ").nth(1).expect("what was read")), SMALL.seen().memory);
}

#[test]
fn a_read_that_waits_for_the_shim_is_interrupted() {
    let containerd = Containerd::start(Version::V2_1);
    let container = first_look(&containerd, "interrupted");
    signal(container.pid(), Signal::SIGUSR1);
    wait::until("it goes on", || {
        host::children(container.pid()).iter().any(|child| child.args[0] == "sleep").then_some(())
    });
    signal(container.shim(), Signal::SIGCONT);
    let output = container.stdio().wait_for_output("read: \n");
    assert!(output.contains("caught\n"), "{output}");
    assert_eq!(look(&container, "after"), SMALL.seen());
}

#[test]
fn a_read_that_waits_for_a_shim_that_dies_ends() {
    let containerd = Containerd::start(Version::V2_1);
    let container = first_look(&containerd, "orphan");
    let ended = container.pidfd();
    signal(container.shim(), Signal::SIGKILL);
    assert!(wait::readable(&ended, wait::deadline()), "the reader outlives its shim");
}
