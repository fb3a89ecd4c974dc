//! The saving of containers: what is in the folder afterwards, and that the container goes on as it
//! was, however it ends.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_client::types::v1::Status;
use integration::checkpoint::{Options, allowed};
use integration::container::{Container, NewContainer, options, pidfd};
use integration::containerd::{Containerd, Version};
use integration::events::{Subscriber, TaskEvent};
use integration::stdio::Streams;
use integration::{host, on_each_containerd, spec, wait};

on_each_containerd!(a_checkpoint_is_an_image_of_containerd_s);

const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/new; \
                     mv /dev/shm/new /dev/shm/now; sleep 0.01; done";

/// Prepares a container that counts, in a file of its tmpfs, and prints nothing.
fn counter<'a>(containerd: &'a Containerd, id: &str) -> NewContainer<'a> {
    containerd.shell(id, COUNT).options(options(&allowed(""), ""))
}

/// Returns the number that a counter has come to, and waits for the first.
fn count(container: &Container<'_>) -> u64 {
    wait::until("the counter counts", || count_now(container))
}

fn count_now(container: &Container<'_>) -> Option<u64> {
    let path = format!("/proc/{}/root/dev/shm/now", container.pid());
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn counts_on(container: &Container<'_>) {
    let before = count(container);
    wait::until("the counter counts on", || (count(container) > before).then_some(()));
}

fn folder(containerd: &Containerd, name: &str) -> PathBuf {
    containerd.directory().join("checkpoints").join(name)
}

/// Returns the names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("read the folder");
        assert!(entry.file_type().expect("its type").is_file(), "{:?} is no file", entry.path());
        entry.file_name().into_string().expect("a plain name")
    };
    let mut names: Vec<_> = fs::read_dir(folder).expect("read the folder").map(name).collect();
    names.sort_unstable();
    names
}

/// Checks that an image is flat and whole, and returns Palisade's notes.
fn image(folder: &Path) -> serde_json::Value {
    let names = names(folder);
    for needed in ["inventory.img", "pstree.img", "core-1.img", "files.img", "palisade.json"] {
        assert!(names.iter().any(|name| name == needed), "no {needed} in {names:?}");
    }
    assert!(names.iter().all(|name| !name.ends_with(".new")), "{names:?}");
    let notes = fs::read_to_string(folder.join("palisade.json")).expect("read the notes");
    let notes: serde_json::Value = serde_json::from_str(&notes).expect("JSON");
    for tmpfs in notes["tmpfs"].as_array().expect("a list") {
        let file = tmpfs["file"].as_str().expect("a name");
        assert!(names.iter().any(|name| name == file), "no {file} in {names:?}");
    }
    notes
}

#[test]
fn a_running_container_is_saved_and_counts_on() {
    let containerd = Containerd::start(Version::V2_1);
    let events = Subscriber::new(&containerd);
    let container = counter(&containerd, "counter").start();
    counts_on(&container);
    let folder = folder(&containerd, "counter");
    container.checkpoint_to(&folder, &Options::default()).expect("save it");
    assert_eq!(container.status(), Status::Running);
    counts_on(&container);
    let notes = image(&folder);
    assert_eq!(notes["container"], "counter");
    let mounts: Vec<_> = notes["tmpfs"].as_array().expect("a list").iter().collect();
    assert!(mounts.iter().any(|tmpfs| tmpfs["destination"] == "/dev/shm"), "{notes}");
    let path = folder.display().to_string();
    events.until(|event| *event == TaskEvent::Checkpointed("counter".into(), path.clone()));
    // Once more, into another folder, and never into the same.
    let again = folder.with_file_name("again");
    container.checkpoint_to(&again, &Options::default()).expect("save it again");
    image(&again);
    let refused = container.checkpoint_to(&again, &Options::default()).expect_err("it is there");
    assert!(refused.message().contains("has a checkpoint in it already"), "{refused}");
    image(&again);
    counts_on(&container);
    assert_eq!(container.exec_shell("look", "echo unharmed").1, "unharmed\n");
}

#[test]
fn a_paused_container_is_saved_and_stays_paused() {
    let containerd = Containerd::start(Version::V2_1);
    let container = counter(&containerd, "paused").start();
    counts_on(&container);
    container.pause().expect("pause it");
    let stood_at = count(&container);
    let folder = folder(&containerd, "paused");
    container.checkpoint_to(&folder, &Options::default()).expect("save it");
    image(&folder);
    assert_eq!(container.status(), Status::Paused);
    assert_eq!(count(&container), stood_at, "it ran meanwhile");
    container.resume().expect("resume it");
    counts_on(&container);
}

