//! Sessions with a running container of a pod: ExecSync, Exec, Attach,
//! PortForward.

use std::time::{Duration, Instant};
use std::{fs, thread};

use integration::containerd::{Containerd, Version};
use integration::cri::HANDLER;
use integration::stream::Session;
use integration::{host, on_each_cri, tests_of};

on_each_cri!(
    exec_sync_returns_output_and_exit_code,
    exec_sync_ends_at_its_timeout,
    exec_sync_names_a_missing_program,
    exec_sync_waits_for_what_is_left_in_the_background,
    exec_keeps_streams_separate,
    exec_takes_input,
    exec_with_a_terminal,
    attach_shows_the_output_and_takes_input,
    ports_are_forwarded,
    thirty_execs_at_once,
    boot_s_share_of_the_cpu_is_its_own,
);

fn exec_sync_returns_output_and_exit_code(containerd: Containerd) {
    let pod = containerd.pod("asked");
    let container = pod.shell("main", "sleep 1000");
    let answer = container.exec("echo out; echo err >&2; exit 9");
    assert_eq!(
        (answer.code, answer.stdout.as_str(), answer.stderr.as_str()),
        (9, "out\n", "err\n")
    );
}

fn exec_sync_ends_at_its_timeout(containerd: Containerd) {
    let pod = containerd.pod("slow");
    let container = pod.shell("main", "sleep 1000");
    let refused = container.try_exec(&["sleep", "1000"], 1).expect_err("it takes too long");
    assert!(refused.message().contains("timeout"), "{refused}");
    integration::wait::until("the process that took too long is gone", || {
        let listed = container.ask("cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
        (listed.matches("sleep 1000").count() == 1).then_some(())
    });
}

fn exec_sync_names_a_missing_program(containerd: Containerd) {
    let pod = containerd.pod("missing");
    let container = pod.shell("main", "sleep 1000");
    let refused = container.try_exec(&["no-such-program"], 0).expect_err("there is none");
    assert!(refused.message().contains("no-such-program"), "{refused}");
}

tests_of! { exec_sync_drains_what_is_left_in_the_background:
    containerd_1_7 => integration::containerd::Containerd::start(integration::containerd::Version::V1_7),
    containerd_2_1 => integration::containerd::Containerd::start(integration::containerd::Version::V2_1),
    containerd_2_1_sandboxer => integration::containerd::Containerd::start_with_sandboxer(),
}

/// As containerd's TestContainerDrainExecIOAfterExit: with
/// `drain_exec_sync_io_timeout` (1.6 has none), an ExecSync ends though a process in the
/// background holds its streams.
fn exec_sync_drains_what_is_left_in_the_background(containerd: Containerd) {
    let config = containerd.directory().join("config.toml");
    let text = fs::read_to_string(&config).expect("read config.toml");
    let before = "restrict_oom_score_adj = true\n";
    assert!(text.contains(before), "{text}");
    let with = format!("{before}drain_exec_sync_io_timeout = \"2s\"\n");
    fs::write(&config, text.replace(before, &with)).expect("write config.toml");
    containerd.kill();
    containerd.launch();

    let pod = containerd.pod("drained");
    let container = pod.shell("main", "sleep 1000");
    let refused = container
        .try_exec(&["sh", "-c", "echo started; sleep 1000 &"], 0)
        .expect_err("its streams are held");
    assert!(refused.message().contains("io is still held"), "{refused}");
    let listed = container.ask("cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
    assert_eq!(listed.matches("sleep 1000").count(), 2, "it is not killed: {listed}");

    let answer = container.exec("echo started; (sleep 0.5; echo ended) &");
    assert_eq!((answer.code, answer.stdout.as_str()), (0, "started\nended\n"));
}

/// Without that option an ExecSync ends with the last of its processes, or at
/// its own timeout.
fn exec_sync_waits_for_what_is_left_in_the_background(containerd: Containerd) {
    let pod = containerd.pod("held");
    let container = pod.shell("main", "sleep 1000");
    let answer = container.exec("echo started; (sleep 0.5; echo ended) &");
    assert_eq!((answer.code, answer.stdout.as_str()), (0, "started\nended\n"));
}

fn exec_keeps_streams_separate(containerd: Containerd) {
    let pod = containerd.pod("apart");
    let container = pod.shell("main", "sleep 1000");
    let script = "echo out; echo err >&2; exit 5";
    let url = container.exec_url(&["sh", "-c", script], false, false);
    let mut session = Session::connect(&containerd, &url);
    assert_eq!(session.finish(), 5);
    assert_eq!(
        (session.stdout.as_slice(), session.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
}

fn exec_takes_input(containerd: Containerd) {
    let pod = containerd.pod("input");
    let container = pod.shell("main", "sleep 1000");
    let url = container.exec_url(&["sh", "-c", "read a; echo $a; read b; echo $b"], true, false);
    let mut session = Session::connect(&containerd, &url);
    session.write(b"first\n");
    session.wait_for("first\n");
    session.write(b"second\n");
    assert_eq!(session.finish(), 0);
    assert_eq!(session.stdout, b"first\nsecond\n");
}

fn exec_with_a_terminal(containerd: Containerd) {
    let pod = containerd.pod("terminal");
    let container = pod.shell("main", "sleep 1000");
    let url = container.exec_url(&["sh"], true, true);
    let mut session = Session::connect(&containerd, &url);
    session.resize(123, 45);
    session
        .write(b"until [ \"$(stty size)\" = '45 123' ]; do :; done; tty; echo si''zed; exit 4\n");
    session.wait_for("/dev/pts/");
    session.wait_for("sized\r\n");
    assert_eq!(session.finish(), 4);
}

fn attach_shows_the_output_and_takes_input(containerd: Containerd) {
    let pod = containerd.pod("attached");
    let container =
        pod.container("main", "while read line; do echo \"got $line\"; done", |config| {
            config.stdin = true;
        });
    let mut session = Session::connect(&containerd, &container.attach_url(true, false));
    session.write(b"one\n");
    session.wait_for("got one\n");
    drop(session);

    let mut session = Session::connect(&containerd, &container.attach_url(true, false));
    session.write(b"two\n");
    session.wait_for("got two\n");
    container.wait_for_log("got one");
    container.wait_for_log("got two");
}

fn ports_are_forwarded(containerd: Containerd) {
    let pod = containerd.pod("forwarded");
    let script = "mkdir /tmp/www; echo forwarded > /tmp/www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /tmp/www";
    let container = pod.shell("httpd", script);
    integration::wait::until("the server listens", || {
        (container.exec("wget -q -O - http://127.0.0.1:8080/").code == 0).then_some(())
    });
    let mut session = Session::connect(&containerd, &pod.port_forward(8080));
    session.write_port(b"GET / HTTP/1.0\r\n\r\n");
    session.wait_for("forwarded\n");
}

fn thirty_execs_at_once(containerd: Containerd) {
    let pod = containerd.pod("busy");
    let container = pod.shell("main", "sleep 1000");
    thread::scope(|scope| {
        for n in 0..30 {
            let container = &container;
            scope.spawn(move || assert_eq!(container.ask(&format!("echo {n}")), n.to_string()));
        }
    });
}

/// containerd gives the pause container, in whose cgroup boot works, the least that there is.
fn boot_s_share_of_the_cpu_is_its_own(containerd: Containerd) {
    let pod = containerd.pod("shares");
    let container = pod.shell("main", "sleep 1000");
    let weight_of = |pid: i32| {
        let directory = host::cgroup_directory(pid, "cpu");
        let read = |file: &str| fs::read_to_string(directory.join(file)).ok();
        let text = read("cpu.shares").or_else(|| read("cpu.weight")).expect("a share");
        text.trim().parse::<u64>().expect("a number")
    };
    let (boot, container) = (weight_of(pod.pid()), weight_of(container.pid()));
    assert!(boot >= 5 * container, "{boot} beside {container}");
}

/// Eight busy loops.
const LOOPS: &str = "for n in 1 2 3 4 5 6 7 8; do while :; do :; done & done; echo busy; wait";

/// The median of some execs, in milliseconds, beside eight busy loops in another container.
fn exec_beside_busy_loops(containerd: &Containerd, handler: &str, name: &str) -> Duration {
    let pod = containerd.try_pod_by(handler, name, |_| ()).expect("run a pod");
    let quiet = pod.shell("quiet", "sleep 1000");
    pod.shell("busy", LOOPS).wait_for_log("busy");
    let mut times: Vec<Duration> = (0..21)
        .map(|_| {
            let begin = Instant::now();
            quiet.ask("true");
            begin.elapsed()
        })
        .collect();
    times.sort();
    pod.stop().expect("stop the pod");
    times[times.len() / 2]
}

/// Both are measured in the same minute, by turns.
#[test]
fn a_busy_container_slows_execs_beside_it_no_more_than_under_runc() {
    let runc = "runtime_type = \"io.containerd.runc.v2\"";
    let containerd = Containerd::start_with_handler(Version::V2_1, "beside", runc);
    let measured: Vec<_> = (0..3)
        .map(|round| {
            let ours = exec_beside_busy_loops(&containerd, HANDLER, &format!("ours-{round}"));
            (ours, exec_beside_busy_loops(&containerd, "beside", &format!("runc-{round}")))
        })
        .collect();
    println!("ours and runc's: {measured:?}");
    assert!(measured.iter().any(|(ours, runcs)| ours <= runcs), "{measured:?}");
}

/// As when a hundred probes of the kubelet are due in the same moment, three times. How long they
/// take is for `ci/bench beside`; what is asked here is that each is answered, and that the
/// container that is probed obeys SIGTERM.
#[test]
fn a_hundred_execs_at_once_beside_busy_loops_are_all_answered() {
    let containerd = Containerd::start(Version::V2_1);
    let pod = containerd.pod("probed");
    let script = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";
    let probed = pod.shell("probed", script);
    pod.shell("busy", LOOPS).wait_for_log("busy");
    thread::scope(|scope| {
        for probe in 0..100 {
            let probed = &probed;
            scope.spawn(move || {
                for round in 0..3 {
                    let said = format!("{probe}, {round}");
                    assert_eq!(probed.ask(&format!("echo {said}")), said);
                }
            });
        }
    });
    probed.stop(Duration::from_secs(1000)).expect("stop it");
    assert_eq!(probed.wait().exit_code, 0, "it was not killed");
}
