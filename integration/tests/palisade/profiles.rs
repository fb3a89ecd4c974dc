//! Where the time of a pod's threads goes.

use std::collections::HashMap;
use std::fs;

use integration::container::Container;
use integration::containerd::{Containerd, Version};
use integration::{image, spec};

use crate::{command, palisade, shows};

/// Starts a container that spends its time as it is told.
pub(crate) fn hot<'a>(containerd: &'a Containerd, id: &str, how: &str) -> Container<'a> {
    let program = image::sibling("hot");
    let new = containerd.container(id, ["/hot", how]);
    let bind = |spec: &mut serde_json::Value| {
        let program = program.to_str().expect("an ASCII path");
        spec::add_bind(spec, program, "/hot", &["bind", "ro"]);
    };
    new.spec(bind).start()
}

/// The seconds of stacks that have a function, and of all.
fn seconds(profile: &serde_json::Value, function: &str) -> (f64, f64) {
    let (mut of_it, mut all) = (0.0, 0.0);
    for stack in profile["stacks"].as_array().expect("stacks") {
        let time = stack["seconds"].as_f64().expect("a number");
        let names = stack["functions"].as_array().expect("functions");
        let has = names.iter().any(|name| name.as_str().is_some_and(|n| n.contains(function)));
        of_it += if has { time } else { 0.0 };
        all += time;
    }
    (of_it, all)
}

