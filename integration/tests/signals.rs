//! Signals, and the exits of processes.

use integration::containerd::Containerd;
use integration::stdio::Streams;
use integration::{on_each_containerd, spec};

on_each_containerd!(
    every_end_by_a_signal_is_published,
    a_handler_decides,
    an_init_ignores_signals_that_it_does_not_handle,
    kill_all_reaches_every_process,
    killing_an_ended_process_is_not_found,
    an_unknown_container_is_not_found,
    a_created_container_can_be_killed,
    a_daemonised_grandchild_keeps_running,
    orphans_are_collected,
    the_time_of_the_exit_is_reported,
    many_can_wait,
    kill_with_ctr,
);

/// An exec'd process is not PID 1, so signals end it as everywhere.
fn every_end_by_a_signal_is_published(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    for signal in [1, 2, 3, 6, 9, 10, 13, 14, 15, 34, 64] {
        let process = spec::process(&["sleep", "1000"]);
        let exec = container.exec(&format!("signal-{signal}"), process, Streams::Null);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        exec.kill(signal).expect("send the signal");
        assert_eq!(exec.wait().code, 128 + signal.unsigned_abs());
    }
}

fn a_handler_decides(containerd: Containerd) {
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.01; done";
    let container = containerd.shell("traps", script).start();
    container.stdio().wait_for_output("ready");
    container.kill(15).expect("send SIGTERM");
    assert_eq!(container.finish(), (5, "ready\ncaught\n".to_owned()));
}

/// The init is PID 1 of a PID namespace. Only SIGKILL from outside ends it.
fn an_init_ignores_signals_that_it_does_not_handle(containerd: Containerd) {
    let container = containerd.container("stubborn", ["sleep", "1000"]).start();
    container.kill(15).expect("send SIGTERM");
    assert_eq!(container.exec_shell("look", "echo still here").1, "still here\n");
    container.kill(9).expect("send SIGKILL");
    assert_eq!(container.wait().code, 137);
}

fn kill_all_reaches_every_process(containerd: Containerd) {
    let worker = "trap 'echo worker $1; exit' TERM; echo up $1; while :; do sleep 0.01; done";
    let script = format!(
        "trap 'wait; echo first; exit 3' TERM; \
         for n in 1 2 3; do sh -c '{}' - $n & done; while :; do sleep 0.01; done",
        worker.replace('\'', "'\\''")
    );
    let container = containerd.shell("family", &script).start();
    for n in 1..=3 {
        container.stdio().wait_for_output(&format!("up {n}\n"));
    }
    container.kill_all(15).expect("send SIGTERM to all");
    let (code, output) = container.finish();
    assert_eq!(code, 3);
    for line in ["worker 1\n", "worker 2\n", "worker 3\n", "first\n"] {
        assert!(output.contains(line), "{line:?} is missing in {output:?}");
    }
}

fn killing_an_ended_process_is_not_found(containerd: Containerd) {
    let container = containerd.container("over", ["true"]).start();
    assert_eq!(container.wait().code, 0);
    let error = container.kill(9).expect_err("it has ended");
    assert_eq!(error.code(), tonic::Code::NotFound, "{error}");
}

fn an_unknown_container_is_not_found(containerd: Containerd) {
    let refused = containerd.ctr(["task", "kill", "unknown"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("not found"), "{}", refused.stderr);
}

fn a_created_container_can_be_killed(containerd: Containerd) {
    let container = containerd.container("unborn", ["echo", "never"]).create();
    container.kill(9).expect("kill it");
    assert_eq!(container.wait().code, 137);
    assert_eq!(container.delete_task().expect("delete it"), 137);
}

fn a_daemonised_grandchild_keeps_running(containerd: Containerd) {
    let script = "(setsid sh -c 'exec >/dev/null 2>&1; sleep 1000' &); echo done; exec sleep 1000";
    let container = containerd.shell("daemon", script).start();
    container.stdio().wait_for_output("done");
    integration::wait::until("the grandchild is a child of PID 1", || {
        let (_, listed) = container.exec_shell("ps", "grep -l '^PPid:\t1$' /proc/[0-9]*/status");
        (listed.lines().count() == 1).then_some(())
    });
    container.kill(9).expect("kill the container");
    assert_eq!(container.wait().code, 137);
}

/// PID 1 of the container inherits orphans of an exec. Those of PID 1 end with
/// it.
fn orphans_are_collected(containerd: Containerd) {
    let script = "trap : CHLD; echo ready; while :; do sleep 0.01; done";
    let container = containerd.shell("reaper", script).start();
    container.stdio().wait_for_output("ready");
    container.exec_shell("leaves-orphans", "for n in 1 2 3 4 5; do (sleep 0.01 &) ; done");
    integration::wait::until("no orphan and no zombie is left", || {
        let listed = container.exec_shell("look", "grep -l sleep /proc/[0-9]*/comm | wc -l").1;
        (listed.trim().parse::<u32>().expect("a number") <= 1).then_some(())
    });
}

fn the_time_of_the_exit_is_reported(containerd: Containerd) {
    let container = containerd.container("brief", ["true"]).start();
    let exit = container.wait();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = i64::try_from(now.expect("a time after 1970").as_secs()).expect("a near time");
    assert!((now - 120..=now + 1).contains(&exit.at), "{exit:?}, and now is {now}");
}

fn many_can_wait(containerd: Containerd) {
    let sleeper = containerd.run("awaited").detached(["sleep", "1000"]);
    let container = containerd.container("other", ["sleep", "1000"]).start();
    std::thread::scope(|scope| {
        let waiting: Vec<_> =
            (0..5).map(|_| scope.spawn(|| containerd.wait_for_task("awaited").code)).collect();
        sleeper.kill("SIGKILL", &[]).succeeded();
        for waiter in waiting {
            assert_eq!(waiter.join().expect("a waiter"), 137);
        }
    });
    container.kill(9).expect("the other one is unharmed");
    assert_eq!((container.wait().code, container.wait().code), (137, 137));
}

fn kill_with_ctr(containerd: Containerd) {
    let script = "trap 'exit 9' TERM; sleep 1000 & while :; do sleep 0.01; done";
    let container = containerd.run("killed").detached(["sh", "-c", script]);
    container.kill("SIGKILL", &["--all"]).succeeded();
    assert_eq!(containerd.wait_for_task("killed").code, 137);
    container.delete().succeeded();
}
