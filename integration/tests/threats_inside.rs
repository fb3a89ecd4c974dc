//! The parts that a container can see and reach of the host and of its own sandbox
//! process. The rules are in docs/threat-model.md; each test tries to break one
//! from inside.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use containerd_client::types::v1::Status as TaskStatus;
use integration::attack::{Attacks, add_attacker, attacker, by_any_process, host_has, rewrite};
use integration::containerd::Containerd;
use integration::stdio::Streams;
use integration::{host, on_each_containerd, sandbox, spec};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::statfs::{
    CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEVPTS_SUPER_MAGIC, FsType, PROC_SUPER_MAGIC, statfs,
};
use serde_json::{Value, json};

on_each_containerd!(
    root_inside_is_unprivileged_outside,
    two_sandboxes_have_different_users,
    the_host_s_processes_are_out_of_reach,
    container_root_is_root_on_its_volumes_and_nowhere_else,
    all_capabilities_hold_nothing_outside,
    read_only_and_masked_paths_stay_so,
    the_proc_of_the_container_is_masked,
    processes_hold_their_streams_and_nothing_else,
    no_path_of_the_host_is_seen_inside,
    boot_holds_channels_and_no_directory_of_the_host,
    a_container_cannot_leave_by_its_working_directory,
    a_container_cannot_write_to_the_runtime_s_executable,
    the_mount_of_the_runtime_s_executable_cannot_be_changed,
    mounts_are_locked_whatever_the_interface,
    the_root_below_the_container_s_is_out_of_reach,
    limits_of_a_user_are_not_shared_with_the_host_or_another_pod,
    no_user_namespace_of_a_pod_is_made_by_the_host_s_root,
    no_container_takes_all_terminals_of_the_kernel,
    a_fork_bomb_ends_at_its_limit,
    a_program_that_ends_at_once_can_be_started,
);

/// Gives a container every capability, as a careless administrator does.
fn with_all_capabilities(spec: &mut Value) {
    spec::add_all_capabilities(&mut spec["process"]);
}

/// Adds a cgroup namespace, so that a container can mount only its own cgroups.
fn with_cgroup_namespace(spec: &mut Value) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.push(json!({ "type": "cgroup" }));
}

fn host_ids(pid: i32, kind: &str) -> Vec<u32> {
    let ids = host::status(pid, kind);
    ids.split_whitespace().map(|id| id.parse().expect("an ID")).collect()
}

fn root_inside_is_unprivileged_outside(containerd: Containerd) {
    let container = containerd.container("ids", ["sleep", "1000"]).start();
    assert_eq!(container.exec_shell("who", "id -u; id -g").1, "0\n0\n");
    let boot = sandbox::boot_of(container.shim());
    for pid in [container.pid(), boot.pid] {
        for kind in ["Uid", "Gid"] {
            let ids = host_ids(pid, kind);
            assert!(ids.iter().all(|id| *id >= 65536), "{kind} of {pid}: {ids:?}");
        }
        assert_eq!(host::status(pid, "Groups"), "", "supplementary groups of {pid}");
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).expect("a link");
        assert_ne!(namespace(&pid.to_string()), namespace("self"));
    }
    // One user namespace below boot's, in which all mounts of boot are locked.
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).expect("a link");
    assert_ne!(namespace(container.pid()), namespace(boot.pid));
    let (_, map) = container.exec_shell("map", "cat /proc/self/uid_map /proc/self/gid_map");
    let sizes = map.lines().map(|line| line.split_whitespace().last().unwrap_or("").to_owned());
    assert_eq!(sizes.collect::<Vec<_>>(), ["65536", "65536"], "{map}");
    // No process can take or give a higher ID.
    let attacks = Attacks::on_host([
        "echo 'other:x:70000:70000::/:/bin/sh' >> /etc/passwd && su other -c true",
        "touch /tmp/given && chown 65536 /tmp/given",
        "touch /tmp/given && chgrp 65536 /tmp/given",
    ]);
    containerd.holds("become", &attacks, |_| ());
}

fn two_sandboxes_have_different_users(containerd: Containerd) {
    let one = containerd.container("one", ["sleep", "1000"]).start();
    let two = containerd.container("two", ["sleep", "1000"]).start();
    let (one, two) = (host_ids(one.pid(), "Uid")[0], host_ids(two.pid(), "Uid")[0]);
    assert!(one.abs_diff(two) >= 65_536, "{one} and {two} are in ranges that overlap");
}

