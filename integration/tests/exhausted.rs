//! What a machine has no more of. A request that needs it is refused in words, the pod lives on,
//! and nothing is left, which the end of each test checks.

use std::fs;

use containerd_client::types::v1::Status;
use integration::container::{Container, Exec, options};
use integration::containerd::Containerd;
use integration::sandbox::{boot_of, shim_of};
use integration::state_mount::StateMount;
use integration::stdio::Streams;
use integration::version::Version;
use integration::{on_each_containerd, spec, wait};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

on_each_containerd!(
    without_room_for_its_state_a_container_is_refused,
    a_shim_without_descriptors_refuses_execs_until_some_have_ended,
    a_shim_whose_limit_was_lowered_ends_what_runs,
    a_boot_without_descriptors_refuses_execs,
    a_pod_without_descriptors_refuses_a_container,
);

/// Wherever the room for the state ends.
fn without_room_for_its_state_a_container_is_refused(containerd: Containerd) {
    let state = StateMount::on(&containerd);
    let (mut refused, mut made) = (0, 0);
    for pages in 0..8 {
        state.fill_but(pages);
        let created = containerd.container(&format!("room-{pages}"), ["true"]).try_create();
        match created {
            Ok(container) => {
                made += 1;
                container.start().expect("start it");
                assert_eq!(container.wait().code, 0);
                assert_eq!(container.delete_task().expect("delete it"), 0);
            }
            Err(error) => {
                refused += 1;
                let words = error.message();
                assert!(words.contains("No space left on device"), "{pages} pages: {words}");
                assert!(words.contains("/run/palisade/"), "{pages} pages: {words}");
            }
        }
        state.empty();
    }
    assert!(refused > 0 && made > 0, "{refused} refused, {made} made");
    let (code, output) = containerd.shell("afterwards", "echo room").start().finish();
    assert_eq!((code, output.as_str()), (0, "room\n"));
    drop(state);
}

/// Sets both limits of open files of a process.
fn limit(pid: i32, files: u64) {
    let wanted = Rlimit { current: Some(files), maximum: Some(files) };
    prlimit(Pid::from_raw(pid), Resource::Nofile, wanted).expect("prlimit");
}

/// The time in which a process may open fewer files.
struct Lowered {
    pid: Option<Pid>,
    before: Rlimit,
}

impl Lowered {
    fn begin(pid: i32, files: u64) -> Self {
        let pid = Pid::from_raw(pid);
        let hard = getrlimit(Resource::Nofile).maximum;
        let wanted = Rlimit { current: Some(files), maximum: hard };
        Self { pid, before: prlimit(pid, Resource::Nofile, wanted).expect("prlimit") }
    }
}

impl Drop for Lowered {
    fn drop(&mut self) {
        let _ = prlimit(self.pid, Resource::Nofile, self.before);
    }
}

/// Returns the number of descriptors that a process has open.
fn open(pid: i32) -> u64 {
    let directory = fs::read_dir(format!("/proc/{pid}/fd")).expect("list the descriptors");
    directory.count() as u64
}

/// Returns a process whose spec names no limits.
fn unlimited(args: &[&str]) -> serde_json::Value {
    let mut process = spec::process(args);
    process["rlimits"] = serde_json::json!([]);
    process
}

/// Starts execs that stay, until one is refused. Returns them, and the words.
fn execs_until_refusal<'a>(container: &'a Container<'_>, name: &str) -> (Vec<Exec<'a>>, String) {
    let mut execs = Vec::new();
    loop {
        let id = format!("{name}-{}", execs.len());
        let exec = container.exec(&id, unlimited(&["sleep", "1000"]), Streams::Piped);
        let started = exec.and_then(|exec| exec.start().map(|()| exec));
        match started {
            Ok(exec) => execs.push(exec),
            Err(refused) => return (execs, refused.message().to_owned()),
        }
        assert!(execs.len() < 1000, "none is refused");
    }
}

fn names_the_limit(words: &str, shim: i32, limit: u64) {
    for part in
        ["RLIMIT_NOFILE", &format!("process {shim}, is {limit},"), "LimitNOFILE=", "prlimit"]
    {
        assert!(words.contains(part), "no {part:?} in: {words}");
    }
}

