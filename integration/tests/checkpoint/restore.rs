//! Containers that are restored from a checkpoint are as they would be after a Create, but for
//! their processes, which go on.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use containerd_client::types::Descriptor;
use containerd_client::types::v1::Status as TaskStatus;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, ConnectRequest, CreateTaskRequest, StartRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any as ProtobufAny;
use integration::container::{Container, NewContainer};
use integration::containerd::{Containerd, Version};
use integration::events::{Subscriber, TaskEvent};
use integration::shim::Bundle;
use integration::stdio::Streams;
use integration::{on_each_containerd, sandbox, spec, wait};

use prost_types::Any;

use crate::{carrying, checkpoint_of};

on_each_containerd!(
    a_counter_goes_on_in_another_sandbox,
    a_restored_container_is_served_as_any_other,
    a_restored_container_is_protected_as_any_other,
);

/// Prints a number that grows, and keeps it where a checkpoint carries it.
const COUNTER: &str = "trap 'exit 7' TERM; n=0; while :; do n=$((n+1)); echo $n; \
                       echo $n > /run/new; mv /run/new /run/count; sleep 0.02; done";

/// What the spec of a restored container asks for is not run.
const NEVER: &str = "echo never; exit 9";

fn counter<'a>(containerd: &'a Containerd, id: &str) -> Container<'a> {
    let container = carrying(containerd.shell(id, COUNTER)).start();
    container.stdio().wait_for_output("\n5\n");
    container
}

/// Prepares a container that is restored.
fn again<'a>(containerd: &'a Containerd, id: &str, image: &Descriptor) -> NewContainer<'a> {
    carrying(containerd.shell(id, NEVER)).from_checkpoint(image)
}

fn count_of(container: &Container<'_>) -> u64 {
    let path = format!("/proc/{}/root/run/count", container.pid());
    wait::until("the counter's file", || fs::read_to_string(&path).ok()?.trim().parse().ok())
}

fn a_counter_goes_on_in_another_sandbox(containerd: Containerd) {
    let first = counter(&containerd, "first");
    let image = checkpoint_of(&first);
    let before = count_of(&first);
    let second = again(&containerd, "second", &image).start();
    assert_eq!(second.status(), TaskStatus::Running);
    assert_ne!(first.shim(), second.shim());
    // It goes on where it was, in a new file system, and writes to its own client.
    let seen = second.stdio().wait_for_output("\n");
    let next: u64 = seen.lines().next().expect("a line").parse().expect("a number");
    assert!((2..=before + 1).contains(&next), "{next} after about {before}");
    wait::until("it counts on", || (count_of(&second) > next + 5).then_some(()));
    // The first goes on as well.
    let now = count_of(&first);
    wait::until("the first counts on", || (count_of(&first) > now).then_some(()));
    second.kill(15).expect("kill it");
    let (code, output) = second.finish();
    assert_eq!(code, 7, "{output}");
    let numbers: Vec<u64> = output.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(numbers.windows(2).all(|two| two[1] == two[0] + 1), "{numbers:?}");
    assert_eq!(first.status(), TaskStatus::Running);
}

fn a_restored_container_is_served_as_any_other(containerd: Containerd) {
    let first = counter(&containerd, "first");
    let image = checkpoint_of(&first);
    let events = Subscriber::new(&containerd);
    let second = again(&containerd, "second", &image).create();
    assert_eq!((second.status(), second.pid()), (TaskStatus::Created, 0));
    second.start().expect("restore it");
    assert!(second.pid() > 0);
    // Among its own processes, with its own files.
    let (code, output) =
        second.exec_shell("look", "cat /proc/1/comm; test -s /run/count && echo here");
    assert_eq!((code, output.as_str()), (0, "sh\nhere\n"));
    let pids: Vec<_> = second.processes().iter().map(|process| process.pid).collect();
    assert!(pids.contains(&u32::try_from(second.pid()).unwrap()), "{pids:?}");
    second.metrics();
    second.pause().expect("pause it");
    let now = count_of(&second);
    assert_eq!(second.status(), TaskStatus::Paused);
    assert_eq!(count_of(&second), now);
    second.resume().expect("resume it");
    wait::until("it counts on", || (count_of(&second) > now).then_some(()));
    let exec = second.exec("ends", spec::process(&["sleep", "1000"]), Streams::Null);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    second.kill(9).expect("kill it");
    assert_eq!((exec.wait().code, second.wait().code), (137, 137));
    assert_eq!(second.delete_task().expect("delete it"), 137);
    let exit = TaskEvent::Exit("second".into(), "second".into(), 137);
    let seen = events.until(|event| *event == exit);
    let kinds: Vec<_> =
        seen.iter().filter(|event| format!("{event:?}").contains("second")).collect();
    assert!(format!("{:?}", kinds[0]).contains("Create"), "{kinds:?}");
    assert!(format!("{:?}", kinds[1]).contains("Start"), "{kinds:?}");
}

