//! What a checkpoint carries: the program `carried` sets up one of everything, is saved, is
//! brought back as another container with other IDs, and looks at all of it again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_client::types::Descriptor;
use integration::checkpoint::{Options, allowed};
use integration::container::{Container, NewContainer, options};
use integration::containerd::{Containerd, Version};
use integration::stdio::Streams;
use integration::{image, spec};
use serde_json::{Value, json};

/// Prepares a container that runs `carried`, with these arguments.
fn carried<'a>(containerd: &'a Containerd, id: &str, args: &[&str]) -> NewContainer<'a> {
    let args: Vec<&str> = ["/bin/carried"].iter().chain(args).copied().collect();
    let program = image::sibling("carried");
    containerd
        .container(id, args)
        .streams(Streams::Piped)
        .options(options(&allowed(""), ""))
        .spec(|spec| spec["hostname"] = "of-carried".into())
        .bind(program.to_str().expect("an ASCII path"), "/bin/carried", &["bind", "ro"])
}

/// Starts it, and waits until it has set everything up.
fn ready<'a>(new: NewContainer<'a>) -> Container<'a> {
    let container = new.start();
    container.stdio().wait_for_output("ready\n");
    container
}

/// Lets it look at everything for the n-th time. Returns what is as it was, and what is wrong.
fn look(container: &Container<'_>, round: usize) -> (BTreeSet<String>, Vec<String>) {
    container.stdio().write(b"look\n");
    let end = format!("done {round}\n");
    let seen = container.stdio().wait_for_output(&end);
    let begin = format!("done {}\n", round - 1);
    let seen = seen.split_once(&begin).map_or(seen.as_str(), |(_, after)| after);
    let right = seen.lines().filter_map(|line| line.strip_prefix("ok ")).map(str::to_owned);
    let wrong = seen.lines().filter(|line| line.starts_with("wrong ")).map(str::to_owned);
    (right.collect(), wrong.collect())
}

/// Lets it look, and checks that everything is as it was. Returns the names.
fn whole(container: &Container<'_>, round: usize) -> BTreeSet<String> {
    let (right, wrong) = look(container, round);
    assert_eq!(wrong, Vec::<String>::new(), "{}, round {round}", container.id);
    right
}

/// Returns the files that a container has written to its root file system, as a client carries
/// them beside the checkpoint, and the checkpoint. The container ends with it.
fn saved(containerd: &Containerd, container: &Container<'_>) -> (PathBuf, Descriptor) {
    let files = containerd.directory().join(format!("{}.tar", container.id));
    let tar =
        container.exec("tar", spec::process(&["tar", "-c", "-C", "/", "tmp"]), Streams::Captured);
    let tar = tar.expect("add an exec");
    tar.start().expect("start it");
    assert_eq!(tar.wait().code, 0, "{}", tar.stdio().errors());
    fs::write(&files, tar.stdio().output_bytes()).expect("write the files");
    tar.delete().expect("delete it");
    let wanted = Options { exit: true, file_locks: true, ..Options::default() };
    let image = container.checkpoint_image(Some(wanted.any())).expect("save it");
    (files, image)
}

/// Restores a container with these files in its root file system.
fn restored<'a>(
    containerd: &Containerd,
    new: NewContainer<'a>,
    (files, image): &(PathBuf, Descriptor),
) -> Container<'a> {
    let container = new.from_checkpoint(image).create();
    let tasks = containerd.directory().join("state/io.containerd.runtime.v2.task");
    unpack(files, &tasks.join(containerd.namespace()).join(&container.id).join("rootfs"));
    container.start().unwrap_or_else(|e| panic!("restore {}: {}", container.id, e.message()));
    container
}

/// Unpacks files as containerd does, between Create and Start.
fn unpack(files: &Path, root: &Path) {
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--numeric-owner", "--same-permissions", "--file"]).arg(files);
    let unpacked = tar.arg("--directory").arg(root).status().expect("run tar");
    assert!(unpacked.success(), "unpack {} into {}", files.display(), root.display());
}

/// Adds a volume.
fn with_volume<'a>(new: NewContainer<'a>, volume: &Path) -> NewContainer<'a> {
    new.bind(volume.to_str().expect("an ASCII path"), "/volume", &["rbind", "rw"])
}

/// Makes a volume that every user may write to.
fn volume(containerd: &Containerd) -> PathBuf {
    let volume = containerd.directory().join("volume");
    fs::create_dir(&volume).expect("make a volume");
    let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&volume, everyone).expect("chmod");
    volume
}