/// Checks that requests are answered: what needs no process, and what ends one.
fn all_but_execs_work(container: &Container<'_>, execs: &mut Vec<Exec<'_>>) {
    assert_eq!(container.status(), Status::Running);
    wait::until("a refused exec has ended", || {
        (container.processes().len() == execs.len() + 1).then_some(())
    });
    assert_eq!(container.metrics().id, container.id);
    container.update(&serde_json::json!({ "cpu": { "shares": 512 } })).expect("update it");
    container.pause().expect("pause it");
    container.resume().expect("resume it");
    for _ in 0..execs.len().min(4) {
        let Some(exec) = execs.pop() else { return };
        exec.kill(9).expect("kill an exec");
        assert_eq!(exec.wait().code, 137);
        assert_eq!(exec.delete().expect("delete it"), 137);
    }
}

fn a_shim_without_descriptors_refuses_execs_until_some_have_ended(containerd: Containerd) {
    for files in [64, 100, 1024] {
        let id = format!("with-{files}");
        let container = containerd.container(&id, ["sleep", "1000"]).start();
        let (shim, boot) = (container.shim(), boot_of(container.shim()).pid);
        let before = open(shim);
        limit(shim, files);
        for round in ["first", "second"] {
            let (mut execs, refused) = execs_until_refusal(&container, &format!("{id}-{round}"));
            assert!(!execs.is_empty(), "{files}: {refused}");
            names_the_limit(&refused, shim, files);
            all_but_execs_work(&container, &mut execs);
            assert_eq!(container.exec_shell(&format!("{id}-{round}"), "echo room").1, "room\n");
            for exec in &execs {
                exec.kill(9).expect("kill an exec");
            }
            for exec in execs {
                assert_eq!(exec.wait().code, 137);
                assert_eq!(exec.delete().expect("delete it"), 137);
            }
        }
        assert_eq!(boot_of(shim).pid, boot, "{files}: another boot");
        assert!(open(shim) <= before + 4, "{files}: {before} before, {} now", open(shim));
        container.kill(9).expect("kill it");
        assert_eq!(container.wait().code, 137);
        assert_eq!(container.delete_task().expect("delete it"), 137);
    }
}

/// However few are left: what ends processes works, and what makes them again afterwards.
fn a_shim_whose_limit_was_lowered_ends_what_runs(containerd: Containerd) {
    for spare in 0..10 {
        let id = format!("spare-{spare}");
        let container = containerd.container(&id, ["sleep", "1000"]).start();
        let shim = container.shim();
        let exec = container.exec(
            &format!("{id}-one"),
            spec::process(&["sleep", "1000"]),
            Streams::Captured,
        );
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        let lowered = Lowered::begin(shim, open(shim) + spare);
        let (execs, refused) = execs_until_refusal(&container, &id);
        assert!(execs.is_empty(), "{spare} spare: {} were made", execs.len());
        assert!(refused.contains("RLIMIT_NOFILE"), "{spare} spare: {refused}");
        let mut execs = vec![exec];
        all_but_execs_work(&container, &mut execs);
        if spare % 2 == 0 {
            drop(lowered);
            assert_eq!(container.exec_shell(&format!("{id}-two"), "echo room").1, "room\n");
        }
        container.kill_all(9).expect("kill it");
        assert_eq!(container.wait().code, 137);
        assert_eq!(container.delete_task().expect("delete it"), 137);
    }
}

/// Requests travel in a memfd, if they are large.
fn a_boot_without_descriptors_refuses_execs(containerd: Containerd) {
    // Where boot has a user of its own, only CAP_SYS_RESOURCE lowers its limit.
    let container = containerd.container("few", ["sleep", "1000"]);
    let container = container.options(options("userns = 'never'", "")).start();
    let boot = boot_of(container.shim()).pid;
    let large = format!("LARGE={}", "x".repeat(100_000));
    for spare in 0..12 {
        let lowered = Lowered::begin(boot, open(boot) + spare);
        for environment in ["SMALL=x", &large] {
            let id = format!("exec-{spare}-{}", environment.len());
            let mut process = spec::process(&["sh", "-c", "echo room"]);
            process["env"] = serde_json::json!(["PATH=/bin", environment]);
            let exec = container.exec(&id, process, Streams::Piped).expect("add an exec");
            match exec.start() {
                Ok(()) => {
                    assert_eq!(exec.wait().code, 0, "{spare} spare");
                    assert_eq!(exec.stdio().output(), "room\n", "{spare} spare");
                }
                Err(refused) => {
                    let words = refused.message();
                    assert!(words.contains("Too many open files"), "{spare} spare: {words}");
                    assert!(words.contains("RLIMIT_NOFILE"), "{spare} spare: {words}");
                    assert!(exec.wait().code != 0);
                }
            }
        }
        assert_eq!(container.status(), Status::Running, "{spare} spare");
        drop(lowered);
        assert_eq!(container.exec_shell(&format!("look-{spare}"), "echo room").1, "room\n");
    }
    assert_eq!(boot_of(container.shim()).pid, boot, "another boot");
    wait::until("a refused exec has ended", || (container.processes().len() == 1).then_some(()));
}