#[test]
fn a_container_ends_with_its_checkpoint() {
    let containerd = Containerd::start(Version::V2_1);
    let events = Subscriber::new(&containerd);
    let container = counter(&containerd, "ending").start();
    counts_on(&container);
    let folder = folder(&containerd, "ending");
    let wanted = Options { exit: true, ..Options::default() };
    container.checkpoint_to(&folder, &wanted).expect("save it");
    image(&folder);
    assert_eq!(container.wait().code, 137);
    let seen = events.until(|event| matches!(event, TaskEvent::Exit(..)));
    let saved = |event: &TaskEvent| matches!(event, TaskEvent::Checkpointed(..));
    assert!(seen.iter().any(saved), "{seen:?}");
}

/// Without a folder of the client's, containerd takes the files into its content store, flat.
fn a_checkpoint_is_an_image_of_containerd_s(containerd: Containerd) {
    let container = counter(&containerd, "counter").start();
    counts_on(&container);
    let made = container.checkpoint_image(None).expect("save it");
    assert!(made.size > 4096, "{made:?}");
    counts_on(&container);
}

/// A file system that is soon full, which is taken away on drop.
struct Full(PathBuf);

impl Full {
    fn mount(place: PathBuf) -> Self {
        fs::create_dir_all(&place).expect("make a folder");
        let (kind, flags) = (Some("tmpfs"), nix::mount::MsFlags::empty());
        nix::mount::mount(Some("tmpfs"), &place, kind, flags, Some("size=64k")).expect("mount it");
        Self(place)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_checkpoint_that_fails_leaves_the_container_as_it_was() {
    let containerd = Containerd::start(Version::V2_1);
    let container = counter(&containerd, "unlucky").start();
    counts_on(&container);
    let full = Full::mount(folder(&containerd, "full"));
    let work_path = folder(&containerd, "work").display().to_string();
    let wanted = Options { work_path: work_path.clone(), ..Options::default() };
    let failed = container.checkpoint_to(&full.0, &wanted).expect_err("there is no room");
    let log = format!("{work_path}/dump.log");
    for word in ["criu could not save the container", &log, "No space left"] {
        assert!(failed.message().contains(word), "{word}: {failed}");
    }
    assert_eq!(names(&full.0), [""; 0], "something is left");
    assert_eq!(container.status(), Status::Running);
    counts_on(&container);
    // A paused one stays so, and an end that was asked for does not come.
    container.pause().expect("pause it");
    let stood_at = count(&container);
    let ending = Options { exit: true, ..wanted };
    container.checkpoint_to(&full.0, &ending).expect_err("there is no room");
    assert_eq!(container.status(), Status::Paused);
    assert_eq!(count(&container), stood_at, "it ran meanwhile");
    container.resume().expect("resume it");
    counts_on(&container);
}

/// Returns the PID of the criu that a guard of the shim's has executed, if there is one now.
fn criu_of(shim: i32) -> Option<i32> {
    let all = host::processes();
    let is_guard = |pid: i32| all.iter().any(|guard| guard.pid == pid && guard.parent == shim);
    // It changes its command line at its work.
    let is_criu = |args: &[String]| args.iter().any(|arg| arg == "swrk" || arg.contains("--rpc"));
    let mut criu = all.iter().filter(|process| is_guard(process.parent) && is_criu(&process.args));
    criu.next().map(|criu| criu.pid)
}

fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    // It may have ended.
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
}

/// The kernel lets go of the processes that criu held. One in which criu's own code was at work
/// ends, as there is nobody left to put its registers back; none stays stopped or frozen.
#[test]
fn a_criu_that_is_killed_leaves_nothing_of_itself_and_nothing_frozen() {
    let containerd = Containerd::start(Version::V2_1);
    let (mut failures, mut unharmed) = (0, 0);
    for round in 0..12_u32 {
        let id = format!("killed-{round}");
        let container = counter(&containerd, &id).start();
        counts_on(&container);
        let shim = container.shim();
        let folder = folder(&containerd, &id);
        let saved = std::thread::scope(|scope| {
            let saving = scope.spawn(|| container.checkpoint_to(&folder, &Options::default()));
            while !saving.is_finished() {
                if let Some(criu) = criu_of(shim) {
                    // Somewhere on its way, which takes some 50 ms.
                    std::thread::sleep(std::time::Duration::from_millis(u64::from(round) * 3));
                    kill(criu);
                    break;
                }
            }
            saving.join().expect("the thread that saves")
        });
        if saved.is_err() {
            failures += 1;
            assert!(names(&folder).iter().all(|name| name == "dump.log"), "{:?}", names(&folder));
        }
        let before = count_now(&container);
        let goes_on = wait::until("it counts on, or has ended", || match container.status() {
            Status::Running => (count_now(&container) > before).then_some(true),
            Status::Stopped => Some(false),
            other => panic!("round {round}: it is {other:?}"),
        });
        if goes_on {
            unharmed += 1;
            let again = folder.with_extension("again");
            container.checkpoint_to(&again, &Options::default()).expect("save it");
            image(&again);
        }
    }
    assert!(failures > 0, "criu was never killed before it had ended");
    assert!(unharmed > 0, "none has outlived it");
    assert_eq!(criu_processes(&containerd), Vec::<String>::new());
}

/// Returns the processes of criu that this test has started: its images are in the test's folder.
fn criu_processes(containerd: &Containerd) -> Vec<String> {
    let folder = containerd.directory().display().to_string();
    let holds = |pid: i32| {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = links.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.any(|link| link.display().to_string().starts_with(&folder))
    };
    let all = host::processes().into_iter();
    let criu = all.filter(|process| process.args.iter().any(|arg| arg.contains("criu")));
    criu.filter(|process| holds(process.pid)).map(|process| process.args.join(" ")).collect()
}

#[test]
fn a_shim_that_is_killed_leaves_neither_criu_nor_a_frozen_container() {
    let containerd = Containerd::start(Version::V2_1);
    for round in 0..4_u32 {
        let id = format!("killed-{round}");
        let container = counter(&containerd, &id).start();
        counts_on(&container);
        let (shim, init) = (container.shim(), container.pidfd());
        let folder = folder(&containerd, &id);
        let criu = std::thread::scope(|scope| {
            let saving = scope.spawn(|| container.checkpoint_to(&folder, &Options::default()));
            let criu = wait::until("criu runs", || {
                assert!(!saving.is_finished(), "it was never seen");
                criu_of(shim)
            });
            let criu = pidfd(criu);
            std::thread::sleep(std::time::Duration::from_millis(u64::from(round) * 8));
            kill(shim);
            criu
        });
        assert!(wait::readable(&criu, wait::deadline()), "criu has outlived the shim");
        assert!(wait::readable(&init, wait::deadline()), "the container is frozen");
        wait::until("all of criu is gone", || criu_processes(&containerd).is_empty().then_some(()));
    }
}

#[test]
fn processes_of_execs_are_left_out_and_told_by_name() {
    let containerd = Containerd::start(Version::V2_1);
    let container = counter(&containerd, "counter").start();
    let exec = container.exec("beside", spec::process(&["sleep", "1234"]), Streams::Null);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    counts_on(&container);
    let folder = folder(&containerd, "counter");
    container.checkpoint_to(&folder, &Options::default()).expect("save it");
    image(&folder);
    let named = format!("not in it: {} (sleep)", exec.pid());
    wait::until("the shim names it", || containerd.log().contains(&named).then_some(()));
    assert!(host::process(exec.pid()).is_some(), "the exec was harmed");
}

#[test]
fn streams_of_every_kind_are_noted() {
    let containerd = Containerd::start(Version::V2_1);
    let streams = |id: &str, streams: Streams| -> Vec<String> {
        let container = counter(&containerd, id).streams(streams).start();
        counts_on(&container);
        let folder = folder(&containerd, id);
        container.checkpoint_to(&folder, &Options::default()).expect("save it");
        counts_on(&container);
        let notes = image(&folder);
        assert_eq!(notes["terminal"].is_null(), streams != Streams::Terminal, "{notes}");
        let all = notes["inherited"].as_array().expect("a list").iter();
        let mut all: Vec<_> =
            all.map(|one| one["stream"].as_str().expect("a name").to_owned()).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(streams("captured", Streams::Captured), ["null", "stderr", "stdout"]);
    assert_eq!(streams("interactive", Streams::Piped), ["stderr", "stdin", "stdout"]);
    assert_eq!(streams("terminal", Streams::Terminal), ["terminal"]);
    assert_eq!(streams("silent", Streams::Null), ["null"]);
}

/// The other container shares the sandbox's IPC, and boot is not in its cgroup.
#[test]
fn each_container_of_a_pod_is_saved_alone() {
    let containerd = Containerd::start(Version::V2_1);
    let first = counter(&containerd, "first").start();
    let second = counter(&containerd, "second").spec(|spec| {
        spec::join_sandbox(spec, "first", first.pid(), &["network"]);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "ipc" && namespace["type"] != "uts");
    });
    let second = second.start();
    for container in [&second, &first] {
        counts_on(container);
        let folder = folder(&containerd, &container.id);
        container.checkpoint_to(&folder, &Options::default()).expect("save it");
        let notes = image(&folder);
        assert_eq!(notes["own"]["ipc"], container.id == "first");
        counts_on(container);
    }
    counts_on(&second);
}