/// What the kernel says of a process's rights, and of its mounts.
fn rights_of(pid: i32) -> (BTreeMap<String, String>, Vec<String>) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let kept = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Umask"];
    let fields = status.lines().filter_map(|line| line.split_once(":\t"));
    let fields = fields.filter(|(name, _)| kept.contains(name));
    let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("its mounts");
    // Where each lies, with its flags, and its type; the numbers are another's.
    let mounts = mounts.lines().map(|line| {
        let parts: Vec<&str> = line.split(' ').collect();
        let kind = parts.iter().position(|part| *part == "-").map_or("", |at| parts[at + 1]);
        format!("{} {} {kind}", parts[4], parts[5])
    });
    let mut mounts: Vec<_> = mounts.collect();
    mounts.sort();
    (fields, mounts)
}

fn a_restored_container_is_protected_as_any_other(containerd: Containerd) {
    let admin = |spec: &mut serde_json::Value| spec::add_all_capabilities(&mut spec["process"]);
    let first = carrying(containerd.shell("first", COUNTER)).spec(admin).start();
    first.stdio().wait_for_output("\n5\n");
    let image = checkpoint_of(&first);
    let second = again(&containerd, "second", &image).spec(admin).start();
    assert_eq!(rights_of(second.pid()), rights_of(first.pid()));
    // Each of these would uncover what the spec covers.
    for attack in [
        "umount /proc/keys",
        "umount /proc/sys",
        "umount /proc",
        "mount -o remount,rw /proc/sys",
        "mkdir -p /new && mount -t proc none /new",
    ] {
        for container in [&first, &second] {
            let (code, output) = container.exec_shell("attack", &format!("{attack} 2>&1"));
            assert_ne!(code, 0, "{}: {attack}: {output}", container.id);
        }
    }
    // Nothing is left of what restored it.
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", second.pid())).expect("mounts");
    assert!(!mounts.contains("driver"), "{mounts}");
    let children = |pid: i32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let boot = sandbox::boot_of(second.shim()).pid;
    let left = || children(boot).map_or(0, |all| all.split_whitespace().count());
    wait::until("criu and the builder are gone", || (left() == 1).then_some(()));
}

/// The same image may be restored any number of times, at the same time.
#[test]
fn three_restores_of_one_image_at_once() {
    let containerd = Containerd::start(Version::V2_1);
    let image = checkpoint_of(&counter(&containerd, "first"));
    let all: Vec<_> = ["a", "b", "c"].map(|id| again(&containerd, id, &image).create()).into();
    thread::scope(|scope| {
        let started: Vec<_> = all.iter().map(|one| scope.spawn(|| one.start())).collect();
        for one in started {
            one.join().expect("the thread").expect("restore it");
        }
    });
    for one in &all {
        let now = count_of(one);
        wait::until("it counts on", || (count_of(one) > now).then_some(()));
    }
    let mut ranges: Vec<_> =
        all.iter().map(|one| fs::read_to_string(format!("/proc/{}/uid_map", one.pid()))).collect();
    ranges.dedup_by(|a, b| a.as_ref().ok() == b.as_ref().ok());
    assert_eq!(ranges.len(), 3, "{ranges:?}");
}