fn the_host_s_processes_are_out_of_reach(containerd: Containerd) {
    let container = containerd.container("alone", ["sleep", "1000"]).spec(with_all_capabilities);
    let container = container.start();
    let ask = |id: &str, script: &str| container.exec_shell(id, script).1.trim().to_owned();
    assert_eq!(ask("first", "cat /proc/1/comm"), "sleep");
    let count: u32 = ask("count", "ls -d /proc/[0-9]* | wc -l").parse().expect("a number");
    assert!(count <= 4, "{count} processes are visible");
    let host_s = fs::read_link("/proc/self/ns/pid").expect("the host's PID namespace");
    assert_ne!(ask("ns", "readlink /proc/1/ns/pid"), host_s.to_string_lossy());
    // No process leads to the host's files.
    let marker = containerd.directory().join("config.toml");
    let marker = marker.display();
    let attacks = Attacks::on_host([
        by_any_process(&format!("test -e $p/root{marker}")),
        by_any_process(&format!("test -e $p/cwd/../../../../../..{marker}")),
        by_any_process(&format!("chroot $p/root /bin/sh -c 'test -e {marker}'")),
        by_any_process(&format!("nsenter -t ${{p#/proc/}} -m -- test -e {marker}")),
    ]);
    containerd.holds("climbs", &attacks, with_all_capabilities);
}

fn container_root_is_root_on_its_volumes_and_nowhere_else(containerd: Containerd) {
    let attacks = Attacks::privileged([
        "cat /volume/of-nobody-inside",
        "chown 0 /volume/of-nobody-inside",
        "chmod 777 /volume/of-nobody-inside",
        "echo hello > /volume/kmsg",
        "head -c 1 /volume/kmsg",
        "mknod /volume/disk b 8 0",
        "mknod /volume/memory c 1 1",
        "chown 65536 /volume/kmsg",
    ]);
    let volume = || {
        let volume = tempfile::tempdir_in("/var/tmp").expect("make a volume");
        let file = volume.path().join("of-nobody-inside");
        fs::write(&file, "secret").expect("write a file");
        chown(&file, Some(70_000), Some(70_000)).expect("chown");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
        let (kmsg, mode) = (volume.path().join("kmsg"), Mode::from_bits_truncate(0o666));
        mknod(&kmsg, SFlag::S_IFCHR, mode, makedev(1, 11)).expect("mknod");
        volume
    };
    let with = |volume: &tempfile::TempDir| {
        let path = volume.path().to_str().expect("an ASCII path").to_owned();
        move |spec: &mut Value| spec::add_bind(spec, &path, "/volume", &["rbind", "rw"])
    };
    let (attacked, other) = (volume(), volume());
    let container = containerd.shell("volume", &attacks.script());
    let container = container.spec(with_all_capabilities).spec(with(&attacked)).start();
    assert_eq!(container.finish(), (0, "done\n".to_owned()));
    containerd.attacks_work("volume", &attacks, with(&other));

    let script = "touch /volume/by-root; touch /volume/by-alice; \
                  chown 1000:1000 /volume/by-alice";
    let writes = containerd.shell("writes", script).spec(with(&attacked)).start();
    assert_eq!(writes.wait().code, 0, "{}", writes.stdio().errors());
    let owner = |name: &str| {
        let stat = fs::metadata(attacked.path().join(name)).expect("a file on the volume");
        (stat.uid(), stat.gid())
    };
    assert_eq!(owner("by-root"), (0, 0));
    assert_eq!(owner("by-alice"), (1000, 1000));
    assert_eq!(owner("of-nobody-inside"), (70_000, 70_000));
}

/// Root with every capability and without a seccomp filter. Attacks that need
/// more than every machine has are in [`needs_full_host`].
fn all_capabilities_hold_nothing_outside(containerd: Containerd) {
    // File systems that show the host.
    let file_systems = ["sysfs", "devtmpfs", "debugfs", "tracefs", "securityfs"];
    let known = file_systems.into_iter().filter(|name| host::knows_file_system(name));
    let attacks = Attacks::on_host(known.map(|name| format!("mount -t {name} none /tmp")))
        .and(Attacks::on_host(["mknod /tmp/disk b 8 0", "mknod /tmp/memory c 1 1"]))
        .and(Attacks::on_host([
            // Files of the host's root.
            ": < /proc/kmsg".to_owned(),
            "grep -q '^[^0]' /proc/kallsyms".to_owned(),
            rewrite("/proc/sys/kernel/core_pattern"),
            rewrite("/proc/sys/kernel/randomize_va_space"),
            rewrite("/proc/sys/kernel/panic"),
            ": >> /proc/sys/vm/drop_caches".to_owned(),
            // The kernel itself.
            "dmesg -n $(cut -f1 /proc/sys/kernel/printk)".to_owned(),
            "renice -n -5 $$".to_owned(),
            // The present value, so that it does no harm.
            "adjtimex -t 10000".to_owned(),
            // A new user namespace gives no more.
            "unshare -Urmpf mount -t proc proc /tmp".to_owned(),
            "unshare -Urmn mount -t sysfs sysfs /tmp".to_owned(),
        ]))
        .and(attacks_on_cgroups());
    containerd.holds("capable", &attacks, |s| {
        with_all_capabilities(s);
        with_cgroup_namespace(s);
    });
}

