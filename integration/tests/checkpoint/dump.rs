//! The saving of containers: what is in the folder afterwards, and that the container goes on as it
//! was, however it ends.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_client::types::v1::Status;
use integration::checkpoint::{Options, allowed};
use integration::container::{Container, NewContainer, options};
use integration::containerd::{Containerd, Version};
use integration::events::{Subscriber, TaskEvent};
use integration::{on_each_containerd, wait};

on_each_containerd!(a_checkpoint_is_an_image_of_containerd_s);

/// Prepares a container that counts, in a file of its tmpfs, and prints nothing.
fn counter<'a>(containerd: &'a Containerd, id: &str) -> NewContainer<'a> {
    let script = "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/new; \
                  mv /dev/shm/new /dev/shm/now; sleep 0.01; done";
    containerd.shell(id, script).options(options(&allowed(""), ""))
}

/// Returns the number that a counter has come to, and waits for the first.
fn count(container: &Container<'_>) -> u64 {
    let path = format!("/proc/{}/root/dev/shm/now", container.pid());
    wait::until("the counter counts", || fs::read_to_string(&path).ok()?.trim().parse().ok())
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