/// Makes it an ordinary user's, with groups of its own.
fn as_alice(spec: &mut Value) {
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [10, 4242] });
    spec["process"]["capabilities"] = json!({});
}

/// /run is root's.
const OF_ALICE: [&str; 2] = ["--without", "run"];
/// A process that a signal has stopped is refused.
const CARRIED: [&str; 2] = ["--without", "stopped"];
const ON_VOLUME: [&str; 4] = ["--volume", "/volume", "--memory", "32"];

/// Without a checkpoint everything is right, any number of times; what is taken away is missed.
#[test]
fn the_program_sees_what_it_has_and_what_it_has_not() {
    let containerd = Containerd::start(Version::V2_1);
    let volume = volume(&containerd);
    let of_root = ready(with_volume(carried(&containerd, "root", &ON_VOLUME), &volume));
    let names = whole(&of_root, 1);
    assert_eq!(whole(&of_root, 2), names);
    let alice = carried(&containerd, "alice", &OF_ALICE).spec(as_alice);
    let names: BTreeSet<_> =
        names.into_iter().filter(|name| !name.starts_with("volume-")).collect();
    let of_alice: BTreeSet<_> = names.iter().filter(|name| *name != "run").cloned().collect();
    assert_eq!(whole(&ready(alice), 1), of_alice);
    let taken = "rm /dev/shm/carried/closed; hostname other; : > /tmp/carried-position";
    of_root.exec_shell("take", taken);
    let (_, wrong) = look(&of_root, 3);
    let missed = |name: &str| wrong.iter().any(|line| line.starts_with(&format!("wrong {name}: ")));
    assert!(missed("shm") && missed("position") && wrong.len() < 4, "{wrong:?}");
}

#[test]
fn everything_of_root_is_carried_and_carried_on() {
    let containerd = Containerd::start(Version::V2_1);
    let volume = volume(&containerd);
    let args: Vec<&str> = ON_VOLUME.iter().chain(&CARRIED).copied().collect();
    let new = |id: &str| with_volume(carried(&containerd, id, &args), &volume);
    let first = ready(new("first"));
    let names = whole(&first, 1);
    let second = restored(&containerd, new("second"), &saved(&containerd, &first));
    assert_eq!(whole(&second, 2), names);
    assert_eq!(whole(&second, 3), names);
    // A restored container is saved and restored as any other.
    let third = restored(&containerd, new("third"), &saved(&containerd, &second));
    assert_eq!(whole(&third, 4), names);
}

#[test]
fn everything_of_an_ordinary_user_is_carried() {
    let containerd = Containerd::start(Version::V2_1);
    let volume = volume(&containerd);
    let args = [&ON_VOLUME[..], &OF_ALICE, &CARRIED].concat();
    let new = |id: &str| with_volume(carried(&containerd, id, &args).spec(as_alice), &volume);
    let first = ready(new("first"));
    let names = whole(&first, 1);
    let second = restored(&containerd, new("second"), &saved(&containerd, &first));
    assert_eq!(whole(&second, 2), names);
}

#[test]
fn everything_is_carried_into_a_pod_beside_a_running_container() {
    let containerd = Containerd::start(Version::V2_1);
    let pod = |id: &str| containerd.container(id, ["sleep", "1000"]).start();
    let [old, new] = [pod("old-pod"), pod("new-pod")];
    let inside = |id: &str, pod: &Container<'_>| {
        let (first, process) = (pod.id.clone(), pod.pid());
        let carried = carried(&containerd, id, &CARRIED);
        carried.spec(|spec| spec::join_sandbox(spec, &first, process, &["network"]))
    };
    let first = ready(inside("first", &old));
    let names = whole(&first, 1);
    let second = restored(&containerd, inside("second", &new), &saved(&containerd, &first));
    assert_eq!(second.shim(), new.shim());
    assert_eq!(whole(&second, 2), names);
    assert_eq!(new.exec_shell("look", "echo unharmed").1, "unharmed\n");
}

#[test]
fn everything_is_carried_into_three_sandboxes_at_once() {
    let containerd = Containerd::start(Version::V2_1);
    let first = ready(carried(&containerd, "first", &CARRIED));
    let names = whole(&first, 1);
    let saved = saved(&containerd, &first);
    std::thread::scope(|scope| {
        let (containerd, saved) = (&containerd, &saved);
        let all = ["a", "b", "c"].map(|id| {
            scope.spawn(move || restored(containerd, carried(containerd, id, &CARRIED), saved))
        });
        for one in all.map(|one| one.join().expect("restore it")) {
            assert_eq!(whole(&one, 2), names, "{}", one.id);
        }
    });
}
