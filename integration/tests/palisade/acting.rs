//! `palisade exec`, `kill`, `pause` and `resume`: by the shim alone, also without containerd.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Instant;

use integration::containerd::{Containerd, Version};
use integration::silent::Silent;
use integration::{host, on_each_containerd, wait};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{Ran, command};

on_each_containerd!(a_program_runs_as_the_containers_own_process_does);

fn in_namespace(containerd: &Containerd, args: &[&str]) -> Ran {
    let namespace = containerd.namespace();
    command(&[&["--namespace", &namespace], args].concat()).output().expect("run palisade").into()
}

fn a_program_runs_as_the_containers_own_process_does(containerd: Containerd) {
    let container = containerd
        .shell("web", "exec sleep 1000")
        .spec(|spec| {
            spec["process"]["user"] = serde_json::json!({"uid": 5, "gid": 6});
            spec["process"]["cwd"] = "/tmp".into();
            spec["process"]["env"].as_array_mut().unwrap().push("OF=spec".into());
        })
        .start();
    let script = "id -u; id -g; pwd; echo $OF $MORE; grep NoNewPrivs /proc/self/status >&2; exit 7";
    let run = |flags: &[&str]| {
        let args = [&["exec"], flags, &["web", "--", "sh", "-c", script]].concat();
        in_namespace(&containerd, &args)
    };
    let with = run(&[]);
    assert_eq!((with.code, with.out.as_str()), (Some(7), "5\n6\n/tmp\nspec\n"), "{with:?}");
    assert!(with.errors.starts_with("NoNewPrivs"), "{with:?}");
    // Without containerd as well.
    containerd.kill();
    let with = run(&["-u", "8:9", "-w", "/", "-e", "MORE=x"]);
    assert_eq!((with.code, with.out.as_str()), (Some(7), "8\n9\n/\nspec x\n"), "{with:?}");
    for (program, status) in
        [("/no/such", 127), ("no-such", 127), ("/etc", 126), ("/etc/passwd", 126)]
    {
        let ran = in_namespace(&containerd, &["exec", "web", program]);
        assert_eq!(ran.code, Some(status), "{ran:?}");
        assert!(ran.errors.contains(program), "{ran:?}");
    }
    let ran = in_namespace(&containerd, &["exec", "nobody", "true"]);
    assert_eq!(ran.code, Some(125), "{ran:?}");
    containerd.launch();
    drop(container);
}

#[test]
fn a_user_is_looked_up_in_the_container() {
    let containerd = Containerd::start(Version::V2_1);
    let script = "echo web:x:33:34:Web:/srv:/bin/sh >>/etc/passwd
        echo web:x:34: >>/etc/group; echo log:x:44:root,web >>/etc/group
        echo ready; exec sleep 1000";
    let container = containerd.shell("users", script).start();
    container.stdio().wait_for_output("ready");
    let of = |user: &str, script: &str| {
        in_namespace(&containerd, &["exec", "-u", user, "users", "sh", "-c", script])
    };
    for (user, wanted) in [
        ("web", "33 34 34 44 /srv\n"),
        ("33", "33 34 34 44 /srv\n"),
        ("web:log", "33 44 44 /srv\n"),
        ("web:7", "33 7 7 /srv\n"),
        ("8:log", "8 44 44 /\n"),
        ("8", "8 0 0 /\n"),
    ] {
        let ran = of(user, "echo $(id -u) $(id -g) $(id -G) $HOME");
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), wanted), "{user}: {ran:?}");
    }
    for (user, wanted) in [
        ("webs", "no such user in the container's /etc/passwd"),
        ("web:logs", "no group \"logs\" in the container's /etc/group"),
    ] {
        let ran = of(user, "true");
        assert_eq!(ran.code, Some(125), "{ran:?}");
        assert!(ran.errors.contains(wanted), "{ran:?}");
    }
    // The files are the container's: it may make anything of them.
    let hostile = [
        ("ln -sf /proc/1/root/etc/group /etc/passwd", "/etc/passwd"),
        ("rm /etc/passwd; mkfifo /etc/passwd", "is a Fifo; expected a regular file"),
        ("rm /etc/passwd; ln -s /dev/zero /etc/passwd", "is a CharacterDevice"),
        ("rm /etc/passwd; dd if=/dev/zero of=/etc/passwd bs=1M count=5", "more than 4 MiB"),
    ];
    for (make, wanted) in hostile {
        assert_eq!(of("0:0", make).code, Some(0), "{make}");
        let ran = of("web", "true");
        assert_eq!(ran.code, Some(125), "{make}: {ran:?}");
        assert!(ran.errors.contains(wanted), "{make}: {ran:?}");
        assert!(ran.errors.contains("--user UID:GID"), "{make}: {ran:?}");
    }
    drop(container);
}

