//! `palisade doctor`: each story provokes a finding, and has its control.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use integration::containerd::{Containerd, Version};
use integration::{built, host, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{Ran, command, palisade};

/// Runs `palisade doctor --format json` with arguments. Returns its findings.
#[track_caller]
fn findings(args: &[&str]) -> Vec<Value> {
    parse(&palisade(&[&["doctor", "--format", "json"], args].concat()))
}

#[track_caller]
fn parse(ran: &Ran) -> Vec<Value> {
    let all: Vec<Value> = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    let fault = all.iter().any(|finding| finding["verdict"] == "fault");
    assert_eq!(ran.code, Some(i32::from(fault)), "{ran:?}");
    for finding in all.iter().filter(|finding| finding["verdict"] != "ok") {
        for key in ["found", "why", "mend"] {
            assert!(!finding[key].as_str().unwrap().is_empty(), "{finding}");
        }
    }
    all
}

/// Returns the verdict about something.
#[track_caller]
fn verdict<'a>(all: &'a [Value], about: &str) -> &'a str {
    let of = |finding: &&Value| finding["about"] == about;
    let found = all.iter().find(of).unwrap_or_else(|| panic!("nothing about {about}: {all:#?}"));
    found["verdict"].as_str().unwrap()
}

/// All tests of this repository run on such a kernel.
#[test]
fn every_feature_that_the_tests_need_is_found_by_trying_it() {
    let before = (host::mount_points(), host::cgroups());
    let all = findings(&[]);
    for about in [
        "user namespaces",
        "nested user namespaces",
        "identity of processes (pidfs)",
        "proc by fsopen(2)",
        "idmapped tmpfs",
        "overlay of idmapped layers",
        "seccomp user notification",
    ] {
        assert_eq!(verdict(&all, about), "ok", "{about}: {all:#?}");
    }
    // Other tests make mounts of their own, with names of their slots.
    let left = host::mount_points().into_iter().filter(|point| !before.0.contains(point));
    assert_eq!(left.filter(|point| !point.contains("palisade-test")).count(), 0);
}

/// Where nobody may make a user namespace, the finding says so: in a namespace with such a limit.
#[test]
fn a_feature_that_is_missing_is_a_fault_with_what_mends_it() {
    let doctor = command(&["doctor", "--format", "json"]);
    let script = format!(
        "echo 0 > /proc/sys/user/max_user_namespaces; exec {} doctor --format json",
        doctor.get_program().display()
    );
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "sh", "-c", &script]);
    let ran: Ran = unshare.output().expect("run unshare").into();
    let all = parse(&ran);
    assert_eq!(verdict(&all, "user.max_user_namespaces"), "fault");
    assert_eq!(verdict(&all, "user namespaces"), "fault");
    assert_eq!(ran.code, Some(1));
}

#[test]
fn containerds_configuration_is_judged_by_what_containerd_makes_of_it() {
    let containerd = Containerd::start(Version::V2_1);
    let file = containerd.directory().join("config.toml");
    let of = |file: &Path| findings(&["--containerd-config", file.to_str().unwrap()]);
    let all = of(&file);
    assert_eq!(verdict(&all, "containerd"), "ok");
    for about in ["runtime_type", "pod_annotations", "snapshotter"] {
        assert_eq!(verdict(&all, &format!("runtime palisade: {about}")), "ok", "{all:#?}");
    }
    // 2.1 asks only runc's shim.
    assert_eq!(verdict(&all, "runtime palisade: -info"), "warning");
    assert_eq!(verdict(&all, "restrict_oom_score_adj"), "ok");

    // What another file imports counts, too.
    let other = containerd.directory().join("other.toml");
    let drop_in = containerd.directory().join("drop-in.toml");
    let text = fs::read_to_string(&file).unwrap();
    let worse = text.replace("pod_annotations = [\"dev.palisade.*\"]", "pod_annotations = []");
    fs::write(
        &other,
        worse.replace("version = 3", &format!("version = 3\nimports = [{drop_in:?}]")),
    )
    .unwrap();
    let handler = integration::config::handler_toml(
        Version::V2_1,
        "second",
        "runtime_type = \"io.containerd.palisade.v1\"\nruntime_path = \"/no/such\"\nsandboxer = \"shim\"",
    );
    fs::write(&drop_in, format!("version = 3\n{handler}")).unwrap();
    let all = of(&other);
    assert_eq!(verdict(&all, "runtime palisade: pod_annotations"), "warning");
    assert_eq!(verdict(&all, "runtime second: runtime_type"), "fault");
    assert_eq!(verdict(&all, "runtime second: sandboxer"), "warning");

    fs::write(&other, "version = 3\n[torn").unwrap();
    assert_eq!(verdict(&of(&other), &format!("containerd's {}", other.display())), "fault");
}