/// Lists attacks on control groups, which only the host may set.
fn attacks_on_cgroups() -> Attacks {
    let made = "mount -t cgroup2 none /tmp && mkdir /tmp/below && rmdir /tmp/below";
    if host::has_cgroup_v2_only() {
        return Attacks::privileged([made]);
    }
    let memory = "mount -t cgroup -o memory none /tmp";
    let devices = "mount -t cgroup -o devices none /tmp";
    // Only the topmost cgroup has this file.
    let agent = format!("{memory} && {}", rewrite("/tmp/release_agent"));
    Attacks::on_host([agent]).and(Attacks::privileged([
        made.to_owned(),
        format!("{memory} && echo 1099511627776 > /tmp/memory.limit_in_bytes"),
        format!("{memory} && mkdir /tmp/below && rmdir /tmp/below"),
        format!("{devices} && echo a > /tmp/devices.allow"),
    ]))
}

/// The mounts of boot are locked even for root with every capability.
fn read_only_and_masked_paths_stay_so(containerd: Containerd) {
    let volume = tempfile::tempdir_in("/var/tmp").expect("make a volume");
    let path = volume.path().to_str().expect("an ASCII path").to_owned();
    let attacks = Attacks::on_host(["touch /touched", "touch /volume/touched"])
        .and(Attacks::privileged([
            "mount -o remount,rw / && touch /touched",
            "mount -o remount,rw,bind / && touch /touched",
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
            "umount -l /sys",
            "umount /sys/firmware",
            "umount -l /sys/firmware",
            "umount /dev/null",
            "umount -l /proc",
            "umount /proc/timer_list",
            "mount -t proc proc /tmp",
            "mount -o remount,rw,bind /proc/sys",
            "mount -o remount,rw /proc/bus",
            "mount -o remount,rw,bind /proc/bus",
        ]));
    let change = |s: &mut Value| {
        with_all_capabilities(s);
        s["root"]["readonly"] = true.into();
        spec::add_bind(s, &path, "/volume", &["rbind", "ro", "nosuid", "nodev", "noexec"]);
    };
    let container = containerd.shell("locked", &attacks.script()).spec(change).start();
    assert_eq!(container.finish(), (0, "done\n".to_owned()));
    assert!(!volume.path().join("touched").exists());
    containerd.attacks_work("locked", &attacks, change);
}

/// The masks of an ordinary container.
fn the_proc_of_the_container_is_masked(containerd: Containerd) {
    let container = containerd.container("masked", ["sleep", "1000"]).start();
    // Not every kernel has all of these files.
    let script = "for f in kcore keys timer_list; do \
                  [ ! -e /proc/$f ] || wc -c < /proc/$f; done | sort -u; \
                  ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | tr -d '\\n' | wc -c";
    assert_eq!(container.exec_shell("read", script).1, "0\n0\n");
    let attacks = Attacks::on_host([
        "test $(wc -c < /proc/timer_list) -gt 0".to_owned(),
        "ls /sys/firmware | grep -q .".to_owned(),
        rewrite("/proc/sys/vm/swappiness"),
    ]);
    containerd.holds("masks", &attacks, |_| ());
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
    let open = host::descriptors(terminal.pid());
    assert_eq!(open.keys().copied().collect::<Vec<_>>(), [0, 1, 2], "{open:?}");
    assert!(open.values().all(|to| to.ends_with("/0")), "{open:?}");
}

/// Neither in the links of a process's streams nor in the arguments of boot, which is the first
/// process of a pod that shares its PIDs. The streams can be opened by their links all the same.
fn no_path_of_the_host_is_seen_inside(containerd: Containerd) {
    let script = "echo out > /proc/self/fd/1; echo err > /proc/self/fd/2; exec sleep 1000";
    let container = containerd.shell("streams", script).start();
    container.stdio().wait_for_output("out");
    let (_, links) = container.exec_shell("links", "for n in 1 2; do readlink /proc/1/fd/$n; done");
    assert_eq!(links.lines().count(), 2, "{links}");
    let own = containerd.directory().to_string_lossy().into_owned();
    let name = own.rsplit('/').next().expect("a name");
    assert!(!links.contains(name) && !links.contains("fifo"), "{links}");
    let boot = host::process(sandbox::boot_of(container.shim()).pid).expect("boot");
    assert!(boot.args.iter().all(|argument| !argument.contains('/')), "{:?}", boot.args);
}