#[test]
fn a_hot_function_has_nine_tenths_of_the_samples_in_every_form() {
    let containerd = Containerd::start(Version::V2_1);
    let namespace = containerd.namespace();
    let _hot = hot(&containerd, "spin", "spin");
    let debug = |args: &[&str]| {
        let first = ["--namespace", namespace.as_str(), "debug", "cpu-profile", "spin"];
        [&first, args].concat().iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()
    };
    let run = |args: &[&str]| {
        let args = debug(args);
        shows(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let text = run(&["--duration", "2s", "--format", "json"]);
    let profile = serde_json::from_str(&text).expect("JSON");
    let (of_it, all) = seconds(&profile, "hot_function");
    assert!(of_it > 0.9 * all && all > 0.0, "{of_it} of {all} s: {text}");
    assert_eq!(profile["stacks"][0]["container"], "spin");
    // The whole stack: main is found although the program keeps no frame pointers.
    let (of_main, _) = seconds(&profile, "hot::main");
    assert!(of_main > 0.9 * all, "{of_main} of {all} s: {text}");

    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name).to_str().expect("ASCII").to_owned();
    run(&["--duration", "1s", "-o", &file("a.folded")]);
    let folded = fs::read_to_string(file("a.folded")).expect("read");
    let mut sums = HashMap::<bool, u64>::new();
    for line in folded.lines() {
        let (stack, number) = line.rsplit_once(' ').expect("a number");
        *sums.entry(stack.contains("hot_function")).or_default() +=
            number.parse::<u64>().expect("a number");
    }
    assert!(sums[&true] > 9 * sums.get(&false).copied().unwrap_or(0), "{folded}");
    run(&["--duration", "1s", "-o", &file("a.svg")]);
    let svg = fs::read_to_string(file("a.svg")).expect("read");
    assert!(svg.contains("hot_function") && svg.contains("</svg>"));
    assert!(!svg.contains("href=\"http"), "it needs nothing from elsewhere");
    run(&["--duration", "1s", "-o", &file("a.pb.gz")]);
    assert_eq!(fs::read(file("a.pb.gz")).expect("read")[..2], [0x1f, 0x8b], "gzip");

    let args = debug(&["--duration", "1s", "-o", &file("a.svg")]);
    let ran = palisade(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(ran.code == Some(1) && ran.errors.contains("--force"), "{ran:?}");
    for wrong in [["--duration", "0"], ["--frequency", "0"], ["--frequency", "1001"]] {
        let args = debug(&wrong);
        let ran = palisade(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ran.code, Some(2), "{wrong:?}: {ran:?}");
    }
    let ran = palisade(&["list", "--format", "svg"]);
    assert!(ran.code == Some(2) && ran.errors.contains("of profiles"), "{ran:?}");
}

#[test]
fn a_wait_for_a_lock_and_a_sleep_are_found() {
    let containerd = Containerd::start(Version::V2_1);
    let namespace = containerd.namespace();
    let (_lock, _sleep) = (hot(&containerd, "lock", "lock"), hot(&containerd, "sleep", "sleep"));
    // The kernel may sample the whole machine (version 1 without perf_event). If that is so busy
    // that waits are lost, which the command says, those of the container may be among them.
    let profile = |kind: &str, id: &str| {
        let args = ["--namespace", &namespace, "debug", kind, id, "--duration", "2s"];
        integration::wait::until("no wait is lost", || {
            let ran = palisade(&[&args[..], &["--format", "json"]].concat());
            assert_eq!(ran.code, Some(0), "{ran:?}");
            let profile: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
            let lost = profile["lost"].as_u64().expect("a number");
            assert_eq!(lost > 0, ran.errors.contains("waits were lost"), "{ran:?}");
            (lost == 0).then_some(profile)
        })
    };
    let mutex = profile("mutex-profile", "lock");
    let (of_it, all) = seconds(&mutex, "wants_the_lock");
    assert!(of_it > 0.9 * all && all > 0.0, "{of_it} of {all} s: {mutex}");
    let waits = mutex["stacks"][0]["waits_for"].as_str().expect("a lock");
    assert!(waits.starts_with("the lock at 0x"), "{waits}");
    let block = profile("block-profile", "sleep");
    let (of_it, all) = seconds(&block, "sleepy_function");
    assert!(of_it > 0.9 * all && all > 0.0, "{of_it} of {all} s: {block}");
    let waits = block["stacks"][0]["waits_for"].as_str().expect("a call");
    assert!(waits.contains("nanosleep"), "{waits}");
    // No lock is there.
    let none = profile("mutex-profile", "sleep");
    assert_eq!(none["stacks"].as_array().map(Vec::len), Some(0), "{none}");
}

/// What was collected by then is written.
#[test]
fn a_profile_of_a_pod_that_ends_is_kept() {
    let containerd = Containerd::start(Version::V2_1);
    let namespace = containerd.namespace();
    let container = hot(&containerd, "ends", "spin");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("profile.folded");
    let path = file.to_str().expect("ASCII");
    let args = ["--namespace", &namespace, "debug", "cpu-profile", "ends", "-d", "1h", "-o", path];
    let mut profiler = command(&args);
    let profiler = profiler.stdout(std::process::Stdio::piped());
    let child = profiler.stderr(std::process::Stdio::piped()).spawn().expect("run palisade");
    let pid = child.id();
    integration::wait::until("perf events are open", || {
        let folder = format!("/proc/{pid}/fd");
        let links = fs::read_dir(folder).ok()?.flatten();
        let events = links.filter_map(|entry| fs::read_link(entry.path()).ok());
        events.into_iter().any(|link| link.ends_with("anon_inode:[perf_event]")).then_some(())
    });
    // Some samples of the busy loop are taken, however loaded the machine is.
    std::thread::sleep(std::time::Duration::from_millis(500));
    container.kill(libc_sigkill()).expect("kill");
    let ran: crate::Ran = child.wait_with_output().expect("wait").into();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.errors.contains("it ended early: no process is left"), "{ran:?}");
    let folded = fs::read_to_string(&file).expect("read");
    assert!(folded.contains("hot_function"), "{folded}");
}

fn libc_sigkill() -> i32 {
    nix::sys::signal::Signal::SIGKILL as i32
}

mod needs_pprof {
    use std::path::Path;
    use std::process::Command;

    use integration::built::repository;
    use integration::containerd::{Containerd, Version};

    use super::hot;
    use crate::shows;

    /// Has `go tool pprof` read a profile.
    fn pprof(view: &str, profile: &Path) -> String {
        let mut pprof = Command::new(repository().join(".cache/pprof/pprof"));
        let output = pprof.args([view, "-symbolize=none"]).arg(profile).output();
        let output = output.expect("run pprof; ci/pprof fetches it");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The share of a function and of what it called, in percent, of `pprof -top`.
    fn share(top: &str, function: &str) -> f64 {
        let line = top.lines().find(|line| line.contains(function));
        let line = line.unwrap_or_else(|| panic!("no {function} in {top}"));
        let share = line.split_whitespace().nth(4).and_then(|word| word.strip_suffix('%'));
        share.and_then(|share| share.parse().ok()).unwrap_or_else(|| panic!("{line}: {top}"))
    }

    /// A reader that others wrote finds the functions, what is counted, and whose it is.
    #[test]
    fn go_s_pprof_reads_profiles() {
        let containerd = Containerd::start(Version::V2_1);
        let _containers = ["spin", "lock", "sleep"].map(|how| hot(&containerd, how, how));
        for (kind, id, function, counted) in [
            ("cpu-profile", "spin", "hot_function", "Type: cpu"),
            ("block-profile", "sleep", "sleepy_function", "Type: off_cpu"),
            ("mutex-profile", "lock", "wants_the_lock", "Type: contended"),
        ] {
            let file = containerd.directory().join(format!("{kind}.pb.gz"));
            let path = file.to_str().expect("ASCII");
            let namespace = containerd.namespace();
            shows(&["--namespace", &namespace, "debug", kind, id, "-d", "2s", "-o", path]);
            let top = pprof("-top", &file);
            assert!(top.lines().any(|line| line == counted), "{counted}: {top}");
            assert!(share(&top, function) > 90.0, "{top}");
            let tags = pprof("-tags", &file);
            for tag in ["container", "pid", "thread", "tid"] {
                assert!(tags.lines().any(|l| l.trim_start().starts_with(tag)), "{tag}: {tags}");
            }
            assert!(tags.contains(id), "{tags}");
        }
    }
}
