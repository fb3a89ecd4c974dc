//! What the threads of a pod do at one moment.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use integration::container::Container;
use integration::containerd::{Containerd, Version};
use integration::{host, image, on_each_containerd, sandbox, spec, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::profiles::hot;
use crate::{Ran, command, palisade};

on_each_containerd!(
    a_hang_is_explained_and_nothing_is_disturbed,
    one_container_of_two_is_looked_at,
    a_pod_that_is_stopped_or_lost_its_shim_is_looked_at,
);

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a PID"), signal).expect("send a signal");
}

/// Looks at a container or a pod, with JSON as its output.
fn stacks(containerd: &Containerd, args: &[&str]) -> (Ran, Value) {
    let namespace = containerd.namespace();
    let first = ["--namespace", &namespace, "--format", "json", "debug", "stacks"];
    let ran = palisade(&[&first, args].concat());
    let document = serde_json::from_str(&ran.out).unwrap_or(Value::Null);
    (ran, document)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// All threads of a part of the pod: `container`, `sandbox` or `shim`.
fn of_part<'a>(document: &'a Value, part: &str) -> Vec<&'a Value> {
    let processes = list(document, "processes").iter().filter(|process| process["part"] == part);
    processes.flat_map(|process| list(process, "threads")).collect()
}

fn has(thread: &Value, function: &str) -> bool {
    let named = |frame: &Value| frame["function"].as_str().is_some_and(|n| n.contains(function));
    list(thread, "user").iter().any(named)
}

/// Looks until a thread of this name is somewhere below a function, and returns the thread.
fn until_in(containerd: &Containerd, id: &str, name: &str, function: &str) -> Value {
    wait::until("the thread is there", || {
        let (ran, document) = stacks(containerd, &[id]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let threads = of_part(&document, "container");
        threads.into_iter().find(|t| t["name"] == name && has(t, function)).cloned()
    })
}

fn text<'a>(thread: &'a Value, key: &str) -> &'a str {
    thread[key].as_str().unwrap_or_else(|| panic!("no {key} in {thread}"))
}

