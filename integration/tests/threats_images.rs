//! Images whose files are traps for the runtime.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use integration::attack::{Attacks, rewrite};
use integration::container::pidfd;
use integration::containerd::{Containerd, Version};
use integration::ctr::Finished;
use integration::wait;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

/// Runs a line of shell in a root file system that was tampered with: in the
/// writable layer of an image, which hides the layers below.
fn run_in_tampered_image(
    containerd: &Containerd,
    id: &str,
    change: impl FnOnce(&mut Value),
    tamper: impl FnOnce(&Path),
    script: &str,
) -> Finished {
    let container = containerd.shell(id, script).spec(change).create();
    container.kill(9).expect("kill it at its gate");
    container.wait();
    container.delete_task().expect("delete the task, keep the container");
    let mounts = containerd.ctr(["snapshots", "mounts", "/nowhere", id]).succeeded().stdout;
    let layer = mounts.split(['=', ',', ' ']).skip_while(|part| *part != "upperdir").nth(1);
    tamper(Path::new(layer.unwrap_or_else(|| panic!("no upperdir in {mounts}"))));
    let ran = containerd.ctr(["task", "start", id]);
    let _ = containerd.ctr(["task", "delete", id]);
    ran
}

/// Replaces the file at a path of the layer by a symlink.
fn link(layer: &Path, name: &str, target: &str) {
    let path = layer.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
    let _ = fs::remove_dir_all(&path);
    let _ = fs::remove_file(&path);
    symlink(target, path).expect("symlink");
}

/// A file of the host that every attack here tries to reach.
struct Target {
    directory: tempfile::TempDir,
}

impl Target {
    fn new() -> Target {
        let directory = tempfile::tempdir_in("/var/tmp").expect("make a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::write(directory.path().join("secret"), "of the host").expect("write");
        Target { directory }
    }

    fn up_and_over(&self) -> String {
        format!("../../../../../../../../{}", self.path().display())
    }

    /// Checks that a path leads to this file for a process that is not
    /// confined: on the host.
    fn assert_reached_by(&self, link: &Path) {
        let reached = fs::canonicalize(link);
        let reached = reached.unwrap_or_else(|e| panic!("follow {}: {e}", link.display()));
        assert!(reached.starts_with(self.path()), "{} leads to {reached:?}", link.display());
    }

    fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    fn assert_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.path())
            .expect("read it")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(names, ["secret"], "something was made on the host");
        assert_eq!(fs::read_to_string(self.path().join("secret")).expect("read"), "of the host");
    }
}

/// Each place where the runtime mounts or writes is a symlink out.
#[test]
fn mount_points_that_are_symlinks_stay_inside() {
    let containerd = Containerd::start(Version::V2_1);
    let places = [
        "proc",
        "dev",
        "sys",
        "run",
        "etc",
        "tmp",
        "dev/pts",
        "dev/shm",
        "dev/mqueue",
        "dev/null",
        "dev/console",
        "dev/ptmx",
        "dev/fd",
        "dev/tty",
        "volume",
    ];
    let mut started = 0;
    for (number, place) in places.iter().enumerate() {
        for (kind, absolute) in [("up", false), ("down", true)] {
            let target = Target::new();
            let volume = tempfile::tempdir_in("/var/tmp").expect("make a volume");
            let source = volume.path().to_str().expect("ASCII").to_owned();
            let goal = match absolute {
                true => target.path().display().to_string(),
                false => target.up_and_over(),
            };
            let change = |spec: &mut Value| {
                integration::spec::add_bind(spec, &source, "/volume", &["rbind", "rw"]);
                if place.starts_with("dev/") {
                    // Otherwise a new tmpfs hides the image's files.
                    let mounts = spec["mounts"].as_array_mut().expect("mounts");
                    mounts.retain(|mount| mount["destination"] != "/dev");
                }
            };
            let id = format!("link-{number}-{kind}");
            let script =
                "cat /proc/self/status | grep -c Uid; cat /*/secret /dev/*/secret 2>/dev/null";
            let ran = run_in_tampered_image(
                &containerd,
                &id,
                change,
                |layer| {
                    link(layer, place, &goal);
                    target.assert_reached_by(&layer.join(place));
                },
                script,
            );
            assert!(!ran.stdout.contains("of the host"), "{place} {kind}: {ran:?}");
            target.assert_untouched();
            started += usize::from(ran.stdout.starts_with('1'));
        }
    }
    assert!(started > 0, "no container started");
}