/// A boot that was taken over would find nothing.
fn boot_holds_channels_and_no_directory_of_the_host(containerd: Containerd) {
    let volume = tempfile::tempdir_in("/var/tmp").expect("make a volume");
    let path = volume.path().to_str().expect("an ASCII path").to_owned();
    let container = containerd
        .container("held", ["sleep", "1000"])
        .bind(&path, "/volume", &["rbind", "rw"])
        .start();
    // Then it has got what views are made from.
    let (code, seen) =
        container.exec_shell("look", "cat /proc/meminfo /sys/devices/system/cpu/kernel_max");
    assert!(code == 0 && seen.contains("MemTotal"), "{seen}");
    let boot = sandbox::boot_of(container.shim());
    // Of the capabilities it has ten, in its own user namespace, and no way to others.
    let needed = [1, 0, 3, 5, 6, 7, 18, 19, 21, 31].iter().fold(0u64, |mask, bit| mask | 1 << bit);
    let none = format!("{:016x}", 0);
    let needed = format!("{needed:016x}");
    for (set, wanted) in [
        ("CapPrm", &needed),
        ("CapEff", &needed),
        ("CapBnd", &needed),
        ("CapInh", &none),
        ("CapAmb", &none),
    ] {
        assert_eq!(&host::status(boot.pid, set), wanted, "{set}");
    }
    // boot may enter its containers' mounts anyway.
    let of = |kind: &str| fs::read_link(format!("/proc/{}/ns/{kind}", container.pid()));
    let entered = [of("mnt").expect("its mounts"), of("user").expect("its users")];
    for (number, target) in host::descriptors(boot.pid) {
        let link = format!("/proc/{}/fd/{number}", boot.pid);
        let kind = fs::metadata(&link).expect("what a descriptor refers to").file_type();
        if kind.is_dir() || kind.is_file() {
            let fs_type = statfs(Path::new(&link)).expect("statfs").filesystem_type();
            let harmless = fs_type == DEVPTS_SUPER_MAGIC
                || is_of_views(boot.pid, number, &target, fs_type)
                || target.starts_with("/memfd:")
                || target.starts_with("pid:[")
                || entered.iter().any(|entered| Path::new(&target) == entered)
                || target.starts_with("anon_inode:");
            assert!(harmless, "boot holds {number} -> {target} ({fs_type:?})");
        } else if target.starts_with('/') {
            let device = fs::metadata(&link).expect("a device").rdev();
            let known = [makedev(1, 3), makedev(10, 229)].contains(&device);
            assert!(known, "boot holds {number} -> {target}");
        }
    }
    // Its root and its directory lead nowhere either.
    let directory = fs::read_link(format!("/proc/{}/cwd", boot.pid)).expect("its directory");
    assert_eq!(directory, Path::new("/"));
    let root = format!("/proc/{}/root", boot.pid);
    let mut names: Vec<_> = fs::read_dir(root)
        .expect("read boot's root")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("ASCII"))
        .collect();
    names.sort();
    assert_eq!(names, ["container", "dev", "devices", "proc", "uncovered", "views"]);
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", boot.pid)).expect("mountinfo");
    let mut points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    points.sort_unstable();
    assert_eq!(points, ["/", "/dev", "/proc", "/views"], "{mounts}");
    // It has the arguments of its command line, and no more.
    let environment = fs::read(format!("/proc/{}/environ", boot.pid)).expect("environ");
    assert!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));
}

/// Whether boot reads views from a descriptor, and can do no more with it: a file of a cgroup or
/// of the pod's proc, open for reading alone, or a directory of sysfs that is the root of its mount.
fn is_of_views(boot: i32, number: u32, target: &str, fs_type: FsType) -> bool {
    const SYSFS_MAGIC: FsType = FsType(0x6265_6572);
    let about = fs::read_to_string(format!("/proc/{boot}/fdinfo/{number}")).expect("fdinfo");
    let flags = about.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
    let flags = i32::from_str_radix(flags.trim(), 8).expect("an octal number");
    match fs_type {
        // The pod's proc, in which the containers' processes are.
        CGROUP_SUPER_MAGIC | CGROUP2_SUPER_MAGIC | PROC_SUPER_MAGIC => {
            let file = fs::metadata(format!("/proc/{boot}/fd/{number}")).expect("what it is");
            file.is_file() && flags & nix::libc::O_ACCMODE == nix::libc::O_RDONLY
        }
        SYSFS_MAGIC => flags & nix::libc::O_PATH != 0 && target == "/",
        _ => false,
    }
}