fn a_hang_is_explained_and_nothing_is_disturbed(containerd: Containerd) {
    let container = hot(&containerd, "hangs", "hang");
    let main = until_in(&containerd, "hangs", "hot", "wants_the_lock");
    until_in(&containerd, "hangs", "watcher", "watches_a_pipe");
    let switches = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", container.pid())).expect("threads");
        let ids = tasks.flatten().map(|task| task.file_name().to_string_lossy().into_owned());
        let of = |id: String| host::status(id.parse().expect("an ID"), "voluntary_ctxt_switches");
        ids.map(of).collect::<Vec<_>>()
    };
    let before = switches();
    let (ran, document) = stacks(&containerd, &["hangs"]);
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""));
    assert_eq!((&document["pod"], &document["complete"]), (&"hangs".into(), &true.into()));
    assert_eq!(switches(), before, "no thread was woken");

    // The lock, by its address, with what is in it.
    assert!(text(&main, "call").starts_with("futex(0x"), "{main}");
    assert!(text(&main, "call").contains("FUTEX_WAIT"), "{main}");
    let address = text(&main, "call").split(['(', '[']).nth(1).expect("an address");
    assert_eq!(text(&main, "waits_for"), format!("the lock or condition at {address}"));
    assert_eq!((text(&main, "waits"), text(&main, "state")), ("lock", "S"));
    assert!(text(&main, "wchan").contains("futex"), "{main}");
    assert!(list(&main, "kernel").iter().any(|f| f == "do_futex"), "{main}");
    assert!(has(&main, "hot::main"), "to the beginning: {main}");
    assert!(main["ends_early"].is_null(), "{main}");
    let line = |frame: &Value| frame["line"].as_str().is_some_and(|line| line.contains("hot.rs:"));
    assert!(list(&main, "user").iter().any(line), "debug information: {main}");

    // Who has it, and what that thread waits for.
    let holder = until_in(&containerd, "hangs", "holder", "reads_a_pipe");
    let file = text(&holder, "call").strip_prefix("read(").and_then(|rest| rest.split('<').next());
    let file: i32 = file.and_then(|file| file.parse().ok()).expect("a descriptor");
    let link = fs::read_link(format!("/proc/{}/fd/{file}", container.pid())).expect("a pipe");
    let link = link.to_str().expect("ASCII");
    assert_eq!(text(&holder, "waits_for"), format!("descriptor {file} ({link})"));
    assert!(text(&holder, "call").contains(&format!("<{link}>")), "{holder}");

    // What is watched, by a call that an interruption would end, and the program with it.
    let watcher = until_in(&containerd, "hangs", "watcher", "watches_a_pipe");
    assert!(text(&watcher, "call").starts_with("epoll_"), "{watcher}");
    assert!(text(&watcher, "waits_for").contains("(pipe:["), "{watcher}");

    // The same for people, with the sandbox process and the shim.
    let namespace = containerd.namespace();
    let shown = palisade(&["-n", &namespace, "debug", "stacks", "hangs"]);
    for wanted in
        ["wants_the_lock", "waits for the lock or condition at 0x", "the shim:", "[kernel]"]
    {
        assert!(shown.out.contains(wanted), "{wanted}: {}", shown.out);
    }
    for part in ["sandbox", "shim"] {
        let threads = of_part(&document, part);
        let named =
            |frame: &Value| frame["function"].as_str().is_some_and(|n| !n.starts_with("0x"));
        assert!(
            threads.iter().any(|thread| list(thread, "user").iter().any(named)),
            "{part}: {}",
            ran.out
        );
    }
    // One process, and one that is none of the pod's.
    let (ran, one) = stacks(&containerd, &["hangs", "--pid", &container.pid().to_string()]);
    assert_eq!((ran.code, list(&one, "processes").len()), (Some(0), 1), "{ran:?}");
    let (ran, _) = stacks(&containerd, &["hangs", "--pid", "1"]);
    assert!(ran.code == Some(3) && ran.errors.contains("--pid 1"), "{ran:?}");
    let (ran, _) = stacks(&containerd, &["hangs", "--pid", "0"]);
    assert!(ran.code == Some(2) && ran.errors.contains("--pid"), "{ran:?}");
}

fn one_container_of_two_is_looked_at(containerd: Containerd) {
    let name = format!("stacks-{}", std::process::id());
    let pod = containerd.pod(&name);
    let _containers = (pod.shell("one", "exec sleep 1111"), pod.shell("two", "exec sleep 2222"));
    let commands = |id: &str| {
        let document = crate::json(&["debug", "stacks", id]);
        let processes = list(&document, "processes").iter();
        let shown = processes.filter(|process| !list(process, "threads").is_empty());
        shown
            .map(|p| (text(p, "part").to_owned(), text(p, "command").to_owned()))
            .collect::<Vec<_>>()
    };
    let of_container = |command: &str| ("container".to_owned(), command.to_owned());
    wait::until("both sleep", || {
        let all = commands(&name);
        let both = ["sleep 1111", "sleep 2222"].map(of_container);
        both.iter().all(|one| all.contains(one)).then_some(())
    });
    assert_eq!(commands(&format!("{name}/one")), [of_container("sleep 1111")]);
    let parts: Vec<String> = commands(&name).into_iter().map(|(part, _)| part).collect();
    assert!(
        ["sandbox", "shim"].iter().all(|part| parts.contains(&(*part).to_owned())),
        "{parts:?}"
    );
}

