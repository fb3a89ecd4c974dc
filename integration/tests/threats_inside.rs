//! What a container can see and reach of the host and of its own sandbox
//! process. The rules are in docs/threat-model.md; each story tries
//! to break one from inside.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use containerd_client::types::v1::Status as TaskStatus;
use integration::containerd::Containerd;
use integration::host::{self, HostProcess};
use integration::stdio::Streams;
use integration::{on_each_containerd, spec};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::statfs::{DEVPTS_SUPER_MAGIC, statfs};
use serde_json::{Value, json};

on_each_containerd!(
    root_inside_is_nobody_outside,
    container_root_is_root_on_its_volumes_and_nowhere_else,
    all_capabilities_hold_nothing_outside,
    what_is_read_only_or_masked_stays_so,
    processes_hold_their_streams_and_nothing_else,
    boot_holds_channels_and_no_directory_of_the_host,
    a_container_cannot_leave_by_its_working_directory,
    a_container_cannot_write_to_the_runtime_s_executable,
    the_mount_of_the_runtime_s_executable_cannot_be_changed,
    mounts_are_locked_whatever_the_interface,
    a_fork_bomb_ends_at_its_limit,
    a_program_that_ends_at_once_is_no_stranger,
);

/// Every capability there is, for a container whose administrator was careless.
fn with_all_capabilities(spec: &mut Value) {
    spec::add_all_capabilities(&mut spec["process"]);
}

/// A script that tells each of these attacks that succeeds, then `done`.
fn attacks(list: &[&str]) -> String {
    let tried = list.iter().map(|attack| {
        let quoted = attack.replace('\'', "'\\''");
        format!("if ( {attack} ) >/dev/null 2>&1; then echo '{quoted}'; fi\n")
    });
    tried.chain(["echo done\n".to_owned()]).collect()
}

/// The sandbox process above a container's process.
fn boot_above(pid: i32) -> HostProcess {
    let mut process = host::process(pid).expect("a running process");
    while process.args.first().map(String::as_str) != Some("palisade-sandbox") {
        assert!(process.parent > 1, "no sandbox process above {pid}");
        process = host::process(process.parent).expect("an ancestor of a running process");
    }
    process
}

fn root_inside_is_nobody_outside(containerd: Containerd) {
    let container = containerd.container("ids", ["sleep", "1000"]).start();
    assert_eq!(container.exec_shell("who", "id -u").1, "0\n");
    let boot = boot_above(container.pid());
    for pid in [container.pid(), boot.pid] {
        for kind in ["Uid", "Gid"] {
            let ids = host::status(pid, kind);
            assert!(
                ids.split_whitespace().all(|id| id.parse::<u32>().expect("an ID") >= 65536),
                "{kind} of {pid}: {ids}"
            );
        }
        assert_eq!(host::status(pid, "Groups"), "", "supplementary groups of {pid}");
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).expect("a link");
        assert_ne!(namespace(&pid.to_string()), namespace("self"));
    }
    // One user namespace below boot's, where all that boot mounts is locked.
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).expect("a link");
    assert_ne!(namespace(container.pid()), namespace(boot.pid));
    // No ID of the host's is in reach: not even as an effective one.
    let script = attacks(&["setpriv --reuid 65536 true", "unshare -U sh -c 'test $(id -u) = 0'"]);
    assert_eq!(container.exec_shell("become", &script).1, "done\n");
}