/// CVE-2024-21626: a descriptor that is still open while the process looks up
/// its working directory or its program.
fn a_container_cannot_leave_by_its_working_directory(containerd: Containerd) {
    let container = containerd.container("cwd", ["sleep", "1000"]).start();
    let script = "for up in . .. ../.. ../../.. ../../../.. ../../../../..; do \
                  ls -d $up/run/containerd $up/containers 2>/dev/null; done; pwd -P";
    let attempt = |name: &str, cwd: &str| {
        let mut process = spec::process(&["/bin/sh", "-c", script]);
        process["cwd"] = cwd.into();
        let exec = container.exec(name, process, Streams::Captured).expect("add an exec");
        exec.start().map(|()| {
            exec.wait();
            exec.stdio().output()
        })
    };
    // The script's output in a directory of the host, and in one inside.
    let mut outside = Command::new("/bin/busybox");
    let outside = outside.args(["sh", "-c", script]).current_dir("/").output().expect("run it");
    assert!(String::from_utf8_lossy(&outside.stdout).contains("cont"), "{outside:?}");
    assert_eq!(attempt("cwd-inside", "/proc/self/cwd/tmp").expect("start it"), "/tmp\n");
    for number in 3..32 {
        for tail in ["", "/.", "/..", "/../..", "/../../.."] {
            let cwd = format!("/proc/self/fd/{number}{tail}");
            match attempt(&format!("cwd-{number}-{}", tail.len()), &cwd) {
                Ok(output) => {
                    assert!(output.starts_with('/') && !output.contains("cont"), "{cwd}: {output}");
                }
                Err(e) => assert!(e.message().contains("process.cwd"), "{cwd}: {}", e.message()),
            }
        }
    }
    let before = containerd.container("cwd-create", ["/bin/sh", "-c", script]);
    let before = before.spec(|s| s["process"]["cwd"] = "/proc/self/fd/7".into());
    let refused = before.try_create().and_then(|created| created.start());
    let refused = refused.expect_err("a directory outside of the root");
    assert!(refused.message().contains("process.cwd"), "{}", refused.message());
}

/// Opens each program that runs and is not busybox, and writes to it as soon as
/// it has ended. Until then the kernel refuses writes to any program.
const WRITES_TO_PROGRAMS: &str = "printf '#!/proc/self/exe\\n' > /tmp/script
    chmod 755 /tmp/script; echo ready
    while [ ! -e /tmp/stop ]; do for p in /proc/[0-9]*; do
        exe=$(readlink $p/exe); case $exe in */busybox|'') continue;; esac
        { echo saw $exe; : > /tmp/saw
          while [ -e $p ]; do :; done
          (: >> /proc/self/fd/9) && echo written $exe; } 9< $p/exe
    done; done 2>/dev/null; echo stopped";

/// CVE-2019-5736: through `/proc/self/exe` as the program, as a script's
/// interpreter, and through `/proc/PID/exe` of a process that comes up.
fn a_container_cannot_write_to_the_runtime_s_executable(containerd: Containerd) {
    let executable = containerd.directory().join("bin/palisade-sandbox");
    let before = fs::read(&executable).expect("read the executable");
    let container = containerd.shell("exe", WRITES_TO_PROGRAMS).spec(with_all_capabilities);
    let container = container.start();
    container.stdio().wait_for_output("ready");
    // A program of the container's own can be written to.
    container.exec_shell("prey", "cp /bin/busybox /tmp/sleep; /tmp/sleep 0.2; rm -f /tmp/saw");
    container.stdio().wait_for_output("written /tmp/sleep");
    let mut number = 0;
    integration::wait::until("the runtime is seen", || {
        for program in ["/proc/self/exe", "/tmp/script"] {
            number += 1;
            let process = spec::process(&[program, "--help"]);
            let exec = container.exec(&format!("exe-{number}"), process, Streams::Captured);
            let exec = exec.expect("add an exec");
            if exec.start().is_ok() {
                exec.wait();
            }
        }
        let seen = container.exec_shell(&format!("seen-{number}"), "test -e /tmp/saw").0 == 0;
        seen.then_some(())
    });
    container.exec_shell("stop", "touch /tmp/stop");
    let (_, output) = container.finish();
    assert!(output.contains("saw /\n"), "{output}");
    assert_eq!(output.matches("written").count(), 1, "{output}");
    assert!(fs::read(&executable).expect("read the executable") == before, "it was changed");
    assert_eq!(fs::metadata(&executable).expect("stat").permissions().mode() & 0o7777, 0o755);
}