#[test]
fn a_container_is_restored_into_a_pod_beside_others() {
    let containerd = Containerd::start(Version::V2_1);
    let shared = ["network"];
    let pod = |id: &str| containerd.container(id, ["sleep", "1000"]).start();
    let first_pod = pod("pod-1");
    let first = carrying(containerd.shell("first", COUNTER));
    let first = first.spec(|s| spec::join_sandbox(s, "pod-1", first_pod.pid(), &shared)).start();
    first.stdio().wait_for_output("\n5\n");
    let image = checkpoint_of(&first);
    let other_pod = pod("pod-2");
    let second = again(&containerd, "second", &image);
    let second = second.spec(|s| spec::join_sandbox(s, "pod-2", other_pod.pid(), &shared)).start();
    assert_eq!(second.shim(), other_pod.shim());
    for kind in ["net", "user"] {
        let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace");
        assert_eq!(of(second.pid()), of(other_pod.pid()), "{kind}");
    }
    let now = count_of(&second);
    wait::until("it counts on", || (count_of(&second) > now).then_some(()));
    // The pod is as it was.
    second.kill(9).expect("kill it");
    assert_eq!(second.wait().code, 137);
    assert_eq!(other_pod.status(), TaskStatus::Running);
}

/// containerd unpacks the files that the container had written into the bundle's root, between
/// Create and Start.
#[test]
fn files_that_are_unpacked_between_create_and_start_are_the_container_s() {
    let containerd = Containerd::start(Version::V2_1);
    let image = checkpoint_of(&counter(&containerd, "first"));
    let second = again(&containerd, "second", &image).create();
    let root = bundle_of(&containerd, "second").join("rootfs");
    assert!(root.join("bin").exists(), "the root file system is at {}", root.display());
    fs::write(root.join("from-the-diff"), "hello").expect("unpack a file");
    second.start().expect("restore it");
    let (code, output) = second.exec_shell("look", "cat /from-the-diff; stat -c %u /from-the-diff");
    assert_eq!((code, output.as_str()), (0, "hello0\n"));
    assert!(!root.join("bin").exists(), "it is still mounted at {}", root.display());
}

/// Where it came from counts for nothing later on.
#[test]
fn a_restored_container_outlives_containerd_and_is_saved_again() {
    let containerd = Containerd::start(Version::V2_1);
    let first = counter(&containerd, "first");
    let image = checkpoint_of(&first);
    let second = again(&containerd, "second", &image).start();
    drop(first);
    containerd.kill();
    containerd.launch();
    assert_eq!(second.status(), TaskStatus::Running);
    let (code, output) = second.exec_shell("look", "cat /proc/1/comm");
    assert_eq!((code, output.as_str()), (0, "sh\n"));
    let image = checkpoint_of(&second);
    let before = count_of(&second);
    let third = again(&containerd, "third", &image).start();
    wait::until("it counts on", || (count_of(&third) > before).then_some(()));
}

/// Not all that is created is started.
#[test]
fn a_container_that_was_never_restored_is_deleted() {
    let containerd = Containerd::start(Version::V2_1);
    let image = checkpoint_of(&counter(&containerd, "first"));
    let second = again(&containerd, "second", &image).create();
    let refused = second.kill(9).expect_err("there is no process");
    assert!(refused.message().contains("process"), "{refused:?}");
    second.delete_task().expect("delete it");
}

#[test]
fn a_terminal_comes_back() {
    let containerd = Containerd::start(Version::V2_1);
    let script = "while read -r line; do echo got $line; done";
    let first = carrying(containerd.shell("first", script)).streams(Streams::Terminal).start();
    first.stdio().write(b"one\n");
    first.stdio().wait_for_output("got one");
    let image = checkpoint_of(&first);
    let second = again(&containerd, "second", &image).streams(Streams::Terminal).start();
    second.stdio().write(b"two\n");
    second.stdio().wait_for_output("got two");
    let (_, tty) = second.exec_shell("look", "readlink /proc/1/fd/0; stat -c %u /dev/console");
    assert_eq!(tty, "/dev/pts/0\n0\n");
    // The controlling one: Ctrl-C ends the foreground group.
    second.stdio().write(&[3]);
    assert_eq!(second.wait().code, 130);
}