#[test]
fn options_are_read_as_the_shim_reads_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("options.toml");
    let about = format!("options {}", file.display());
    let of = || findings(&["--options", file.to_str().unwrap()]);
    assert_eq!(verdict(&of(), &about), "ok");
    fs::write(&file, "userns = \"never\"").unwrap();
    assert_eq!(verdict(&of(), &about), "warning");
    fs::write(&file, "id_range_start = 65536\nid_range_size = 196608\n").unwrap();
    let all = of();
    assert_eq!(verdict(&all, &about), "ok");
    assert_eq!(verdict(&all, "free ID ranges"), "warning");
    fs::write(&file, "id_range_start = 0\nid_range_size = 196608\n").unwrap();
    assert_eq!(verdict(&of(), "host IDs 0 to 196607"), "warning");
    fs::write(&file, "userns = \"sometimes\"").unwrap();
    let all = of();
    assert_eq!(verdict(&all, &about), "fault");
    let text = Value::from(all).to_string();
    assert!(text.contains("sometimes") && text.contains("auto"), "{text}");
}

#[test]
fn an_executable_that_others_can_write_is_a_fault() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    for name in built::EXECUTABLES {
        let copy = directory.path().join(name);
        fs::copy(built::palisade_executables().join(name), &copy).unwrap();
        fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
    }
    let own = directory.path().join("palisade");
    let of =
        || parse(&Command::new(&own).args(["doctor", "--format", "json"]).output().unwrap().into());
    assert_eq!(verdict(&of(), "executables"), "ok");
    let sandbox = directory.path().join("palisade-sandbox");
    fs::set_permissions(&sandbox, Permissions::from_mode(0o775)).unwrap();
    let about = format!("executable {}", sandbox.display());
    assert_eq!(verdict(&of(), &about), "fault");
    fs::write(&sandbox, "#!/bin/sh\necho palisade-sandbox 9.9.9\n").unwrap();
    assert_eq!(verdict(&of(), "executables"), "fault");
    fs::remove_file(&sandbox).unwrap();
    assert_eq!(verdict(&of(), &about), "fault");
}

/// Returns where a pod has its state, and the PIDs of its shim and its boot.
fn state_of(containerd: &Containerd, id: &str) -> (String, [i32; 2]) {
    let path = format!("/run/palisade/{}/{id}", containerd.namespace());
    let text = fs::read(format!("{path}/state.json")).expect("read state.json");
    let state: Value = serde_json::from_slice(&text).unwrap();
    let pid = |who: &str| state[who]["pid"].as_i64().unwrap() as i32;
    (path, [pid("shim"), pid("boot")])
}

fn end(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    wait::until("a process ends", || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat"));
        state.map_or(true, |stat| stat.contains(") Z")).then_some(())
    });
}

