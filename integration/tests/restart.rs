//! containerd is killed and starts again. Containers do not notice, and nothing
//! that happens meanwhile is lost.

use std::fs;

use integration::container::pidfd;
use integration::containerd::Containerd;
use integration::cri::PodContainer;
use integration::events::{Subscriber, TaskEvent};
use integration::{on_each_containerd, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

on_each_containerd!(
    a_pod_writes_on_while_containerd_is_gone,
    a_container_can_be_used_after_the_restart,
    an_exit_in_between_is_published_afterwards,
    a_pod_s_exit_in_between_is_published_afterwards,
);

/// containerd itself reads a pod's output, so lines could be lost here. The
/// container writes before, while and after containerd is gone.
fn a_pod_writes_on_while_containerd_is_gone(containerd: Containerd) {
    let notes = containerd.directory().join("notes");
    fs::create_dir(&notes).expect("make a directory");
    fs::set_permissions(&notes, std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("chmod");
    let pod = containerd.pod("writes");
    let script = "n=0; while [ ! -e /notes/stop ]; do \
                    echo line $n; n=$((n+1)); echo $n > /notes/new; mv /notes/new /notes/now; sleep 0.01; \
                  done; echo lines: $n; exit 6";
    let container = pod.container("main", script, |config| {
        config.mounts.push(k8s_cri::v1::Mount {
            container_path: "/notes".into(),
            host_path: notes.to_string_lossy().into_owned(),
            ..Default::default()
        });
    });
    let written = || -> u32 {
        let now = fs::read_to_string(notes.join("now")).ok();
        now.and_then(|now| now.trim().parse().ok()).unwrap_or(0)
    };
    let writes_on = |what: &str| {
        let from = written();
        wait::until(what, || (written() > from + 20).then_some(()));
    };

    writes_on("the container writes");
    let before = written();
    containerd.kill();
    let after = written();
    writes_on("the container writes on without containerd");
    containerd.launch();
    writes_on("the container writes on with the new containerd");
    cri_answers_again(&container);
    assert_eq!(container.ask("echo inside"), "inside");
    assert!(pod.is_ready());

    fs::write(notes.join("stop"), "").expect("tell the container to stop");
    assert_eq!(container.wait().exit_code, 6);
    container.wait_for_log(&format!("lines: {}", written()));
    let lines: Vec<String> = container.log_lines().into_iter().map(|(_, line)| line).collect();
    // A line that containerd had read when it was killed is in no log.
    let in_its_hands = |line: &String| {
        let at_hand = (before.saturating_sub(1)..=after).any(|n| *line == format!("line {n}"));
        at_hand && !lines.contains(line)
    };
    let wanted = (0..written()).map(|n| format!("line {n}"));
    let mut wanted: Vec<String> = wanted.filter(|line| !in_its_hands(line)).collect();
    assert!(wanted.len() + 3 > written() as usize, "{lines:?}");
    wanted.push(format!("lines: {}", written()));
    assert_eq!(lines, wanted);
}

fn a_container_can_be_used_after_the_restart(containerd: Containerd) {
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done";
    let container = containerd.shell("survivor", script).start();
    container.stdio().wait_for_output("ready");
    let pid = container.pid();
    containerd.kill();
    containerd.launch();
    assert_eq!(container.state().expect("ask for its state").pid, pid.unsigned_abs());
    assert_eq!(container.exec_shell("look", "echo inside"), (0, "inside\n".to_owned()));
    container.pause().expect("pause it");
    container.resume().expect("resume it");
    assert_eq!(container.metrics().id, "survivor");

    let events = Subscriber::new(&containerd);
    container.kill(15).expect("ask it to end");
    assert_eq!(container.wait().code, 3);
    let exit = TaskEvent::Exit("survivor".into(), "survivor".into(), 3);
    events.until(|event| *event == exit);
}

fn an_exit_in_between_is_published_afterwards(containerd: Containerd) {
    let container = containerd.container("dies", ["sleep", "1000"]).start();
    let other = containerd.container("lives", ["sleep", "1000"]).start();
    containerd.kill();
    end_from_the_host(container.pid(), Signal::SIGKILL);
    containerd.launch();
    assert_eq!(container.wait().code, 137);
    assert_eq!(other.exec_shell("look", "echo alive").1, "alive\n");
    assert_eq!(container.delete_task().expect("delete it"), 137);
}

/// Even if no client could read its last output meanwhile. containerd up to 1.7 loses an exit that
/// is published while it loads the container, unless State has said that it stopped.
fn a_pod_s_exit_in_between_is_published_afterwards(containerd: Containerd) {
    let pod = containerd.pod("goes-on");
    let script = "trap 'echo last words; exit 7' TERM; echo ready; while :; do sleep 0.01; done";
    let (one, two) = (pod.shell("ends", script), pod.shell("lives", "sleep 1000"));
    one.wait_for_log("ready");
    let process = one.pid();
    containerd.kill();
    end_from_the_host(process, Signal::SIGTERM);
    containerd.launch();
    cri_answers_again(&two);
    assert_eq!(one.wait().exit_code, 7);
    one.wait_for_log("last words");
    assert_eq!(two.ask("echo alive"), "alive");
    assert!(pod.is_ready());
}

fn cri_answers_again(container: &PodContainer<'_>) {
    wait::until("CRI answers exec again", || {
        container.try_exec(&["true"], 0).is_ok_and(|answer| answer.code == 0).then_some(())
    });
}

fn end_from_the_host(pid: i32, signal: Signal) {
    let ended = pidfd(pid);
    kill(Pid::from_raw(pid), signal).expect("send a signal from the host");
    assert!(wait::readable(ended, wait::deadline()), "the process does not end");
}