/// A checkpoint is made by whoever sends it: what it says of rights is no more than a wish.
#[test]
fn a_checkpoint_gives_nothing_that_the_plan_has_not() {
    let containerd = Containerd::start(Version::V2_1);
    let all = |spec: &mut serde_json::Value| spec::add_all_capabilities(&mut spec["process"]);
    let gains = |spec: &mut serde_json::Value| {
        spec["process"]["noNewPrivileges"] = false.into();
    };
    let plain = |_: &mut serde_json::Value| {};
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change, Change, &str); 2] = [
        ("capable", all, plain, "has capabilities that the container's plan has not"),
        ("gains", gains, plain, "is without no_new_privs, which the container's plan has"),
    ];
    for (id, of_first, of_second, why) in cases {
        let first = carrying(containerd.shell(id, COUNTER)).spec(of_first).start();
        first.stdio().wait_for_output("\n5\n");
        let image = checkpoint_of(&first);
        let again_id = format!("{id}-again");
        let second = again(&containerd, &again_id, &image).spec(of_second).create();
        let refused = second.start().expect_err("it would have more than its plan");
        assert!(refused.message().contains(why), "{refused:?}");
        assert_eq!(second.status(), TaskStatus::Stopped);
        // The control: with the same plan it is restored.
        let third = again(&containerd, &format!("{id}-control"), &image).spec(of_first);
        third.start();
    }
}

/// The seccomp program of a restored container is that of its own plan.
#[test]
fn a_checkpoint_brings_no_seccomp_program_of_its_own() {
    let containerd = Containerd::start(Version::V2_1);
    let shut = |calls: &[&str]| {
        serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": 71 }],
        })
    };
    let script = format!("trap 'mkdir /made 2>/tried; touch /done' USR1; {COUNTER}");
    let first = carrying(containerd.shell("first", &script));
    let first = first.spec(|s| s["linux"]["seccomp"] = shut(&["getpriority"])).start();
    first.stdio().wait_for_output("\n5\n");
    let image = checkpoint_of(&first);
    let second = again(&containerd, "second", &image);
    let second = second.spec(|s| s["linux"]["seccomp"] = shut(&["mkdir", "mkdirat"])).start();
    let control = carrying(containerd.shell("control", &script));
    let control = control.spec(|s| s["linux"]["seccomp"] = shut(&["mkdir", "mkdirat"])).start();
    control.stdio().wait_for_output("\n5\n");
    for (container, fails) in [(&control, true), (&first, false), (&second, true)] {
        container.kill(10).expect("ask it");
        let at = |name: &str| format!("/proc/{}/root/{name}", container.pid());
        wait::until("it has tried", || fs::metadata(at("done")).ok());
        assert_eq!(fs::metadata(at("made")).is_err(), fails, "{}", container.id);
    }
}

/// Makes a folder with a checkpoint of a container that counts.
fn saved_folder(containerd: &Containerd) -> PathBuf {
    let bundle = Bundle::new(containerd, "first", COUNTER);
    let shim = bundle.start_shim().expect("start the shim");
    shim.create_with(&with_options(shim.request())).expect("create it");
    let id = || "first".to_owned();
    let start = StartRequest { id: id(), ..Default::default() };
    shim.tasks.start(shim.context(), &start).expect("start it");
    let saved = containerd.directory().join("saved");
    fs::create_dir(&saved).expect("a folder");
    let path = saved.to_string_lossy().into_owned();
    let request = CheckpointTaskRequest { id: id(), path, ..Default::default() };
    shim.tasks.checkpoint(shim.context(), &request).expect("save it");
    shim.kill(9).expect("kill it");
    shim.shutdown();
    saved
}