fn a_pod_that_is_stopped_or_lost_its_shim_is_looked_at(containerd: Containerd) {
    let container = containerd.container("silent", ["sleep", "1000"]).start();
    let shim = container.shim();
    let boot = sandbox::boot_of(shim).pid;
    // A pause is no fault of the program's.
    container.pause().expect("pause it");
    let (ran, document) = stacks(&containerd, &["silent"]);
    let paused = |document: &Value| {
        let all = list(document, "processes");
        all.iter().find(|process| process["part"] == "container").map(|one| one["paused"] == true)
    };
    assert_eq!(paused(&document), Some(true), "{ran:?}");
    container.resume().expect("resume it");
    assert_eq!(paused(&stacks(&containerd, &["silent"]).1), Some(false));

    for pid in [boot, shim] {
        signal(pid, Signal::STOP);
    }
    let (ran, document) = wait::until("both stand still", || {
        let (ran, document) = stacks(&containerd, &["silent"]);
        let parts = [of_part(&document, "sandbox"), of_part(&document, "shim")].concat();
        let stopped = parts.iter().filter(|thread| thread["state"] == "T").count();
        (stopped >= 2).then_some((ran, document))
    });
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""));
    let stopped = of_part(&document, "sandbox")[0];
    assert!(text(stopped, "waits_for").contains("SIGCONT"), "{stopped}");
    assert!(!list(stopped, "user").is_empty(), "{stopped}");
    let sleeps = |document: &Value| {
        let all = of_part(document, "container");
        all.iter().any(|thread| {
            thread["call"]
                .as_str()
                .is_some_and(|call| call.contains("nanosleep(") && call.contains("1000s"))
        })
    };
    assert!(sleeps(&document), "{}", ran.out);
    // containerd would see to it that a dead shim's pod is cleaned up.
    containerd.kill();
    signal(shim, Signal::KILL);
    wait::until("the shim is gone", || {
        let (ran, document) = stacks(&containerd, &["silent"]);
        // The pod ends with it.
        assert!(ran.code == Some(0) && document["complete"] == true, "{ran:?}");
        ran.errors.contains("the shim of silent is gone").then_some(())
    });
    containerd.launch();
}

#[test]
fn a_busy_thread_is_sampled() {
    let containerd = Containerd::start(Version::V2_1);
    let _hot = hot(&containerd, "spin", "spin");
    let thread = until_in(&containerd, "spin", "hot", "hot_function");
    assert_eq!(thread["state"], "R");
    assert!(has(&thread, "hot::main"), "to the beginning: {thread}");
    assert!(thread["call"].is_null() && thread["ends_early"].is_null(), "{thread}");
}

