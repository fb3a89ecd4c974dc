//! Terminals: the container has its own pty, whose size follows the client's
//! and whose output is complete.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

use integration::containerd::Containerd;
use integration::stdio::Streams;
use integration::{image, on_each_containerd, spec};
use nix::pty::{Winsize, openpty};
use serde_json::json;

on_each_containerd!(
    the_terminal_is_of_the_container_s_own_devpts,
    a_size_given_before_start_counts,
    the_console_size_of_the_spec_counts,
    a_resize_is_seen_at_once,
    control_c_interrupts,
    output_is_complete_when_the_exit_is_published,
    a_user_owns_its_terminal,
    ctr_run_with_a_terminal,
);

fn the_terminal_is_of_the_container_s_own_devpts(containerd: Containerd) {
    let script = "tty; [ -c /dev/console ] && echo console; ls /dev/pts | tr '\\n' ' '";
    let container = containerd.shell("tty", script).streams(Streams::Terminal).start();
    assert_eq!(container.wait().code, 0);
    let output = container.stdio().output();
    assert_eq!(output, "/dev/pts/0\r\nconsole\r\n0 ptmx ");
    // Some C libraries only read the link.
    let script = "for n in 0 1 2; do readlink /proc/self/fd/$n; done; sleep 1000";
    let container = containerd.shell("named", script).streams(Streams::Terminal).start();
    container.stdio().wait_for_output("/dev/pts/0\r\n/dev/pts/0\r\n/dev/pts/0\r\n");
    let link = spec::process(&["readlink", "/proc/self/fd/1"]);
    let exec = container.exec("link", link, Streams::Terminal).expect("add an exec");
    exec.start().expect("start it");
    exec.stdio().wait_for_output("/dev/pts/1");
}

fn a_size_given_before_start_counts(containerd: Containerd) {
    let container = containerd.shell("sized", "stty size").streams(Streams::Terminal).create();
    container.resize(101, 33).expect("resize before the start");
    container.start().expect("start it");
    assert_eq!(container.finish(), (0, "33 101\r\n".to_owned()));
}

fn the_console_size_of_the_spec_counts(containerd: Containerd) {
    let container = containerd.shell("sized", "stty size").streams(Streams::Terminal);
    let container = container.spec(|s| {
        s["process"]["consoleSize"] = json!({ "width": 77, "height": 22 });
    });
    assert_eq!(container.start().finish(), (0, "22 77\r\n".to_owned()));
}

fn a_resize_is_seen_at_once(containerd: Containerd) {
    let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.01; done";
    let container = containerd.shell("watcher", script).streams(Streams::Terminal).start();
    container.stdio().wait_for_output("ready");
    container.resize(120, 40).expect("resize");
    assert_eq!(container.finish(), (0, "ready\r\n40 120\r\n".to_owned()));
}

fn control_c_interrupts(containerd: Containerd) {
    let script = "trap 'echo interrupted; exit 6' INT; echo ready; while :; do sleep 0.01; done";
    let container = containerd.shell("typing", script).streams(Streams::Terminal).start();
    container.stdio().wait_for_output("ready");
    container.stdio().write(b"\x03");
    let (code, output) = container.finish();
    assert_eq!(code, 6, "{output:?}");
    assert!(output.contains("interrupted\r\n"), "{output:?}");
}

fn output_is_complete_when_the_exit_is_published(containerd: Containerd) {
    let container = containerd.container("counts", ["seq", "1", "20000"]);
    let container = container.streams(Streams::Terminal).start();
    let (code, output) = container.finish();
    let wanted: String = (1..=20000).map(|n| format!("{n}\r\n")).collect();
    assert_eq!((code, output.len()), (0, wanted.len()));
    assert!(output == wanted, "the numbers are not the ones that were written");
}

fn a_user_owns_its_terminal(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let mut process = spec::process(&["sh", "-c", "stat -c %u $(tty); echo again > $(tty)"]);
    process["user"] = json!({ "uid": 1000, "gid": 1000 });
    let exec = container.exec("alice", process, Streams::Terminal).expect("add an exec");
    exec.start().expect("start it");
    assert_eq!(exec.wait().code, 0);
    assert_eq!(exec.stdio().output(), "1000\r\nagain\r\n");
}

/// `ctr` itself has a terminal here, as for a user, and passes on its size.
fn ctr_run_with_a_terminal(containerd: Containerd) {
    containerd.track("person");
    let size = Winsize { ws_row: 44, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).expect("openpty");
    let end = || Stdio::from(pty.slave.try_clone().expect("dup"));
    let mut command = containerd.ctr_command();
    command.args(["--namespace", &containerd.namespace(), "run", "--rm", "--tty"]);
    command.args(["--cgroup", &containerd.cgroups_path("person")]);
    command.args(["--runtime", containerd.runtime_name(), image::BUSYBOX, "person"]);
    command.args([
        "sh",
        "-c",
        "tty; while [ \"$(stty size)\" != '44 111' ]; do :; done; echo sized; exit 8",
    ]);
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("run ctr");
    drop((command, pty.slave));
    let mut output = Vec::new();
    // The master returns EIO, not end of file, when the last other end is
    // closed.
    let _ = File::from(pty.master).read_to_end(&mut output);
    let output = String::from_utf8_lossy(&output);
    assert_eq!(child.wait().expect("wait for ctr").code(), Some(8), "{output}");
    assert!(output.contains("/dev/pts/0") && output.contains("sized"), "{output:?}");
}