fn container_root_is_root_on_its_volumes_and_nowhere_else(containerd: Containerd) {
    let volume = tempfile::tempdir_in("/var/tmp").expect("make a volume");
    let file = |name: &str, owner: u32, mode: u32| {
        let path = volume.path().join(name);
        fs::write(&path, "secret").expect("write a file");
        chown(&path, Some(owner), Some(owner)).expect("chown");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    file("of-nobody-inside", 70_000, 0o600);
    let kmsg = volume.path().join("kmsg");
    mknod(&kmsg, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 11)).expect("mknod");
    let script = attacks(&[
        "cat /volume/of-nobody-inside",
        "chown 0 /volume/of-nobody-inside",
        "chmod 777 /volume/of-nobody-inside",
        "echo hello > /volume/kmsg",
        "head -c 1 /volume/kmsg",
        "mknod /volume/disk b 8 0",
        "mknod /volume/memory c 1 1",
        "chown 65536 /volume/kmsg",
    ]) + "touch /volume/by-root; touch /volume/by-alice; chown 1000:1000 /volume/by-alice; \
          cp /bin/busybox /volume/program; chmod 4755 /volume/program";
    let path = volume.path().to_str().expect("an ASCII path").to_owned();
    let container = containerd
        .shell("volume", &script)
        .spec(with_all_capabilities)
        .bind(&path, "/volume", &["rbind", "rw"])
        .start();
    assert_eq!(container.finish(), (0, "done\n".to_owned()));
    let owner = |name: &str| {
        let stat = fs::metadata(volume.path().join(name)).expect("a file on the volume");
        (stat.uid(), stat.gid())
    };
    assert_eq!(owner("by-root"), (0, 0));
    assert_eq!(owner("by-alice"), (1000, 1000));
    assert_eq!(owner("of-nobody-inside"), (70_000, 70_000));
}

/// Root with every capability and without a seccomp filter.
fn all_capabilities_hold_nothing_outside(containerd: Containerd) {
    let script = attacks(&[
        // File systems that show the host.
        "mount -t sysfs sysfs /tmp",
        "mount -t devtmpfs dev /tmp",
        "mount -t debugfs debugfs /tmp",
        "mount -t tracefs tracefs /tmp",
        "mount -t securityfs securityfs /tmp",
        "mknod /tmp/disk b 8 0",
        "mknod /tmp/memory c 1 1",
        // Files of the host's root.
        // Masked, where there is one: it can be opened, and is empty.
        "test $(head -c 1 /proc/kcore | wc -c) -gt 0",
        "head -c 1 /proc/kmsg",
        "head -c 1 /proc/kallsyms | grep -v '^0'",
        "echo h > /proc/sysrq-trigger",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo /tmp/x > /proc/sys/kernel/modprobe",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo 0 > /proc/sys/kernel/randomize_va_space",
        "echo /tmp/x > /sys/kernel/uevent_helper",
        "echo -1000 > /proc/self/oom_score_adj",
        // The kernel itself.
        "dmesg -n 7",
        "renice -n -5 $$",
        "ulimit -n 1048577",
        "chroot /proc/1/root sh -c 'test -e /run/containerd'",
        "test -e /proc/1/root/run/containerd",
        "nsenter -t 1 -m -- test -e /run/containerd",
        // A user namespace of one's own gives no more.
        "unshare -Urm mount -t proc proc /tmp",
        "unshare -Urmpf mount -t sysfs sysfs /tmp",
        "unshare -Urm sh -c 'umount /sys/firmware || umount /proc/kcore'",
        "unshare -Urm mknod /tmp/x b 8 0",
        // Control groups are the host's to set.
        "mount -t cgroup -o memory none /tmp && echo 1 > /tmp/memory.limit_in_bytes",
        "mount -t cgroup -o memory none /tmp && echo /tmp/x > /tmp/release_agent",
        "mount -t cgroup -o memory none /tmp && mkdir /tmp/below",
        "mount -t cgroup -o devices none /tmp && echo a > /tmp/devices.allow",
        "mount -t cgroup2 none /tmp && mkdir /tmp/below",
    ]);
    let container = containerd
        .shell("capable", &script)
        .spec(|s| {
            with_all_capabilities(s);
            s["linux"]["namespaces"]
                .as_array_mut()
                .expect("namespaces")
                .push(json!({"type": "cgroup"}));
        })
        .start();
    assert_eq!(container.finish(), (0, "done\n".to_owned()));
}