/// The gofer has the limit of its shim.
fn a_pod_without_descriptors_refuses_a_container(containerd: Containerd) {
    let pod = containerd.pod("few");
    let first = pod.shell("lives", "sleep 1000");
    let shim = shim_of(first.pid());
    let (mut made, mut refused) = (0, 0);
    for spare in (0..48).step_by(4) {
        let lowered = Lowered::begin(shim, open(shim) + spare);
        let container = pod.create(&format!("few-{spare}"), 0, "echo room", |_| ());
        let container = container.expect("create a container");
        match container.start() {
            Ok(()) => {
                made += 1;
                assert_eq!(container.wait().exit_code, 0, "{spare} spare");
            }
            Err(error) => {
                refused += 1;
                let words = error.message();
                assert!(words.contains("RLIMIT_NOFILE"), "{spare} spare: {words}");
            }
        }
        drop(lowered);
        assert_eq!(first.ask("echo alive"), "alive", "{spare} spare");
    }
    assert!(made > 0 && refused > 0, "{made} made, {refused} refused");
    assert!(pod.is_ready());
}

/// The shim takes what containerd may have, and gives its pod what containerd has.
#[test]
fn a_pod_has_the_limits_of_its_containerd() {
    let containerd = Containerd::start_by(Version::V2_1, "ulimit -Sn 1000; ulimit -Hn 4000; exec");
    let script = "ulimit -Sn; ulimit -Hn; sleep 1000";
    let seen = |hook: &str| containerd.directory().join(hook);
    let hook = |name: &str| {
        let write = format!("ulimit -Sn > {}", seen(name).display());
        serde_json::json!([{ "path": "/bin/sh", "args": ["sh", "-c", write] }])
    };
    let container = containerd.shell("many", script).spec(|s| {
        s["process"]["rlimits"] = serde_json::json!([]);
        s["hooks"] = ["createRuntime", "createContainer"]
            .map(|name| (name.to_owned(), hook(name)))
            .into_iter()
            .collect();
    });
    let container = container.start();
    for name in ["createRuntime", "createContainer"] {
        assert_eq!(fs::read_to_string(seen(name)).expect("what the hook saw"), "1000\n", "{name}");
    }
    container.stdio().wait_for_output("1000\n4000\n");
    let process = unlimited(&["sh", "-c", "ulimit -Sn; ulimit -Hn"]);
    let exec = container.exec("look", process, Streams::Captured).expect("add an exec");
    exec.start().expect("start it");
    assert_eq!(exec.wait().code, 0);
    assert_eq!(exec.stdio().output(), "1000\n4000\n");
    for pid in [container.shim(), boot_of(container.shim()).pid] {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("read limits");
        let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("files");
        let words: Vec<&str> = files.split_whitespace().collect();
        assert_eq!(words[3..5], ["4000", "4000"], "{files}");
    }
}

/// With a low soft limit, which the shim raises, and with low limits.
#[test]
fn a_containerd_with_few_files_gets_refusals_too() {
    for (starter, files) in [
        ("ulimit -Sn 64; ulimit -Hn 1024; exec", 1024),
        ("ulimit -Sn 100; ulimit -Hn 100; exec", 100),
        ("ulimit -Sn 64; ulimit -Hn 64; exec", 64),
    ] {
        let containerd = Containerd::start_by(Version::V2_1, starter);
        let container = containerd.container("few", ["sleep", "1000"]).spec(|s| {
            s["process"]["rlimits"] = serde_json::json!([]);
        });
        let container = container.start();
        let shim = container.shim();
        let (mut execs, refused) = execs_until_refusal(&container, "few");
        assert!(!execs.is_empty(), "{starter}: {refused}");
        names_the_limit(&refused, shim, files);
        all_but_execs_work(&container, &mut execs);
        for exec in execs {
            exec.kill(9).expect("kill an exec");
            assert_eq!(exec.wait().code, 137);
        }
        let exec = container.exec("after", unlimited(&["echo", "room"]), Streams::Captured);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        assert_eq!((exec.wait().code, exec.stdio().output().as_str()), (0, "room\n"));
    }
}