#[test]
fn what_a_dead_pod_leaves_is_removed_and_a_living_one_is_not_touched() {
    let containerd = Containerd::start(Version::V2_1);
    let dead = containerd.shell("dead", "exec sleep 1000").start();
    let living = containerd.shell("living", "exec sleep 1000").start();
    let (gone, [shim, boot]) = state_of(&containerd, "dead");
    let (stays, _) = state_of(&containerd, "living");
    // containerd would clean up by itself.
    containerd.kill();
    end(shim);
    end(boot);
    let namespace = containerd.namespace();
    let of = |args: &[&str]| findings(&[&["--namespace", &namespace], args].concat());
    let all = of(&[]);
    let of_dead = |all: &[Value], about: &str, path: &str| {
        all.iter().any(|f| f["about"] == about && f["found"].as_str().unwrap().contains(path))
    };
    assert!(of_dead(&all, "state of a dead pod", &gone), "{all:#?}");
    assert!(!Value::from(all).to_string().contains(&stays));
    let link = fs::read_dir("/run/palisade/ranges").unwrap().flatten().find(|entry| {
        fs::read_link(entry.path()).is_ok_and(|to| gone.ends_with(&to.display().to_string()))
    });
    assert!(link.is_some(), "the dead pod has an ID range");
    let all = of(&["--fix-leftovers"]);
    assert!(of_dead(&all, "removed", &gone), "{all:#?}");
    assert!(!Path::new(&gone).exists());
    assert!(!link.unwrap().path().is_symlink());
    let named = |cgroup: &&std::path::PathBuf| {
        cgroup.to_string_lossy().contains(&containerd.cgroups_path("dead"))
    };
    assert_eq!(host::cgroups().iter().filter(named).count(), 0);
    // A second time there is nothing, and the other pod is as it was.
    let again = of(&["--fix-leftovers"]);
    assert!(!of_dead(&again, "removed", &gone), "{again:#?}");
    assert!(Path::new(&stays).join("state.json").exists());
    containerd.launch();
    assert_eq!(living.exec_shell("check", "echo alive"), (0, "alive\n".to_owned()));
    drop((dead, living));
}

/// A pod that is being made has a state before it names a shim, a range before it has a state, and
/// a socket before anybody listens: none of it is a leftover.
#[test]
fn pods_that_start_lose_nothing_to_one_who_clears_away() {
    let containerd = Containerd::start(Version::V2_1);
    let namespace = containerd.namespace();
    // The sockets are those of all containerds; states and IDs only of this test's.
    let elsewhere = tempfile::tempdir().unwrap();
    let sockets = elsewhere.path().to_str().unwrap();
    let (begun, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let clear = |args: &[&str]| {
        while !done.load(Ordering::Relaxed) {
            let all = findings(&[args, &["--fix-leftovers"]].concat());
            let of_ours = |f: &&Value| {
                let text = f.to_string();
                text.contains("could not remove") || text.contains(&namespace)
            };
            assert_eq!(all.iter().find(of_ours), None);
            begun.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| clear(&["--namespace", &namespace]));
        scope.spawn(|| clear(&["--state", sockets]));
        // It ends the threads when a start panics, too.
        let end = Ending(&done);
        wait::until("both clear away", || (begun.load(Ordering::Relaxed) > 1).then_some(()));
        let mut kept = Vec::new();
        for round in 0..12 {
            let before = begun.load(Ordering::Relaxed);
            let id = format!("starts{round}");
            let container = containerd.shell(&id, "echo up; exec sleep 1000").start();
            container.stdio().wait_for_output("up");
            let (state, _) = state_of(&containerd, &id);
            assert!(Path::new(&state).join("containers").exists());
            // Once more, with the container at rest.
            wait::until("somebody has cleared away", || {
                (begun.load(Ordering::Relaxed) > before).then_some(())
            });
            assert_eq!(container.exec_shell("check", "echo here"), (0, "here\n".to_owned()));
            kept.push(container);
        }
        drop(end);
    });
    assert!(begun.load(Ordering::Relaxed) >= 12);
}

struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns a process as the state names it.
fn identity(pid: u32) -> Value {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let inode = rustix::fs::fstat(pidfd).unwrap().st_ino;
    serde_json::json!({"pid": pid.as_raw_nonzero().get(), "pidfd_inode": inode})
}