#[test]
fn many_threads_at_one_place_are_shown_together() {
    let containerd = Containerd::start(Version::V2_1);
    let _hot = hot(&containerd, "crowd", "crowd");
    wait::until("all wait", || {
        let (ran, document) = stacks(&containerd, &["crowd"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let threads = of_part(&document, "container");
        let waiting = threads.iter().filter(|thread| has(thread, "waits_at_the_gate")).count();
        (waiting == 501).then_some(())
    });
    let namespace = containerd.namespace();
    let shown = palisade(&["-n", &namespace, "debug", "stacks", "crowd"]);
    assert!(shown.out.contains("500 threads, waiting: \"crowd\""), "{}", shown.out);
    assert!(shown.out.contains(" and 488 more"), "{}", shown.out);
    assert!(shown.out.lines().count() < 200, "{}", shown.out);
}

/// Code that no file has, called by a program without frame pointers.
#[test]
fn functions_of_a_jit_have_the_names_of_its_map() {
    let containerd = Containerd::start(Version::V2_1);
    let container = hot(&containerd, "jit", "jit");
    let thread = until_in(&containerd, "jit", "hot", "LazyCompile:~compiled /app.js:1");
    assert_eq!(thread["user"][0]["file"], "[jit]");
    assert!(text(&thread, "call").starts_with("pause("), "{thread}");
    assert!(has(&thread, "calls_what_was_compiled") && has(&thread, "hot::main"), "{thread}");
    // A map that is none is not waited for, and leads nowhere.
    let map = "rm /tmp/perf-1.map; mkfifo /tmp/perf-1.map";
    assert_eq!(container.exec_shell("fifo", map).0, 0);
    let thread = until_in(&containerd, "jit", "hot", "calls_what_was_compiled");
    assert!(!has(&thread, "LazyCompile"), "{thread}");
}

/// Of a program without symbols, they are taken from where a package installs them in the container.
#[test]
fn debug_information_is_found_in_the_container() {
    let containerd = Containerd::start(Version::V2_1);
    let directory = containerd.directory();
    let (stripped, debug) = (directory.join("stripped"), directory.join("debug"));
    strip(&stripped, &debug);
    let start = |id: &str, with: Option<&Path>| {
        let new = containerd.container(id, ["/hot", "hang"]);
        new.spec(|spec| {
            spec::add_bind(spec, stripped.to_str().expect("ASCII"), "/hot", &["bind", "ro"]);
            if let Some(with) = with {
                let with = with.to_str().expect("ASCII");
                spec::add_bind(spec, with, "/usr/lib/debug", &["rbind", "ro"]);
            }
        })
        .start()
    };
    let (_with, without) = (start("with", Some(&debug)), start("without", None));
    let thread = until_in(&containerd, "with", "holder", "reads_a_pipe");
    let line = |frame: &Value| frame["line"].as_str().is_some_and(|line| line.contains("hot.rs:"));
    assert!(list(&thread, "user").iter().any(line), "{thread}");
    // Without it the stack is there, but has no names.
    let pid = without.pid().to_string();
    wait::until("it has read its pipe", || {
        let (_, document) = stacks(&containerd, &["without", "--pid", &pid]);
        let threads = of_part(&document, "container");
        let holder = *threads.iter().find(|thread| thread["name"] == "holder")?;
        text(holder, "call").starts_with("read(").then_some(())?;
        assert!(!has(holder, "reads_a_pipe"), "{holder}");
        assert!(list(holder, "user").len() > 3 && has(holder, "0x"), "{holder}");
        Some(())
    });
    // The same for profiles.
    let namespace = containerd.namespace();
    let profile = crate::json(&["-n", &namespace, "debug", "block-profile", "with", "-d", "10ms"]);
    assert!(profile["stacks"].is_array(), "{profile}");
}

/// Makes a copy of a program without symbols, and a folder of debug information with them.
fn strip(stripped: &Path, debug: &Path) {
    let program = image::sibling("hot");
    let run = |command: &mut Command| {
        let output = command.output().expect("binutils");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let notes = run(Command::new("readelf").arg("-n").arg(&program));
    let id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: "));
    let id = id.expect("a build ID").to_owned();
    let folder = debug.join(".build-id").join(&id[..2]);
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join(format!("{}.debug", &id[2..]));
    run(Command::new("objcopy").arg("--only-keep-debug").arg(&program).arg(file));
    run(Command::new("strip").arg("-o").arg(stripped).arg(&program));
}

#[test]
fn a_pod_that_ends_meanwhile_is_no_fault() {
    let containerd = Containerd::start(Version::V2_1);
    let namespace = containerd.namespace();
    let container: Container<'_> = hot(&containerd, "ends", "spin");
    let mut looking = command(&["-n", &namespace, "debug", "stacks", "ends"]);
    let looking = looking.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let looking = looking.expect("run palisade");
    let pid = i32::try_from(looking.id()).expect("a PID");
    // Some time of its work; what it has found by then is different each time.
    wait::until("it works", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.count();
        (threads > 1 || !Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    signal(pid, Signal::STOP);
    container.kill(9).expect("kill it");
    container.wait();
    signal(pid, Signal::CONT);
    let ran: Ran = looking.wait_with_output().expect("wait").into();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(!ran.errors.contains("panicked"), "{ran:?}");
    assert!(ran.out.contains("the shim:"), "{ran:?}");
}