/// Where proc or sysfs lies is where its masks must lie: a neighbour could exchange what the
/// symlink leads to between the two. runc refuses such an image as well.
#[test]
fn proc_and_sysfs_are_mounted_on_plain_directories_only() {
    let containerd = Containerd::start(Version::V2_1);
    for (number, place) in ["proc", "sys"].iter().enumerate() {
        let ran = run_in_tampered_image(
            &containerd,
            &format!("view-{number}"),
            |_| (),
            |layer| {
                fs::create_dir(layer.join("elsewhere")).expect("make a directory");
                link(layer, place, "/elsewhere");
            },
            "true",
        );
        assert_ne!(ran.code, 0, "{place}: {ran:?}");
        let said = format!("{ran:?}");
        let ours = format!("/{place} is or leads through a symlink in the image");
        assert!(
            said.contains(&ours) || said.contains("must be mounted on ordinary directory"),
            "{said}"
        );
    }
}

/// A module of the kernel that is loaded later could make it. runc skips it in silence.
#[test]
fn a_sysctl_that_is_missing_cannot_be_read_only() {
    let containerd = Containerd::start(Version::V2_1);
    let late = "/proc/sys/net/later/one";
    let only = |paths: &'static [&'static str]| {
        move |spec: &mut Value| spec["linux"]["readonlyPaths"] = serde_json::json!(paths)
    };
    let alone = containerd.shell("alone", "true").spec(only(&["/proc/sys/net/later/one"]));
    let refused = alone.try_create().expect_err("nothing would protect it");
    assert!(refused.message().contains(&format!("linux.readonlyPaths: {late}")), "{refused:?}");
    let below =
        containerd.shell("below", "true").spec(only(&["/proc/sys/net/later/one", "/proc/sys"]));
    assert_eq!(below.start().finish().0, 0);
    let gone =
        containerd.shell("gone", "true").spec(only(&["/proc/asound", "/proc/none", "/none"]));
    assert_eq!(gone.start().finish().0, 0);
}

/// Binds `/etc/resolv.conf`, as Kubernetes does, over a symlink.
#[test]
fn a_bound_file_over_a_symlink_stays_inside() {
    let containerd = Containerd::start(Version::V2_1);
    let target = Target::new();
    let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("make a file");
    fs::write(file.path(), "nameserver 192.0.2.1\n").expect("write it");
    let source = file.path().to_str().expect("ASCII").to_owned();
    let up = format!("{}/secret", target.up_and_over());
    let down = format!("{}/secret", target.path().display());
    for (number, goal) in [up.as_str(), down.as_str(), "resolv.conf"].iter().enumerate() {
        let ran = run_in_tampered_image(
            &containerd,
            &format!("resolv-{number}"),
            |spec| integration::spec::add_bind(spec, &source, "/etc/resolv.conf", &["bind", "ro"]),
            |layer| {
                link(layer, "etc/resolv.conf", goal);
                if *goal != "resolv.conf" {
                    target.assert_reached_by(&layer.join("etc/resolv.conf"));
                }
            },
            "cat /etc/resolv.conf",
        );
        let loops = *goal == "resolv.conf";
        assert_eq!(ran.code != 0, loops, "{goal}: {ran:?}");
        assert_eq!(ran.stdout.contains("192.0.2.1"), !loops, "{goal}: {ran:?}");
        target.assert_untouched();
    }
}

/// CVE-2025-31133 and CVE-2025-52565: with a `/dev` of its own, an image can
/// fake the source of a mask and the place of a terminal.
#[test]
fn masks_and_terminals_are_real_whatever_the_image_says() {
    let containerd = Containerd::start(Version::V2_1);
    let attacks = Attacks::on_host([
        "test $(head -c 1 /proc/timer_list | wc -c) -gt 0".to_owned(),
        rewrite("/proc/sys/kernel/core_pattern"),
    ])
    .and(Attacks::privileged(["umount /proc/timer_list"]));
    let goals = ["/proc/sys/kernel/core_pattern", "/proc/timer_list", "/proc/kcore"];
    let mut started = 0;
    for (number, place) in ["null", "console", "ptmx", "pts/ptmx", "tty"].iter().enumerate() {
        for (turn, goal) in goals.iter().enumerate() {
            let change = |spec: &mut Value| {
                let mounts = spec["mounts"].as_array_mut().expect("mounts");
                mounts.retain(|mount| mount["destination"] != "/dev");
            };
            let ran = run_in_tampered_image(
                &containerd,
                &format!("fake-{number}-{turn}"),
                change,
                |layer| link(layer, &format!("dev/{place}"), goal),
                &attacks.script(),
            );
            if ran.code == 0 {
                started += 1;
                assert_eq!(ran.stdout, "done\n", "dev/{place} to {goal}: {ran:?}");
            } else {
                assert!(ran.stderr.contains("/dev/"), "dev/{place} to {goal}: {ran:?}");
            }
        }
    }
    assert!(started > 0, "no container started, and none of the attacks was tried");
    containerd.attacks_work("real", &attacks, |_| ());
}

/// Whether a program that simply reads a file still reads after a while.
fn is_never_read(file: &Path) -> bool {
    let mut reader = Command::new("cat");
    let mut reader = reader.arg(file).stdout(Stdio::null()).spawn().expect("run cat");
    let pidfd = pidfd(reader.id().cast_signed());
    let ended = wait::readable(pidfd, Duration::from_millis(200));
    let _ = reader.kill();
    let _ = reader.wait();
    !ended
}