/// A sandbox process that has not noticed yet that its shim is gone, or never will.
#[test]
fn a_pod_whose_sandbox_process_lives_on_is_told_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("ns/half");
    fs::create_dir_all(path.join("containers")).unwrap();
    let run = || Command::new("sleep").arg("1000").spawn().unwrap();
    let (mut shim, mut boot) = (run(), run());
    let state = serde_json::json!({
        "version": 1, "id": "half", "boot": identity(boot.id()), "original_oom_score_adj": 0,
        "id_range": null, "shim": identity(shim.id()), "address": "",
    });
    fs::write(path.join("state.json"), state.to_string()).unwrap();
    let state = root.path().to_str().unwrap();
    // Only this namespace: no socket of another test's is touched.
    let of = |args: &[&str]| findings(&[&["--state", state, "--namespace", "ns"], args].concat());
    let about = |all: &[Value]| {
        let half = all.iter().find(|f| f["found"].as_str().unwrap().contains("ns/half"));
        half.map(|finding| finding["about"].as_str().unwrap().to_owned())
    };
    assert_eq!(about(&of(&["--fix-leftovers"])), None);
    // A process that nobody has collected has ended all the same.
    end(shim.id() as i32);
    for args in [&[][..], &["--fix-leftovers"]] {
        assert_eq!(about(&of(args)).as_deref(), Some("pod without a shim"));
        assert!(path.join("state.json").exists());
    }
    end(boot.id() as i32);
    assert_eq!(about(&of(&[])).as_deref(), Some("state of a dead pod"));
    assert_eq!(about(&of(&["--fix-leftovers"])).as_deref(), Some("removed"));
    assert!(!path.exists());
    shim.wait().unwrap();
    boot.wait().unwrap();
}

/// While a shim lives that no state names, it may be making any of the pods that name no shim. A
/// PID namespace shows the command no other test's.
#[test]
fn what_may_be_under_way_stays_and_where_pids_say_nothing_all_stays() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("ns/new");
    fs::create_dir_all(path.join("containers")).unwrap();
    let doctor = command(&[]);
    let beside = |program: &str| {
        let script = format!(
            "bash -c 'exec -a {program} sleep 1000' & \
             until tr '\\0' ' ' < /proc/$!/cmdline | grep -q '^{program} 1000'; do :; done; \
             {} doctor --format json --namespace ns --state {} --fix-leftovers",
            doctor.get_program().display(),
            root.path().display(),
        );
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", &script]);
        let all = parse(&unshare.output().expect("run unshare").into());
        (all[0]["about"].as_str().unwrap().to_owned(), all[0]["verdict"].clone(), path.exists())
    };
    assert_eq!(beside("sleep"), ("leftovers".into(), "warning".into(), true));
    assert_eq!(beside("containerd-shim-palisade-v1"), ("leftovers".into(), "ok".into(), true));
    assert_eq!(beside("containerd"), ("removed".into(), "ok".into(), false));
}

#[test]
fn ranges_and_sockets_of_nobody_are_removed_and_young_ones_stay() {
    let root = tempfile::tempdir().unwrap();
    let state = root.path().to_str().unwrap();
    let ranges = root.path().join("ranges");
    fs::create_dir_all(&ranges).unwrap();
    fs::create_dir_all(root.path().join("ns/owner")).unwrap();
    symlink("ns/nobody", ranges.join("4")).unwrap();
    symlink("ns/owner", ranges.join("6")).unwrap();
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let fifos = |pid: u32| root.path().join(format!(".exec-palisade:{pid}:1"));
    let programs = |pid: u32| root.path().join(format!("seccomp/abc.{pid}.new"));
    fs::create_dir(root.path().join("seccomp")).unwrap();
    for pid in [ended.id(), std::process::id()] {
        fs::create_dir(fifos(pid)).unwrap();
        fs::write(programs(pid), "").unwrap();
    }
    let sockets = Path::new("/run/containerd/s");
    fs::create_dir_all(sockets).unwrap();
    let name = |what: &str| sockets.join(format!("palisade-doctor-{what}-{}", std::process::id()));
    let (dead, young, served) = (name("dead"), name("young"), name("served"));
    drop(UnixListener::bind(&dead).unwrap());
    drop(UnixListener::bind(&young).unwrap());
    let listener = UnixListener::bind(&served).unwrap();
    for old in [&dead, &served] {
        let touched = Command::new("touch").args(["-d", "1 hour ago"]).arg(old).status();
        assert!(touched.unwrap().success());
    }
    let all = findings(&["--state", state, "--fix-leftovers"]);
    assert!(!dead.exists() && young.exists() && served.exists(), "{all:#?}");
    assert!(!ranges.join("4").is_symlink() && ranges.join("6").is_symlink(), "{all:#?}");
    assert!(!fifos(ended.id()).exists() && fifos(std::process::id()).exists(), "{all:#?}");
    assert!(!programs(ended.id()).exists() && programs(std::process::id()).exists(), "{all:#?}");
    drop(listener);
    for socket in [young, served] {
        fs::remove_file(socket).unwrap();
    }
}