/// A process that can follow a link to the executable in /proc has a path to
/// its mount, which is read-only. CAP_SYS_ADMIN, which any user namespace
/// gives, must not make it writable.
fn the_mount_of_the_runtime_s_executable_cannot_be_changed(containerd: Containerd) {
    let executable = containerd.directory().join("bin/palisade-sandbox");
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
                add_attacker(s);
                change(s);
            })
            .without_baseline()
            .start();
        container.stdio().wait_for_output("waiting");
        // Each exec runs it for a moment, until the attacker finds one and ends.
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
    // A mount of a file without this protection.
    let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("make a file");
    let path = file.path().to_str().expect("an ASCII path").to_owned();
    let control = ["/attacker", "--control", "change", "/file"];
    let control = containerd.container("control", control).privileged(|s| {
        add_attacker(s);
        spec::add_bind(s, &path, "/file", &["bind", "rw"]);
    });
    assert_eq!(control.start().finish(), (0, "done\n".to_owned()), "attacks that fail unprotected");
}

/// Attacks by descriptors, from beneath, in clones and in new namespaces.
fn mounts_are_locked_whatever_the_interface(containerd: Containerd) {
    let volume = tempfile::tempdir_in("/var/tmp").expect("make a volume");
    let path = volume.path().to_str().expect("an ASCII path").to_owned();
    let change = |s: &mut Value| {
        with_all_capabilities(s);
        add_attacker(s);
        s["root"]["readonly"] = true.into();
        with_cgroup_namespace(s);
        s["mounts"].as_array_mut().expect("mounts").push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["ro", "nosuid", "noexec", "nodev"],
        }));
        spec::add_bind(s, &path, "/volume", &["rbind", "ro", "nosuid", "nodev", "noexec"]);
    };
    let container = containerd.container("locked", ["/attacker", "mounts"]).spec(change);
    let container = container.without_baseline().start();
    assert_eq!(container.finish(), (0, "done\n".to_owned()));
    let control = ["/attacker", "--control", "mounts"];
    let control = containerd.container("unlocked", control).privileged(change).start();
    assert_eq!(control.finish(), (0, "done\n".to_owned()), "attacks that fail unprotected");
}

/// The sandbox's root lies below the container's in its mount namespace.
fn the_root_below_the_container_s_is_out_of_reach(containerd: Containerd) {
    let change = |s: &mut Value| {
        with_all_capabilities(s);
        add_attacker(s);
    };
    let container = containerd.container("below", ["/attacker", "below"]).spec(change);
    let container = container.without_baseline().start();
    assert_eq!(container.finish(), (0, "done\n".to_owned()));
    // Where no mount is locked, the same program finds a way.
    let control = containerd.container("above", ["/attacker", "below"]).privileged(change).start();
    let (status, output) = control.finish();
    assert_eq!(status, 0, "{output}");
    assert!(
        output.contains("exchange the root") && output.contains("unmount the root"),
        "{output}"
    );
}

/// The kernel counts them for each user, and at each user namespace for its maker.
fn limits_of_a_user_are_not_shared_with_the_host_or_another_pod(containerd: Containerd) {
    for kind in ["inotify", "signals", "queues", "fanotify"] {
        let most = usize::MAX.to_string();
        let hog = containerd
            .container(&format!("hog-{kind}"), ["/attacker", "exhaust", kind, &most])
            .spec(add_attacker)
            .start();
        let printed = hog.stdio().wait_for_output("held");
        let got: usize = printed.lines().next().and_then(|n| n.parse().ok()).expect("a number");
        assert!(got > 1, "{kind}: {printed}");
        let host = Command::new(attacker()).args(["exhaust", kind, "1"]).output().expect("run it");
        assert_eq!(String::from_utf8_lossy(&host.stdout), "1\ndone\n", "{kind}: the host's root");
        let pod = containerd
            .container(&format!("other-{kind}"), ["/attacker", "exhaust", kind, "1"])
            .spec(add_attacker)
            .start();
        assert_eq!(pod.finish(), (0, "1\ndone\n".to_owned()), "{kind}: another pod");
        // The limit holds all the same: the hog has all of its own.
        let (code, more) = hog.exec_shell("more", &format!("/attacker exhaust {kind} 1"));
        assert_eq!((code, more.as_str()), (0, "0\ndone\n"), "{kind}: its own pod");
    }
}

