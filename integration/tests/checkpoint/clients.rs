//! The roads by which containerd's clients save and restore.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;

use integration::checkpoint::{allowed, criu};
use integration::containerd::{Containerd, Version};
use integration::{on_each_containerd, wait};

on_each_containerd!(ctr_saves_and_restores_with_the_files_that_were_written);

/// The image, the processes and what they had written travel in one image of containerd's.
fn ctr_saves_and_restores_with_the_files_that_were_written(containerd: Containerd) {
    let options = containerd.directory().join("options.toml");
    fs::write(&options, allowed("")).expect("write the options");
    let options = options.to_string_lossy().into_owned();
    let script = "echo written > /file; n=0; while :; do n=$((n+1)); echo $n > /new; mv /new /count; \
                  sleep 0.02; done";
    let first = containerd.run("first").flag(["--runtime-config-path", &options]);
    let first = first.detached(["sh", "-c", script]);
    let count_of = |id: &str| {
        let script = ["task", "exec", "--exec-id", "look", id, "cat", "/count"];
        containerd.ctr(script).stdout.trim().parse::<u64>().ok()
    };
    let before = wait::until("it counts", || count_of("first").filter(|count| *count > 5));
    let image = "example.com/saved:1";
    let saved = ["container", "checkpoint", "--task", "--rw", "--image", "first", image];
    containerd.ctr(saved).succeeded();
    drop(first);
    containerd.track("second");
    thread::scope(|scope| {
        // It waits for the container's end, but for that of containerd 2.
        let restored = scope
            .spawn(|| containerd.ctr(["container", "restore", "--rw", "--live", "second", image]));
        let now =
            wait::until("it counts on", || count_of("second").filter(|count| *count > before));
        assert!(now < before + 10_000, "{now} after {before}");
        let file = ["task", "exec", "--exec-id", "file", "second", "cat", "/file"];
        assert_eq!(containerd.ctr(file).succeeded().stdout, "written\n");
        containerd.ctr(["task", "kill", "--signal", "SIGKILL", "second"]).succeeded();
        restored.join().expect("the thread").succeeded();
    });
    wait::until("it is removed", || {
        containerd.ctr(["task", "delete", "second"]);
        (containerd.ctr(["container", "remove", "second"]).code == 0).then_some(())
    });
}

/// What the kubelet's checkpoint API asks for. Its counterpart, a container that is created from the
/// archive, pulls the image that the container was made of from a registry (containerd 2.1), which
/// is not here; what it then asks of the shim is in `restore.rs`.
#[test]
fn cri_saves_a_container_that_goes_on() {
    let containerd = Containerd::start_with_option_file(Version::V2_1, "checkpoint = true\n");
    // containerd looks for it in its PATH, and so does the shim.
    symlink(criu(), containerd.directory().join("bin/criu")).expect("link criu");
    let pod = containerd.pod("saved");
    let first =
        pod.shell("first", "n=0; while :; do n=$((n+1)); echo $n > /count; sleep 0.02; done");
    let count = || first.exec("cat /count").stdout.trim().parse::<u64>().ok();
    let before = wait::until("it counts", || count().filter(|count| *count > 5));
    let archive = containerd.directory().join("saved.tar");
    first.checkpoint(&archive).expect("save it");
    let listed = Command::new("tar").arg("--list").arg("--file").arg(&archive).output();
    let listed = String::from_utf8(listed.expect("run tar").stdout).expect("names");
    for name in ["palisade.json", "inventory.img", "rootfs-diff.tar"] {
        assert!(listed.lines().any(|line| line.ends_with(name)), "{name} is not in {listed}");
    }
    wait::until("it counts on", || count().filter(|count| *count > before));
}