/// The runtime reads the image's `/etc/passwd` for HOME.
#[test]
fn a_passwd_file_that_is_no_file_blocks_no_start() {
    let containerd = Containerd::start(Version::V2_1);
    type Tamper<'a> = &'a dyn Fn(&Path);
    let spoilt: [(&str, Tamper<'_>); 8] = [
        ("fifo", &|path| mkfifo(path, Mode::from_bits_truncate(0o644)).expect("mkfifo")),
        ("zero", &|path| symlink("/dev/zero", path).expect("symlink")),
        ("terminal", &|path| symlink("/dev/tty", path).expect("symlink")),
        ("kmsg", &|path| symlink("/proc/kmsg", path).expect("symlink")),
        ("memory", &|path| symlink("/proc/self/mem", path).expect("symlink")),
        ("directory", &|path| fs::create_dir(path).expect("mkdir")),
        ("loop", &|path| symlink("passwd", path).expect("symlink")),
        ("endless", &|path| {
            let options = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
            options.expect("create").set_len(1 << 40).expect("make it sparse");
        }),
    ];
    for (name, make) in spoilt {
        let ran = run_in_tampered_image(
            &containerd,
            &format!("passwd-{name}"),
            |_| (),
            |layer| {
                fs::create_dir_all(layer.join("etc")).expect("mkdir");
                make(&layer.join("etc/passwd"));
                let holds_up = ["fifo", "zero", "endless"].contains(&name);
                assert!(!holds_up || is_never_read(&layer.join("etc/passwd")), "{name}");
            },
            "echo $HOME",
        );
        assert_eq!((ran.code, ran.stdout.trim()), (0, "/"), "{name}: {ran:?}");
    }
}

/// Without protection, `/proc/self/fd` would lead to an open descriptor of the
/// runtime.
#[test]
fn a_passwd_file_that_is_one_of_our_descriptors_reveals_nothing() {
    let containerd = Containerd::start(Version::V2_1);
    // A program that simply follows such a link reads its own open file.
    let directory = tempfile::tempdir().expect("make a directory");
    let (ours, passwd) = (directory.path().join("ours"), directory.path().join("passwd"));
    fs::write(&ours, "root:x:0:0:root:/stolen:/bin/sh\n").expect("write a file");
    symlink("/proc/self/fd/7", &passwd).expect("symlink");
    let naive = format!("exec 7< {}; cat {}", ours.display(), passwd.display());
    let naive = Command::new("sh").args(["-c", &naive]).output().expect("run sh");
    assert!(String::from_utf8_lossy(&naive.stdout).contains("/stolen"), "{naive:?}");
    for number in 3..24 {
        let ran = run_in_tampered_image(
            &containerd,
            &format!("passwd-fd-{number}"),
            |_| (),
            |layer| link(layer, "etc/passwd", &format!("/proc/self/fd/{number}")),
            "echo $HOME",
        );
        assert_eq!((ran.code, ran.stdout.trim()), (0, "/"), "descriptor {number}: {ran:?}");
    }
}

/// The image's program is a link to the running program, which is the runtime.
/// It runs as any other program, and has nothing to serve.
#[test]
fn an_entrypoint_that_is_the_runtime_itself_gains_nothing() {
    let containerd = Containerd::start(Version::V2_1);
    let executable = containerd.directory().join("bin/palisade-sandbox");
    let state = || {
        let mode = fs::metadata(&executable).expect("stat").permissions().mode();
        (fs::read(&executable).expect("read the executable"), mode)
    };
    let before = state();
    let script = |layer: &Path| {
        let options = OpenOptions::new().write(true).create_new(true).mode(0o755).open(layer);
        options.expect("create").write_all(b"#!/proc/self/exe\n").expect("write");
    };
    for (id, args) in [
        ("usage", &["/bin/true"][..]),
        (
            "boot",
            &["/bin/true", "--log-fd=3", "--panic-log-fd=4", "boot", "--controller-fd=5", "x"],
        ),
        ("gofer", &["/bin/true", "gofer", "--request-fd=3"]),
        ("script", &["/bin/false"]),
    ] {
        let ran = run_in_tampered_image(
            &containerd,
            id,
            |spec| spec["process"]["args"] = serde_json::json!(args),
            |layer| {
                link(layer, "bin/true", "/proc/self/exe");
                script(&layer.join("bin/false"));
            },
            "unused",
        );
        let output = format!("{}{}", ran.stdout, ran.stderr);
        assert!(output.contains("palisade"), "{id}: it was not the runtime that ran: {ran:?}");
        assert_eq!(ran.code == 0, id == "usage", "{id}: {ran:?}");
        assert!(state() == before, "{id}: the executable was changed");
    }
}