/// Each limit of a user namespace (instances of inotify and fanotify and what they watch, signals,
/// message queues, locked memory, and all kinds of namespaces) is charged to its maker. With the
/// pod's own namespaces, and with mappings of a spec, also where these take all IDs that boot
/// could have had for itself.
fn no_user_namespace_of_a_pod_is_made_by_the_host_s_root(containerd: Containerd) {
    let maker = |pid: i32| {
        let script = format!(
            "open F, q(/proc/{pid}/ns/user) or die; $b = pack q(L), 0; \
             ioctl F, 0xb704, $b or die; print unpack q(L), $b"
        );
        let ran = Command::new("perl").args(["-e", &script]).output().expect("run perl");
        let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
        printed.parse::<u32>().unwrap_or_else(|_| panic!("{pid}: {ran:?}"))
    };
    let mapped = |first: u32, size: u32| {
        move |s: &mut Value| {
            let map = json!([{ "containerID": 0, "hostID": first, "size": size }]);
            (s["linux"]["uidMappings"], s["linux"]["gidMappings"]) = (map.clone(), map);
            let namespaces = s["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.push(json!({ "type": "user" }));
        }
    };
    let own = containerd.container("own", ["sleep", "1000"]).start();
    let given = containerd.container("given", ["sleep", "1000"]).spec(mapped(700_000_000, 65536));
    let given = given.start();
    // Half of all IDs, those that Palisade takes ranges from among them.
    let all = containerd.container("all", ["sleep", "1000"]).spec(mapped(1 << 29, 1 << 31));
    let all = all.start();
    for container in [own, given, all] {
        let boot = sandbox::boot_of(container.shim()).pid;
        for pid in [boot, container.pid()] {
            assert_ne!(maker(pid), 0, "process {pid}");
        }
    }
}

/// The kernel counts them for all containers of the node together (`kernel.pty.max`, of which it
/// keeps `kernel.pty.reserve` for the host). A devpts with `max=` in its spec shows that what
/// ends the container without it is no other limit.
fn no_container_takes_all_terminals_of_the_kernel(containerd: Containerd) {
    let of_kernel = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/kernel/pty/{name}")).expect("read it");
        text.trim().parse::<usize>().expect("a number")
    };
    let of_containers = of_kernel("max").saturating_sub(of_kernel("reserve"));
    let share = (of_containers / 8).max(16);
    let take = |name: &str, most: usize, option: Option<&str>| {
        let option = option.map(str::to_owned);
        containerd
            .container(name, ["/attacker", "exhaust", "terminals", &most.to_string()])
            .spec(move |s| {
                add_attacker(s);
                s["process"]["rlimits"] =
                    json!([{ "type": "RLIMIT_NOFILE", "hard": 8192, "soft": 8192 }]);
                let mut mounts = s["mounts"].as_array_mut().expect("mounts").iter_mut();
                let devpts = mounts.find(|m| m["type"] == "devpts").expect("a devpts");
                let options = devpts["options"].as_array_mut().expect("options");
                options.extend(option.map(Value::from));
            })
            .start()
    };
    let hog = take("hog", usize::MAX, None);
    let got: usize = hog
        .stdio()
        .wait_for_output("held")
        .lines()
        .next()
        .expect("a line")
        .parse()
        .expect("a number");
    assert!(got > 0 && got <= share, "{got} of {of_containers}");
    // It has none left for itself, and others have theirs: another pod's, and its client's.
    assert_eq!(hog.exec_shell("more", "/attacker exhaust terminals 1"), (0, "0\ndone\n".into()));
    assert_eq!(take("other", 1, None).finish(), (0, "1\ndone\n".to_owned()));
    let shown = containerd.container("shown", ["tty"]).streams(Streams::Terminal).start();
    assert_eq!(shown.finish(), (0, "/dev/pts/0\r\n".to_owned()));
    let more = share + 10;
    let control = take("control", more, Some("max=1000000"));
    assert_eq!(control.finish(), (0, format!("{more}\ndone\n")), "what its spec gives it");
}

