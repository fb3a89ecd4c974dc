//! Exec'd processes in a running container.

use std::os::fd::OwnedFd;
use std::thread;

use integration::container::{Exit, Result, pidfd};
use integration::containerd::Containerd;
use integration::stdio::Streams;
use integration::{host, on_each_containerd, sandbox, spec, wait};
use rustix::process::{Signal, pidfd_send_signal};
use serde_json::json;

on_each_containerd!(
    exec_returns_output_and_exit_code,
    exec_sees_what_the_container_sees,
    a_missing_program_is_named_and_the_container_lives_on,
    fifty_execs_at_once,
    more_execs_at_once_than_the_sandbox_s_channel_takes,
    an_exec_id_is_taken_once,
    an_exec_id_can_be_used_again,
    an_exec_takes_its_own_user_environment_and_directory,
    an_exec_takes_its_own_umask,
    execs_end_with_the_container,
    nothing_starts_after_the_end,
    a_signal_reaches_the_exec_alone,
    exec_with_a_terminal,
);

fn exec_returns_output_and_exit_code(containerd: Containerd) {
    let sleeper = containerd.run("sleeper").detached(["sleep", "1000"]);
    let ran = sleeper.exec("talks", ["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (7, "out\n"));
    assert!(ran.stderr.contains("err\n"), "{}", ran.stderr);
}

fn exec_sees_what_the_container_sees(containerd: Containerd) {
    let script = "echo here > /tmp/note; hostname tester; sleep 1000";
    let container = containerd.shell("noted", script);
    // The capability is only needed to set its own host name.
    let container = container.spec(|s| {
        for set in ["bounding", "effective", "permitted"] {
            s["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
        }
    });
    let container = container.start();
    integration::wait::until("the container has set its name", || {
        (container.exec_shell("look", "hostname").1 == "tester\n").then_some(())
    });
    let (code, seen) =
        container.exec_shell("reads", "cat /tmp/note; cat /proc/1/cmdline | tr '\\0' ' '");
    assert_eq!((code, seen.as_str()), (0, "here\nsleep 1000 "));
}

fn a_missing_program_is_named_and_the_container_lives_on(containerd: Containerd) {
    let sleeper = containerd.run("sleeper").detached(["sleep", "1000"]);
    let ran = sleeper.exec("missing", ["no-such-program"]);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("no-such-program"), "{}", ran.stderr);
    assert_eq!(sleeper.exec("fine", ["echo", "fine"]).succeeded().stdout, "fine\n");
}

fn fifty_execs_at_once(containerd: Containerd) {
    let container = containerd.container("busy", ["sleep", "1000"]).start();
    let execs: Vec<_> = (0..50)
        .map(|n| {
            let process = spec::process(&["sh", "-c", &format!("echo {n}; exit {n}")]);
            container.exec(&format!("exec-{n}"), process, Streams::Captured).expect("add an exec")
        })
        .collect();
    thread::scope(|scope| {
        for exec in &execs {
            scope.spawn(|| exec.start().expect("start an exec"));
        }
    });
    for (n, exec) in execs.iter().enumerate() {
        assert_eq!(exec.wait().code, u32::try_from(n).expect("a small number"));
        assert_eq!(exec.stdio().output(), format!("{n}\n"));
    }
}

/// A process that is stopped until this is dropped.
struct Stopped<'a>(&'a OwnedFd);

impl<'a> Stopped<'a> {
    fn stop(process: &'a OwnedFd) -> Self {
        pidfd_send_signal(process, Signal::STOP).expect("stop it");
        Self(process)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(self.0, Signal::CONT);
    }
}

/// boot is stopped until the shim has all of them, so that its channel fills up.
fn more_execs_at_once_than_the_sandbox_s_channel_takes(containerd: Containerd) {
    const EXECS: usize = 300;
    let container = containerd.container("busy", ["sleep", "1000"]).start();
    let execs: Vec<_> = (0..EXECS)
        .map(|n| container.exec(&format!("exec-{n}"), spec::process(&["true"]), Streams::Captured))
        .collect::<Result<_>>()
        .expect("add execs");
    let boot = pidfd(sandbox::boot_of(container.shim()).pid);
    let stopped = Stopped::stop(&boot);
    thread::scope(|scope| {
        let started: Vec<_> = execs.iter().map(|exec| scope.spawn(|| exec.start())).collect();
        // Before the threads are waited for, if this panics.
        let stopped = stopped;
        wait::until("the shim has opened the streams of all", || {
            let held = host::descriptors(container.shim());
            (0..EXECS)
                .all(|n| held.values().any(|to| to.contains(&format!("/exec-{n}/"))))
                .then_some(())
        });
        drop(stopped);
        for (n, started) in started.into_iter().enumerate() {
            let started = started.join().expect("no panic");
            started.unwrap_or_else(|e| panic!("exec {n}: {}", e.message()));
        }
    });
    for exec in &execs {
        assert_eq!(exec.wait().code, 0);
    }
}

fn an_exec_id_is_taken_once(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let process = || spec::process(&["sleep", "1000"]);
    let first = container.exec("same", process(), Streams::Null).expect("the first of that ID");
    let error = container.exec("same", process(), Streams::Null).expect_err("the second");
    assert!(error.message().contains("already exists"), "{error}");
    first.start().expect("the first is unharmed");
    first.kill(9).expect("kill it");
    assert_eq!(first.wait().code, 137);
}

/// An operation that was started for the first process of that name must not
/// reach the second: after a kill, the shim ensures for ten seconds that an
/// exit is published.
fn an_exec_id_can_be_used_again(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let first = container.exec("probe", spec::process(&["sleep", "1000"]), Streams::Null);
    let first = first.expect("add an exec");
    first.start().expect("start it");
    first.kill(9).expect("kill it");
    assert_eq!(first.wait().code, 137);
    drop(first);
    assert_eq!(container.exec_shell("probe", "sleep 11; exit 3").0, 3);
}

fn an_exec_takes_its_own_user_environment_and_directory(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let mut process = spec::process(&["sh", "-c", "id -u; id -g; id -G; pwd; echo $FRUIT"]);
    process["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [10, 4711] });
    process["cwd"] = json!("/home/alice");
    process["env"] = json!(["PATH=/bin", "FRUIT=plum"]);
    let exec = container.exec("alice", process, Streams::Captured).expect("add an exec");
    exec.start().expect("start it");
    assert_eq!(exec.wait().code, 0);
    let output = exec.stdio().output();
    assert_eq!(output, "1000\n1000\n1000 10 4711\n/home/alice\nplum\n");
}

fn an_exec_takes_its_own_umask(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let mut process = spec::process(&["sh", "-c", "umask"]);
    process["user"]["umask"] = json!(0o027);
    let exec = container.exec("careful", process, Streams::Captured).expect("add an exec");
    exec.start().expect("start it");
    assert_eq!(exec.wait().code, 0);
    assert_eq!(exec.stdio().output(), "0027\n");
}

/// The container's init is PID 1: its end ends all other processes.
fn execs_end_with_the_container(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let exec = container.exec("stays", spec::process(&["sleep", "1000"]), Streams::Null);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    container.kill(9).expect("kill the container");
    let (of_exec, of_container): (Exit, Exit) = (exec.wait(), container.wait());
    assert_eq!((of_exec.code, of_container.code), (137, 137));
}

fn nothing_starts_after_the_end(containerd: Containerd) {
    let container = containerd.container("ends", ["sleep", "1000"]).start();
    let exec =
        container.exec("late", spec::process(&["true"]), Streams::Null).expect("add an exec");
    container.kill(9).expect("kill the container");
    container.wait();
    let error = exec.start().expect_err("the container has ended");
    assert!(!error.message().is_empty());
    let error = container.exec("later", spec::process(&["true"]), Streams::Null);
    let started = error.and_then(|exec| exec.start());
    started.expect_err("the container has ended");
}

fn a_signal_reaches_the_exec_alone(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let process = spec::process(&[
        "sh",
        "-c",
        "trap 'exit 42' USR1; echo ready; while :; do sleep 0.01; done",
    ]);
    let exec = container.exec("traps", process, Streams::Captured).expect("add an exec");
    exec.start().expect("start it");
    exec.stdio().wait_for_output("ready");
    exec.kill(10).expect("send SIGUSR1");
    assert_eq!(exec.wait().code, 42);
    assert_eq!(container.exec_shell("after", "echo alive").1, "alive\n");
    let error = exec.kill(10).expect_err("it has ended");
    assert!(
        error.message().contains("finished") || error.message().contains("not found"),
        "{error}"
    );
}

fn exec_with_a_terminal(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let process = spec::process(&["sh", "-c", "tty; read line; echo \"got $line\"; stty size"]);
    let exec = container.exec("tty", process, Streams::Terminal).expect("add an exec");
    exec.start().expect("start it");
    exec.stdio().wait_for_output("/dev/pts/");
    exec.resize(132, 43).expect("resize");
    exec.stdio().write(b"hello\n");
    assert_eq!(exec.wait().code, 0);
    let output = exec.stdio().output();
    assert!(output.contains("got hello\r\n43 132\r\n"), "{output:?}");
}