/// What boot mounted is locked for root with every capability.
fn what_is_read_only_or_masked_stays_so(containerd: Containerd) {
    let volume = tempfile::tempdir_in("/var/tmp").expect("make a volume");
    let path = volume.path().to_str().expect("an ASCII path").to_owned();
    let script = attacks(&[
        "touch /touched",
        "mount -o remount,rw / && touch /touched",
        "mount -o remount,rw,bind / && touch /touched",
        "touch /volume/touched",
        "mount -o remount,rw /volume && touch /volume/touched",
        "mount -o remount,rw,bind /volume && touch /volume/touched",
        "mount --bind /volume /tmp && mount -o remount,rw,bind /tmp && touch /tmp/touched",
        "mount --rbind / /tmp && mount -o remount,rw,bind /tmp/volume && touch /tmp/volume/touched",
        "unshare -m sh -c 'mount -o remount,rw,bind /volume && touch /volume/touched'",
        "mount -o remount,suid,dev,exec,bind /volume",
        "umount /volume",
        "umount -l /volume",
        "mount -o remount,rw /sys",
        "mount -o remount,rw,bind /sys",
        "umount /sys",
        "umount /sys/firmware",
        "umount -l /sys/firmware",
        "umount /dev/null",
        "umount /proc",
    ]);
    let container = containerd
        .shell("locked", &script)
        .spec(|s| {
            with_all_capabilities(s);
            s["root"]["readonly"] = true.into();
        })
        .bind(&path, "/volume", &["rbind", "ro", "nosuid", "nodev", "noexec"])
        .start();
    assert_eq!(container.finish(), (0, "done\n".to_owned()));
    assert!(!volume.path().join("touched").exists());
}

fn processes_hold_their_streams_and_nothing_else(containerd: Containerd) {
    let container = containerd.container("streams", ["sleep", "1000"]).start();
    let numbers = |pid| host::descriptors(pid).into_keys().collect::<Vec<_>>();
    assert_eq!(numbers(container.pid()), [0, 1, 2], "{:?}", host::descriptors(container.pid()));
    for streams in [Streams::Null, Streams::Captured, Streams::Piped, Streams::Terminal] {
        let name = format!("exec-{streams:?}").to_lowercase();
        let exec = container.exec(&name, spec::process(&["sleep", "1000"]), streams);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        assert_eq!(numbers(exec.pid()), [0, 1, 2], "{name}: {:?}", host::descriptors(exec.pid()));
        exec.kill(9).expect("kill it");
        exec.wait();
    }
    let terminal = containerd.container("terminal", ["sleep", "1000"]).streams(Streams::Terminal);
    let terminal = terminal.start();
    assert_eq!(numbers(terminal.pid()), [0, 1, 2], "{:?}", host::descriptors(terminal.pid()));
}

/// Were it taken over, there would be nothing to find.
fn boot_holds_channels_and_no_directory_of_the_host(containerd: Containerd) {
    let volume = tempfile::tempdir_in("/var/tmp").expect("make a volume");
    let path = volume.path().to_str().expect("an ASCII path").to_owned();
    let container = containerd
        .container("held", ["sleep", "1000"])
        .bind(&path, "/volume", &["rbind", "rw"])
        .start();
    container.exec_shell("once", "true");
    let boot = boot_above(container.pid());
    // Its containers' mounts it can enter anyway.
    let mounts = fs::read_link(format!("/proc/{}/ns/mnt", container.pid())).expect("its mounts");
    for (number, target) in host::descriptors(boot.pid) {
        let link = format!("/proc/{}/fd/{number}", boot.pid);
        let kind = fs::metadata(&link).expect("what a descriptor refers to").file_type();
        if kind.is_dir() || kind.is_file() {
            let fs_type = statfs(Path::new(&link)).expect("statfs").filesystem_type();
            let harmless = fs_type == DEVPTS_SUPER_MAGIC
                || target.starts_with("/memfd:")
                || target.starts_with("pid:[")
                || Path::new(&target) == mounts
                || target.starts_with("anon_inode:");
            assert!(harmless, "boot holds {number} -> {target} ({fs_type:?})");
        } else if target.starts_with('/') {
            let device = fs::metadata(&link).expect("a device").rdev();
            assert_eq!(device, makedev(1, 3), "boot holds {number} -> {target}");
        }
    }
    // Nor does its root lead anywhere.
    let root = format!("/proc/{}/root", boot.pid);
    let mut names: Vec<_> = fs::read_dir(root)
        .expect("read boot's root")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("ASCII"))
        .collect();
    names.sort();
    assert_eq!(names, ["containers", "dev", "proc"]);
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", boot.pid)).expect("mountinfo");
    let mut points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    points.sort_unstable();
    assert_eq!(points, ["/", "/dev", "/proc"], "{mounts}");
    // What it was told on its command line, and no more.
    let environment = fs::read(format!("/proc/{}/environ", boot.pid)).expect("environ");
    assert!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));
}