/// The container's files may be on a file system that it serves itself. Whoever reads there waits
/// for it, and no signal ends that: so does a child, and the command goes its way.
#[test]
fn a_user_in_a_file_system_that_does_not_answer_is_not_waited_for() {
    let containerd = Containerd::start(Version::V2_1);
    let silent = Silent::mount(&containerd.directory().join("silent"));
    let source = containerd.directory().join("silent").display().to_string();
    let script = "ln -sf /srv/passwd /etc/passwd; echo ready; exec sleep 1000";
    let container = containerd
        .shell("served", script)
        .bind(&source, "/srv", &["bind", "rw"])
        .options(integration::container::options("userns = 'never'", ""))
        .start();
    container.stdio().wait_for_output("ready");
    // Without HOME the container's own side would look it up in there.
    let exec = |user: &str| {
        let args = ["exec", "-u", user, "-e", "HOME=/", "served", "echo", "ran"];
        in_namespace(&containerd, &args)
    };
    let ran = exec("web");
    assert_eq!(ran.code, Some(125), "{ran:?}");
    assert!(ran.errors.contains("/etc/passwd and /etc/group: no answer within 3"), "{ran:?}");
    assert!(ran.errors.contains("--user UID:GID"), "{ran:?}");
    let ran = exec("7:8");
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "ran\n"), "{ran:?}");
    // The child is there as long as the file system is, and then is gone.
    let is_child = |process: &host::HostProcess| process.args.iter().any(|arg| arg == "read-users");
    let children = || host::processes().into_iter().filter(is_child).count();
    assert_eq!(children(), 1, "it had to wait");
    drop(silent);
    wait::until("the child ends", || (children() == 0).then_some(()));
    drop(container);
}

/// As docker exec does. At the end of such an input, the program would wait for ever.
#[test]
fn a_terminal_for_an_input_that_is_none_is_refused() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.shell("piped", "exec sleep 1000").start();
    let run = |flags: &str| {
        let args = ["--namespace", &containerd.namespace(), "exec", flags, "piped", "cat"];
        let input = Stdio::from(fs::File::open("/dev/null").expect("open /dev/null"));
        let ran: Ran = command(&args).stdin(input).output().expect("run palisade").into();
        ran
    };
    let ran = run("-it");
    assert_eq!((ran.code, ran.out.as_str()), (Some(125), ""), "{ran:?}");
    assert!(ran.errors.contains("-i -t: the input of this command is not a terminal"), "{ran:?}");
    assert_eq!(container.processes().len(), 1, "nothing was started");
    assert_eq!(run("-i").code, Some(0));
}

/// The shim forgets it, and so the name can be had again, and no process stays.
#[test]
fn a_detached_program_runs_on_and_is_forgotten_when_it_ends() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.shell("later", "mkfifo /go; echo ready; exec sleep 1000").start();
    container.stdio().wait_for_output("ready");
    let script = "read line </go; echo $line >/proc/1/fd/1; exit 3";
    let ran = in_namespace(&containerd, &["exec", "--detach", "later", "sh", "-c", script]);
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""), "{ran:?}");
    let name = ran.out.trim();
    assert!(name.starts_with("palisade:"), "{ran:?}");
    assert_eq!(container.processes().len(), 2);
    containerd.kill();
    let signal =
        |signal: &str| in_namespace(&containerd, &["kill", "later", signal, "--exec-id", name]);
    // It is there by its name.
    assert_eq!(signal("CONT").code, Some(0));
    let go = in_namespace(&containerd, &["exec", "later", "sh", "-c", "echo went >/go"]);
    assert_eq!(go.code, Some(0), "{go:?}");
    container.stdio().wait_for_output("went");
    let gone = || {
        let ran = signal("CONT");
        ran.errors.contains("does not exist").then_some(ran)
    };
    assert_eq!(wait::until("it is forgotten", gone).code, Some(3));
    // What does not start leaves nothing either.
    let ran = in_namespace(&containerd, &["exec", "-d", "later", "/no/such"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(127), ""), "{ran:?}");
    containerd.launch();
    assert_eq!(container.processes().len(), 1);
    // One that runs ends with its container.
    let ran = in_namespace(&containerd, &["exec", "-d", "later", "sleep", "1001"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    drop(container);
}

#[test]
fn input_goes_in_to_its_end_and_output_comes_out_whole() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.shell("pipe", "exec sleep 1000").start();
    let namespace = containerd.namespace();
    let mut child = command(&["--namespace", &namespace, "exec", "-i", "pipe", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run palisade");
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&input[..10]).expect("feed it");
    let mut first = [0; 10];
    child.stdout.as_mut().unwrap().read_exact(&mut first).expect("it comes out");
    let given = input[10..].to_owned();
    let feed = std::thread::spawn(move || stdin.write_all(&given));
    let own = format!(".exec-palisade:{}:", child.id());
    let fifos = || {
        let entries = fs::read_dir("/run/palisade").expect("read the state").flatten();
        entries.filter(|e| e.file_name().to_string_lossy().starts_with(&own)).count()
    };
    assert_eq!(fifos(), 1);
    let output = child.wait_with_output().expect("wait for palisade");
    assert_eq!(fifos(), 0);
    feed.join().unwrap().expect("feed it");
    assert_eq!(output.status.code(), Some(0));
    assert!(
        first == input[..10] && output.stdout == input[10..],
        "{} bytes came",
        output.stdout.len()
    );
    drop(container);
}

#[test]
fn a_terminal_has_the_size_of_the_commands_and_is_set_back() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.shell("tty", "exec sleep 1000").start();
    let size = nix::pty::Winsize { ws_row: 37, ws_col: 91, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).expect("make a terminal");
    let before = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    let namespace = containerd.namespace();
    let script = "stty size; tty; read line; echo got $line; exit 3";
    let mut child = command(&["--namespace", &namespace, "exec", "-it", "tty", "sh", "-c", script])
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .expect("run palisade");
    let mut seen = String::new();
    let mut read_until = |wanted: &str| {
        while !seen.contains(wanted) {
            let mut bytes = [0; 1024];
            let length = nix::unistd::read(pty.master.as_fd(), &mut bytes).expect("read");
            seen += &String::from_utf8_lossy(&bytes[..length]);
        }
    };
    read_until("37 91");
    read_until("/dev/pts/");
    nix::unistd::write(&pty.master, b"hello\r").unwrap();
    read_until("got hello");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let after = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    assert_eq!(before.local_flags, after.local_flags);
    drop(container);
}