/// Each is tried on a folder of its own, which anybody may have sent.
#[test]
fn a_hostile_folder_is_refused_and_leaves_nothing() {
    let containerd = Containerd::start(Version::V2_1);
    let saved = saved_folder(&containerd);
    let cases: [(&str, &str, &str); 9] = [
        ("whole", "true", ""),
        (
            "link",
            "mv mm-1.img mm; ln -s mm mm-1.img",
            "mm-1.img of the checkpoint is no regular file",
        ),
        (
            "fifo",
            "rm pstree.img; mkfifo pstree.img",
            "pstree.img of the checkpoint is no regular file",
        ),
        (
            "filter",
            "truncate -s 20 seccomp.img",
            "seccomp.img of the checkpoint: it ends in the midst",
        ),
        ("unfiltered", "rm seccomp.img", "criu could not restore the container"),
        ("missing", "rm core-1.img", "criu could not restore the container"),
        (
            "garbage",
            "head -c 4096 /dev/urandom > core-1.img",
            "criu could not restore the container",
        ),
        ("notes", "rm palisade.json", "palisade.json: it was not made by Palisade"),
        (
            "notes-link",
            "mv palisade.json p; ln -s p palisade.json",
            "palisade.json of the checkpoint is no regular file",
        ),
    ];
    for (name, change, why) in cases {
        let folder = containerd.directory().join(format!("folder-{name}"));
        let script =
            format!("cp -r '{}' '{}' && cd '{1}' && {change}", saved.display(), folder.display());
        let changed = Command::new("sh").args(["-c", &script]).status().expect("change the folder");
        assert!(changed.success(), "{name}");
        let id = format!("again-{name}");
        let bundle = Bundle::new(&containerd, &id, NEVER);
        let again = bundle.start_shim().expect("start the shim");
        let mut request = with_options(again.request());
        request.checkpoint = folder.to_string_lossy().into_owned();
        let start = StartRequest { id: id.clone(), ..Default::default() };
        let outcome = again
            .create_with(&request)
            .and_then(|_| again.tasks.start(again.context(), &start).map_err(|e| e.to_string()));
        match (outcome, why) {
            (Ok(_), "") => again.kill(9).expect("kill it"),
            (Err(error), why) if !why.is_empty() => assert!(error.contains(why), "{name}: {error}"),
            (outcome, _) => panic!("{name}: {outcome:?}"),
        }
        again.shutdown();
    }
}

/// criu reads for ever where its images end too early. The client gives up.
#[test]
fn a_restore_that_is_killed_leaves_nothing() {
    let containerd = Containerd::start(Version::V2_1);
    let saved = saved_folder(&containerd);
    let pages = fs::File::options().write(true).open(saved.join("pages-1.img"));
    pages.and_then(|pages| pages.set_len(100)).expect("cut it off");
    let bundle = Bundle::new(&containerd, "again", NEVER);
    let again = bundle.start_shim().expect("start the shim");
    let mut request = with_options(again.request());
    request.checkpoint = saved.to_string_lossy().into_owned();
    again.create_with(&request).expect("create it");
    let connect = ConnectRequest { id: "again".to_owned(), ..Default::default() };
    let shim = again.tasks.connect(again.context(), &connect).expect("connect").shim_pid;
    let boot = sandbox::boot_of(shim.cast_signed()).pid;
    let children = format!("/proc/{boot}/task/{boot}/children");
    let count = || fs::read_to_string(&children).map_or(0, |all| all.split_whitespace().count());
    let start = StartRequest { id: "again".to_owned(), ..Default::default() };
    thread::scope(|scope| {
        let started = scope.spawn(|| again.tasks.start(again.context(), &start));
        // The builder has ended; criu and the container's first process go on.
        let is_first = |pid: &str| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
        };
        wait::until("criu restores the processes", || {
            let all = fs::read_to_string(&children).unwrap_or_default();
            (count() == 2 && all.split_whitespace().any(is_first)).then_some(())
        });
        again.kill(15).expect_err("no process is there to get it");
        again.kill(9).expect("kill it");
        let refused = started.join().expect("the thread").expect_err("it was killed");
        assert!(refused.to_string().contains("deleted while it was restored"), "{refused}");
    });
    wait::until("nothing is left of it", || (count() == 0).then_some(()));
    again.delete().expect("delete it");
    again.shutdown();
}

/// Adds the options of [`carrying`] to a request for a shim.
fn with_options(mut request: CreateTaskRequest) -> CreateTaskRequest {
    let Any { type_url, value } = crate::options();
    request.options = Some(ProtobufAny { type_url, value, ..Default::default() }).into();
    request
}

/// Returns the bundle that containerd has made for a container.
fn bundle_of(containerd: &Containerd, id: &str) -> PathBuf {
    let tasks = containerd.directory().join("state/io.containerd.runtime.v2.task");
    tasks.join(containerd.namespace()).join(id)
}