/// CVE-2024-21626: a descriptor that is still open while the process looks up
/// its working directory or its program.
fn a_container_cannot_leave_by_its_working_directory(containerd: Containerd) {
    let container = containerd.container("cwd", ["sleep", "1000"]).start();
    let script = "for up in . .. ../.. ../../.. ../../../.. ../../../../..; do \
                  ls -d $up/run/containerd $up/containers 2>/dev/null; done; pwd -P";
    for number in 3..32 {
        for tail in ["", "/.", "/..", "/../..", "/../../.."] {
            let cwd = format!("/proc/self/fd/{number}{tail}");
            let name = format!("cwd-{number}-{}", tail.len());
            let mut process = spec::process(&["/bin/sh", "-c", script]);
            process["cwd"] = cwd.clone().into();
            let exec = container.exec(&name, process, Streams::Captured).expect("add an exec");
            if exec.start().is_ok() {
                exec.wait();
                let output = exec.stdio().output();
                assert!(output.starts_with('/') && !output.contains("cont"), "{cwd}: {output}");
            }
        }
    }
    let before = containerd.container("cwd-create", ["/bin/sh", "-c", script]);
    let before = before.spec(|s| s["process"]["cwd"] = "/proc/self/fd/7".into());
    if let Ok(created) = before.try_create() {
        let started = created.start();
        assert!(started.is_err(), "it started: {:?}", created.finish());
    }
}

/// CVE-2019-5736: through `/proc/self/exe` as the program, as a script's
/// interpreter, and through `/proc/PID/exe` of a process that comes up.
fn a_container_cannot_write_to_the_runtime_s_executable(containerd: Containerd) {
    let executable = containerd.directory().join("bin/palisade");
    let before = fs::read(&executable).expect("read the executable");
    let watcher = "printf '#!/proc/self/exe\\n' > /tmp/script; chmod 755 /tmp/script; echo ready\n\
        while [ ! -e /tmp/stop ]; do for p in /proc/[0-9]*; do \
        case $(readlink $p/exe) in */busybox|'') ;; *) echo saw $(readlink $p/exe); esac; \
        (: >> $p/exe) 2>/dev/null && echo written $(readlink $p/exe); done; done; echo stopped";
    // Without capabilities over files its own /bin/busybox is busy, not writable.
    let container = containerd.shell("exe", watcher).spec(with_all_capabilities).start();
    container.stdio().wait_for_output("ready");
    for (number, program) in ["/proc/self/exe", "/tmp/script"].repeat(10).iter().enumerate() {
        let process = spec::process(&[program, "--help"]);
        let exec = container.exec(&format!("exe-{number}"), process, Streams::Captured);
        let exec = exec.expect("add an exec");
        if exec.start().is_ok() {
            exec.wait();
        }
    }
    // Running it as one's own program gives nothing to write to, either.
    let own = "cp /bin/busybox /tmp/b; exec 9</proc/self/exe; (: >> /proc/self/fd/9) && echo own";
    container.exec_shell("own", own);
    container.exec_shell("stop", "touch /tmp/stop");
    let (_, output) = container.finish();
    assert!(!output.contains("written"), "{output}");
    assert!(fs::read(&executable).expect("read the executable") == before, "it was changed");
    assert_eq!(fs::metadata(&executable).expect("stat").permissions().mode() & 0o7777, 0o755);
}

/// `integration/src/bin/attacker.rs`, for a container to run.
fn with_attacker(spec: &mut Value) {
    spec::add_bind(spec, env!("CARGO_BIN_EXE_attacker"), "/attacker", &["bind", "ro"]);
}