/// Ctrl-C, and a terminal or a pipe that is closed, end the program: nothing of it stays.
#[test]
fn a_command_that_is_ended_leaves_no_process_and_no_exec() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.shell("end", "exec sleep 1000").start();
    let namespace = containerd.namespace();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let script = "echo begun; exec sleep 1001";
        let mut child = command(&["--namespace", &namespace, "exec", "end", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("run palisade");
        let mut begun = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut begun).expect("it begins");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(128 + signal as i32));
        assert_eq!(container.processes().len(), 1, "{signal}");
    }
    // The reader goes.
    let mut child = command(&["--namespace", &namespace, "exec", "end", "yes"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("run palisade");
    drop(child.stdout.take());
    child.wait().unwrap();
    assert_eq!(container.processes().len(), 1);
    assert_eq!(host::children(container.pid()).len(), 0);
}

#[test]
fn kill_pause_and_resume_need_no_containerd() {
    let containerd = Containerd::start(Version::V2_1);
    let script = "trap 'echo hung' HUP; while :; do sleep 0.05; done";
    let container = containerd.shell("act", script).start();
    let exec = |script: &str| in_namespace(&containerd, &["exec", "act", "sh", "-c", script]);
    assert_eq!(exec("true").code, Some(0));
    containerd.kill();
    let does = |args: &[&str]| {
        let ran = in_namespace(&containerd, args);
        assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""), "{args:?}");
    };
    does(&["pause", "act"]);
    let ran = exec("true");
    assert_eq!(ran.code, Some(125), "{ran:?}");
    assert!(ran.errors.contains("paused"), "{ran:?}");
    does(&["resume", "act"]);
    assert_eq!(exec("true").code, Some(0));
    let ran = in_namespace(&containerd, &["resume", "act"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let pid = container.pid();
    does(&["kill", "act", "HUP"]);
    container.stdio().wait_for_output("hung");
    assert!(host::process(pid).is_some());
    does(&["kill", "act", "9", "--all"]);
    wait::until("the container ends", || host::process(pid).is_none().then_some(()));
    for (args, wanted) in [
        (&["kill", "act", "NONSENSE"][..], "expected a name such as TERM"),
        (&["kill", "act", "9", "--all", "--exec-id", "x"], "cannot be used with"),
        (&["exec", "--user", "1:", "act", "true"], "expected USER"),
        (&["exec", "-dt", "act", "true"], "cannot be used with"),
    ] {
        let ran = in_namespace(&containerd, args);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.errors.contains(wanted), "{ran:?}");
    }
    containerd.launch();
}

/// Returns the PIDs of the shim and of boot.
fn processes_of(containerd: &Containerd, id: &str) -> [i32; 2] {
    let path = format!("/run/palisade/{}/{id}/state.json", containerd.namespace());
    let state: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    ["shim", "boot"].map(|who| state[who]["pid"].as_i64().unwrap() as i32)
}

#[test]
fn a_stopped_shim_or_sandbox_process_is_named_within_the_bound() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.shell("stop", "exec sleep 1000").start();
    let [shim, boot] = processes_of(&containerd, "stop");
    for (pid, verbs, who) in [
        (shim, &["exec", "kill", "pause", "resume"][..], "the shim of the pod stop"),
        (boot, &["exec"][..], "the sandbox process of the pod stop"),
    ] {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        for verb in verbs {
            let begun = Instant::now();
            let command = [&[*verb, "stop"][..], if *verb == "exec" { &["true"] } else { &[] }];
            let ran = in_namespace(&containerd, &command.concat());
            assert_eq!(ran.code, Some(if *verb == "exec" { 125 } else { 4 }), "{ran:?}");
            assert!(ran.errors.contains(who), "{verb}: {ran:?}");
            assert!(ran.errors.contains(&pid.to_string()), "{verb}: {ran:?}");
            assert!(begun.elapsed() < wait::patience(12), "{verb} took {:?}", begun.elapsed());
        }
        kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    }
    let ran = in_namespace(&containerd, &["exec", "stop", "echo", "on"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "on\n"), "{ran:?}");
    drop(container);
}