fn a_fork_bomb_ends_at_its_limit(containerd: Containerd) {
    let bomb = "echo ready; (b() { b | b & }; b) & exec sleep 1000";
    let container = containerd
        .shell("bomb", bomb)
        .spec(|s| s["linux"]["resources"]["pids"] = json!({ "limit": 50 }))
        .start();
    container.stdio().wait_for_output("ready");
    let boot = sandbox::boot_of(container.shim());
    let events = || {
        let file = host::cgroup_directory(boot.pid, "pids").join("pids.events");
        let text = fs::read_to_string(file).expect("read pids.events");
        text.trim().rsplit(' ').next().expect("a count").parse::<u64>().expect("a number")
    };
    integration::wait::until("the limit is hit", || (events() > 0).then_some(()));
    assert!(host::process(boot.pid).is_some(), "the sandbox process is gone");
    // An exec is refused with a reason, or it starts by chance.
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

/// boot may have collected the process before the shim looks at its pidfd.
fn a_program_that_ends_at_once_can_be_started(containerd: Containerd) {
    let container = containerd.container("brief", ["sleep", "1000"]).start();
    for number in 0..100 {
        let process = spec::process(&["true"]);
        let exec = container.exec(&format!("brief-{number}"), process, Streams::Null);
        let exec = exec.expect("add an exec");
        exec.start().unwrap_or_else(|e| panic!("start exec {number}: {}", e.message()));
        assert_eq!(exec.wait().code, 0);
    }
}

/// Tests that need files of the kernel, or capabilities of root, that some
/// machines lack.
mod needs_full_host {
    use super::*;

    on_each_containerd!(all_capabilities_hold_nothing_outside, the_proc_of_the_container_is_masked,);

    fn all_capabilities_hold_nothing_outside(containerd: Containerd) {
        let helper = "/sys/kernel/uevent_helper";
        let attacks = Attacks::on_host([
            // Masked: it can be opened, and is empty.
            "test $(head -c 1 /proc/kcore | wc -c) -gt 0".to_owned(),
            "echo h > /proc/sysrq-trigger".to_owned(),
            rewrite("/proc/sys/kernel/modprobe"),
            "echo -1000 > /proc/self/oom_score_adj".to_owned(),
            "ulimit -n 1024 && ulimit -Hn 2048".to_owned(),
        ])
        .and(Attacks::on_host(host_has(helper).then(|| rewrite(helper))))
        .and(Attacks::privileged(["umount /proc/kcore"]));
        containerd.holds("capable", &attacks, with_all_capabilities);
    }

    fn the_proc_of_the_container_is_masked(containerd: Containerd) {
        let attacks = Attacks::on_host([
            "test $(head -c 1 /proc/kcore | wc -c) -gt 0",
            "echo h > /proc/sysrq-trigger",
        ]);
        containerd.holds("masked", &attacks, |_| ());
    }
}

/// Tests that use up limits of the machine's root for a moment: beside them no other test may run
/// (`.config/nextest.toml`).
mod alone {
    use super::*;

    on_each_containerd!(what_the_host_s_root_uses_up_is_left_to_a_pod,);

    /// Fills the quota of keys of the host's root, 25 MB: add_key(2) on x86-64, into its process
    /// keyring.
    const KEYS: &str = "$| = 1; ($t, $p) = (q(user), q(x) x 32000); while ($n < 2000) { \
                        $k = qq(key-$n); last if syscall(248, $t, $k, $p, 32000, -2) < 0; $n++ } \
                        print $n < 2000 ? qq($n held\n) : qq(never\n); <STDIN>";

    /// The other direction: a node where root's own programs have used up all that the kernel
    /// gives one user still starts a pod, and the pod has all of its own.
    fn what_the_host_s_root_uses_up_is_left_to_a_pod(containerd: Containerd) {
        let most = usize::MAX.to_string();
        let mut hogs = Vec::new();
        for kind in ["inotify", "signals", "queues", "fanotify"] {
            let mut attack = Command::new(attacker());
            hogs.push(Hog::run(attack.args(["exhaust", kind, &most])));
        }
        hogs.push(Hog::run(Command::new("perl").args(["-e", KEYS])));
        let pod = containerd.container("pod", ["sleep", "1000"]).spec(add_attacker).start();
        for kind in ["inotify", "signals", "queues", "fanotify"] {
            let (code, printed) = pod.exec_shell(kind, &format!("/attacker exhaust {kind} 1"));
            assert_eq!((code, printed.as_str()), (0, "1\ndone\n"), "{kind}");
        }
        drop(hogs);
    }

    /// A program of the host's root that the kernel has refused more of something, and that holds
    /// on to what it has.
    struct Hog(Child);

    impl Hog {
        fn run(command: &mut Command) -> Hog {
            let running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let mut hog = Hog(running.expect("run it"));
            let stdout = hog.0.stdout.take().expect("a pipe");
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            assert!(lines.any(|line| line.contains("held")), "{command:?}");
            hog
        }
    }

    impl Drop for Hog {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