/// Who gets hold of a link to it in /proc has a path to its mount, which is
/// read-only. CAP_SYS_ADMIN, which any user namespace gives, must not undo that.
fn the_mount_of_the_runtime_s_executable_cannot_be_changed(containerd: Containerd) {
    let executable = containerd.directory().join("bin/palisade");
    type Change = fn(&mut Value);
    let host_network: Change = |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "network");
    };
    for (id, change) in
        [("capable", with_all_capabilities as Change), ("of-the-host", host_network)]
    {
        let container = containerd
            .container(id, ["/attacker", "executable"])
            .spec(|s| {
                with_attacker(s);
                change(s);
            })
            .start();
        container.stdio().wait_for_output("waiting");
        // Each runs it for a moment, until one is caught and the attacker ends.
        let mut number = 0;
        integration::wait::until("the executable is caught", || {
            number += 1;
            let process = spec::process(&["/proc/self/exe"]);
            let exec = container.exec(&format!("{id}-{number}"), process, Streams::Null).ok();
            let started = exec.as_ref().is_some_and(|exec| exec.start().is_ok());
            if started {
                exec.expect("an exec").wait();
            }
            (container.status() == TaskStatus::Stopped).then_some(())
        });
        let (code, output) = container.finish();
        assert_eq!((code, output.as_str()), (0, "waiting\ncaught\nunshared: true\ndone\n"));
        let mode = fs::metadata(&executable).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        let fresh = containerd.container(&format!("after-{id}"), ["true"]).start();
        assert_eq!(fresh.finish().0, 0);
    }
}

/// By descriptors, from beneath, in clones, in namespaces of its own.
fn mounts_are_locked_whatever_the_interface(containerd: Containerd) {
    let volume = tempfile::tempdir_in("/var/tmp").expect("make a volume");
    let path = volume.path().to_str().expect("an ASCII path").to_owned();
    let container = containerd
        .container("locked", ["/attacker", "mounts"])
        .spec(|s| {
            with_all_capabilities(s);
            with_attacker(s);
            s["root"]["readonly"] = true.into();
            let namespaces = s["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.push(json!({"type": "cgroup"}));
            s["mounts"].as_array_mut().expect("mounts").push(json!({
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["ro", "nosuid", "noexec", "nodev"],
            }));
        })
        .bind(&path, "/volume", &["rbind", "ro", "nosuid", "nodev", "noexec"])
        .start();
    assert_eq!(container.finish(), (0, "done\n".to_owned()));
}

fn a_fork_bomb_ends_at_its_limit(containerd: Containerd) {
    let bomb = "echo ready; (b() { b | b & }; b) & exec sleep 1000";
    let container = containerd
        .shell("bomb", bomb)
        .spec(|s| s["linux"]["resources"]["pids"] = json!({ "limit": 50 }))
        .start();
    container.stdio().wait_for_output("ready");
    let boot = boot_above(container.pid());
    let events = || {
        let file = host::cgroup_directory(boot.pid, "pids").join("pids.events");
        let text = fs::read_to_string(file).expect("read pids.events");
        text.trim().rsplit(' ').next().expect("a count").parse::<u64>().expect("a number")
    };
    integration::wait::until("the limit is hit", || (events() > 0).then_some(()));
    assert!(host::process(boot.pid).is_some(), "the sandbox process is gone");
    // An exec is refused by a sentence, or had luck.
    let exec = container.exec("one-more", spec::process(&["true"]), Streams::Null);
    let exec = exec.expect("add an exec");
    if let Err(error) = exec.start() {
        assert!(error.message().contains("Resource temporarily"), "{}", error.message());
    }
    drop(exec);
    assert!(host::process(boot.pid).is_some(), "the sandbox process is gone");
    container.kill(9).expect("kill it");
    assert_eq!(container.wait().code, 137);
}

/// boot may have collected it before the shim has looked at what it was sent.
fn a_program_that_ends_at_once_is_no_stranger(containerd: Containerd) {
    let container = containerd.container("brief", ["sleep", "1000"]).start();
    for number in 0..100 {
        let process = spec::process(&["true"]);
        let exec = container.exec(&format!("brief-{number}"), process, Streams::Null);
        let exec = exec.expect("add an exec");
        exec.start().unwrap_or_else(|e| panic!("start exec {number}: {}", e.message()));
        assert_eq!(exec.wait().code, 0);
    }
}

#[test]
fn masks_below_proc_are_locked() {
    let containerd = Containerd::start(integration::containerd::Version::V2_1);
    let script = attacks(&[
        "mount -t proc proc /tmp",
        "umount /proc/kcore",
        "mount -o remount,rw,bind /proc/sys",
    ]);
    let container = containerd.shell("masked", &script).spec(with_all_capabilities).start();
    assert_eq!(container.finish(), (0, "done\n".to_owned()));
}
