//! The mounts of a spec, in its order, in images that have nothing prepared for them. Each
//! story also passes under runc.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use integration::container::NewContainer;
use integration::containerd::{Containerd, Version};
use integration::spec::add_bind;
use nix::mount::{MntFlags, MsFlags};
use serde_json::{Value, json};

/// Makes an image FROM scratch: a shell and nothing else.
fn scratch() -> tempfile::TempDir {
    let root = tempfile::tempdir_in("/var/tmp").expect("make a directory");
    let bin = root.path().join("bin");
    fs::create_dir(&bin).expect("mkdir");
    fs::copy("/bin/busybox", bin.join("busybox")).expect("copy busybox");
    for applet in ["sh", "cat", "ls", "touch", "grep", "mkdir", "stat", "readlink"] {
        symlink("busybox", bin.join(applet)).expect("symlink");
    }
    root
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": kind, "options": options })
}

/// Runs a line of shell in a root, read-only, with these mounts beside those that every
/// container has.
fn read_only<'a>(
    containerd: &'a Containerd,
    id: &str,
    root: &Path,
    script: &str,
    change: impl FnOnce(&mut Value),
) -> NewContainer<'a> {
    let container = containerd.shell(id, script).root(root);
    container.spec(|s| s["root"]["readonly"] = true.into()).spec(change)
}

#[track_caller]
fn prints(container: NewContainer<'_>, wanted: &str) {
    let container = container.start();
    let (code, output) = container.finish();
    assert_eq!(output.trim(), wanted, "exit code {code}");
    assert_eq!(code, 0, "{output}");
}

fn add(spec: &mut Value, mounts: &[Value]) {
    spec["mounts"].as_array_mut().expect("mounts").extend_from_slice(mounts);
}

/// The image has no /proc, /sys, /dev or /etc, and its root is read-only. All mount points
/// are made, also those of the mounts that a container's own process makes.
#[test]
fn a_read_only_image_from_scratch_gets_all_its_mounts() {
    let containerd = Containerd::start(Version::V2_1);
    let root = scratch();
    let file = containerd.directory().join("hosts");
    fs::write(&file, "1.2.3.4 here\n").expect("write");
    let file = file.to_str().expect("ASCII").to_owned();
    let script = "cat /proc/self/comm /etc/hosts /deep/er/file; \
        touch /x 2>/dev/null || echo read-only; \
        for p in /dev/shm /dev/mqueue /dev/pts /dev/null /sys/class /sys/fs/cgroup /run; \
        do [ -e $p ] || echo no $p; done; \
        [ $(cat /proc/keys /proc/timer_list 2>/dev/null | grep -c .) = 0 ] && echo masked; \
        touch /proc/sys/kernel/hostname 2>/dev/null || echo protected";
    let all = read_only(&containerd, "all", root.path(), script, |s| {
        add_bind(s, &file, "/etc/hosts", &["rbind", "ro"]);
        add_bind(s, &file, "/deep/er/file", &["rbind", "ro"]);
        add(s, &[mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"])]);
    });
    prints(all, "cat\n1.2.3.4 here\n1.2.3.4 here\nread-only\nmasked\nprotected");
    let root = scratch();
    // Only proc, which the container's own process mounts.
    let proc = read_only(&containerd, "proc", root.path(), "cat /proc/self/comm", |s| {
        s["mounts"] = json!([mount("/proc", "proc", &[])]);
    });
    prints(proc, "cat");
}

/// What is mounted below a read-only tmpfs needs a mount point there. A bind that is
/// read-only is so at once.
#[test]
fn mounts_below_a_read_only_mount_are_made_as_in_runc() {
    let containerd = Containerd::start(Version::V2_1);
    let root = scratch();
    let script = "touch /t/x 2>/dev/null || echo read-only; touch /t/below/x && echo writable; \
        touch /dev/x 2>/dev/null || echo dev too; ls -d /dev/null /dev/mqueue";
    let tmpfs = read_only(&containerd, "tmpfs", root.path(), script, |s| {
        s["mounts"][1]["options"] = json!(["ro", "nosuid"]);
        add(s, &[mount("/t", "tmpfs", &["ro"]), mount("/t/below", "tmpfs", &[])]);
    });
    prints(tmpfs, "read-only\nwritable\ndev too\n/dev/mqueue\n/dev/null");
    let volume = containerd.directory().join("volume");
    fs::create_dir(&volume).expect("mkdir");
    let source = volume.to_str().expect("ASCII").to_owned();
    let bind = read_only(&containerd, "bind", root.path(), "true", |s| {
        add_bind(s, &source, "/volume", &["rbind", "ro"]);
        add(s, &[mount("/volume/below", "tmpfs", &[])]);
    });
    let refused = bind.try_create().expect_err("no mount point can be made there");
    assert!(refused.message().to_lowercase().contains("read-only file system"), "{refused:?}");
    assert_eq!(
        fs::read_dir(&volume).expect("read it").count(),
        0,
        "something was made on the host"
    );
}

/// A later mount hides an earlier one, whichever process makes them.
#[test]
fn mounts_hide_each_other_in_the_order_of_the_spec() {
    let containerd = Containerd::start(Version::V2_1);
    let file = containerd.directory().join("file");
    fs::write(&file, "mine\n").expect("write");
    let file = file.to_str().expect("ASCII").to_owned();
    let uptime = json!({
        "destination": "/proc/uptime", "type": "bind", "source": file, "options": ["bind"],
    });
    let cgroup = || mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]);
    let tmpfs = || mount("/sys", "tmpfs", &[]);
    let shown = "ls /sys/fs/cgroup 2>/dev/null | grep -c . ";
    let only_proc = |s: &mut Value| s["mounts"] = json!([mount("/proc", "proc", &[])]);

    let root = scratch();
    let after = containerd.shell("after", "cat /proc/uptime").root(root.path()).spec(only_proc);
    prints(after.spec(|s| add(s, std::slice::from_ref(&uptime))), "mine");
    let root = scratch();
    let before = containerd.shell("before", "grep -c mine /proc/uptime; true").root(root.path());
    prints(before.spec(|s| s["mounts"] = json!([uptime, mount("/proc", "proc", &[])])), "0");
    let root = scratch();
    let hidden = containerd.shell("hidden", &format!("{shown}; true")).root(root.path());
    prints(hidden.spec(only_proc).spec(|s| add(s, &[cgroup(), tmpfs()])), "0");
    let root = scratch();
    let script = format!("[ $({shown}) -gt 0 ] && echo there");
    let last = containerd.shell("last", &script).root(root.path());
    prints(last.spec(only_proc).spec(|s| add(s, &[tmpfs(), cgroup()])), "there");
    let root = scratch();
    let twice = containerd.shell("twice", "cat /proc/self/comm; ls -d /proc/1").root(root.path());
    let proc = || mount("/proc", "proc", &[]);
    prints(twice.spec(only_proc).spec(|s| add(s, &[proc(), proc()])), "cat\n/proc/1");
}

/// A bind at / takes the root's place, and hides what was mounted before.
#[test]
fn a_mount_at_the_root_takes_its_place() {
    let containerd = Containerd::start(Version::V2_1);
    let (root, other) = (scratch(), scratch());
    fs::write(other.path().join("marker"), "").expect("write");
    let source = other.path().to_str().expect("ASCII").to_owned();
    let script = "ls -d /marker /proc/1 /gone; touch /x 2>/dev/null || echo read-only";
    let replaced = read_only(&containerd, "replaced", root.path(), script, |s| {
        s["mounts"] = json!([mount("/gone", "tmpfs", &[]), mount("/proc", "proc", &[])]);
        add_bind(s, &source, "/", &["rbind", "rw"]);
        add(s, &[mount("/proc", "proc", &[])]);
    });
    let container = replaced.start();
    let (_, output) = container.finish();
    for (words, wanted) in
        [("/marker\n", true), ("/proc/1\n", true), ("/gone\n", false), ("read-only", true)]
    {
        assert_eq!(output.contains(words), wanted, "{words:?} in {output}");
    }
}

/// Relative paths begin at /, and `..` stays inside.
#[test]
fn relative_paths_and_dots_are_taken_from_the_root() {
    let containerd = Containerd::start(Version::V2_1);
    let root = scratch();
    let script = "touch /a/b/x /b/x && echo mounted; touch /x 2>/dev/null || echo read-only; \
        grep -c . /proc/timer_list; touch /secret/x 2>/dev/null || echo protected";
    let dots = read_only(&containerd, "dots", root.path(), script, |s| {
        add(s, &[mount("a/b", "tmpfs", &[]), mount("/a/../../b", "tmpfs", &[])]);
        add(s, &[mount("/secret", "tmpfs", &[])]);
        s["linux"]["maskedPaths"] = json!(["proc/timer_list"]);
        s["linux"]["readonlyPaths"] = json!(["/proc/../secret"]);
    });
    prints(dots, "mounted\nread-only\n0\nprotected");
}

/// Symlinks of the image are followed inside of it, up to what they lead to or to where it
/// is then made.
#[test]
fn destinations_that_are_symlinks_are_followed_inside() {
    let containerd = Containerd::start(Version::V2_1);
    let root = scratch();
    symlink("/real", root.path().join("link")).expect("symlink");
    symlink("../run/made/file", root.path().join("dangling")).expect("symlink");
    fs::create_dir(root.path().join("real")).expect("mkdir");
    let file = containerd.directory().join("file");
    fs::write(&file, "mine\n").expect("write");
    let file = file.to_str().expect("ASCII").to_owned();
    let links = read_only(
        &containerd,
        "links",
        root.path(),
        "touch /real/x && echo mounted; cat /dangling /run/made/file; readlink /link",
        |s| {
            add(s, &[mount("/link", "tmpfs", &[])]);
            add_bind(s, &file, "/dangling", &["rbind", "ro"]);
        },
    );
    prints(links, "mounted\nmine\nmine\n/real");
}

/// A read-only overlay of the host, as containerd mounts an image volume.
struct ImageVolume(tempfile::TempDir);

impl ImageVolume {
    fn new() -> Self {
        let place = tempfile::tempdir_in("/var/tmp").expect("make a directory");
        for (layer, name) in [("one", "first"), ("two", "second")] {
            fs::create_dir(place.path().join(layer)).expect("mkdir");
            fs::write(place.path().join(layer).join(name), name).expect("write");
        }
        fs::create_dir(place.path().join("volume")).expect("mkdir");
        let at = |name: &str| place.path().join(name).display().to_string();
        let options = format!("lowerdir={}:{}", at("one"), at("two"));
        let mounted = std::process::Command::new("mount")
            .args(["-t", "overlay", "-o", &options, "overlay", &at("volume")])
            .status();
        assert!(mounted.expect("run mount").success());
        Self(place)
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("volume")
    }
}

impl Drop for ImageVolume {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg(self.path()).status();
        let _ = unmounted;
    }
}

/// A directory of the host whose mounts are shared with whoever has a clone of it.
struct SharedVolume(tempfile::TempDir);

impl SharedVolume {
    fn new() -> Self {
        let place = tempfile::tempdir_in("/var/tmp").expect("make a directory");
        tmpfs(place.path());
        let shared = MsFlags::MS_SHARED;
        nix::mount::mount(None::<&str>, place.path(), None::<&str>, shared, None::<&str>)
            .expect("make it shared");
        fs::create_dir(place.path().join("outer")).expect("mkdir");
        fs::create_dir(place.path().join("inner")).expect("mkdir");
        Self(place)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Whether something is mounted at `inner`, as the host sees it.
    fn has_inner(&self) -> bool {
        let table = fs::read("/proc/self/mounts").expect("read the mounts");
        let table = String::from_utf8_lossy(&table);
        let inner = self.path().join("inner").display().to_string();
        table.lines().any(|line| line.split(' ').nth(1) == Some(&inner))
    }
}

impl Drop for SharedVolume {
    fn drop(&mut self) {
        for place in ["outer", "inner", ""] {
            let _ = nix::mount::umount2(&self.path().join(place), MntFlags::MNT_DETACH);
        }
    }
}

fn tmpfs(at: &Path) {
    let mode = Some("mode=755");
    nix::mount::mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), mode).expect("mount");
}

/// Binds a shared volume, then mounts in it on the host and in the container. Returns whether
/// the container sees the host's, and the host the container's.
fn exchanged(
    containerd: &Containerd,
    id: &str,
    (root, option): (&str, &str),
    privileged: bool,
) -> (bool, bool) {
    let volume = SharedVolume::new();
    let source = volume.path().to_str().expect("ASCII").to_owned();
    let change = |s: &mut Value| {
        let options = ["rbind", option];
        let options = if option.is_empty() { &options[..1] } else { &options };
        add_bind(s, &source, "/volume", options);
        if !root.is_empty() {
            s["linux"]["rootfsPropagation"] = root.into();
        }
    };
    let container = containerd.shell(id, "sleep 1000");
    let container = match privileged {
        false => container.spec(change),
        // runc takes no options, and makes no user namespace anyway.
        true if containerd.runtime_name().contains("runc") => {
            container.spec(change).spec(integration::attack::unprotect)
        }
        true => container.privileged(change),
    };
    let container = container.start();
    tmpfs(&volume.path().join("outer"));
    fs::write(volume.path().join("outer/file"), "").expect("write");
    let (seen, _) = container.exec_shell("look", "ls /volume/outer/file");
    if privileged {
        let mut process =
            integration::spec::process(&["mount", "-t", "tmpfs", "x", "/volume/inner"]);
        integration::spec::add_capabilities_of_host(&mut process);
        let exec = container.exec("mount", process, integration::stdio::Streams::Captured);
        let exec = exec.expect("an exec");
        exec.start().expect("start it");
        assert_eq!(exec.wait().code, 0, "the container can mount");
    }
    (seen == 0, volume.has_inner())
}

/// Kubernetes' HostToContainer and Bidirectional, and clients that set only the option of the
/// mount: under runc, that alone lets mounts in, and none out.
#[test]
fn mounts_are_exchanged_with_the_host_as_in_runc() {
    let containerd = Containerd::start(Version::V2_1);
    // Where nothing is asked, runc lets them in: docs/compatibility.md.
    let by_runc = containerd.runtime_name().contains("runc");
    for (number, asked, privileged, wanted) in [
        (0, ("", "rslave"), false, (true, false)),
        (1, ("rslave", "rslave"), false, (true, false)),
        (2, ("", "rprivate"), false, (false, false)),
        (3, ("rprivate", "rslave"), false, (false, false)),
        (4, ("", "rslave"), true, (true, false)),
        (5, ("", "rshared"), true, (true, false)),
        (6, ("rshared", "rshared"), true, (true, true)),
        (7, ("rshared", "rslave"), true, (true, false)),
        (8, ("rslave", "rshared"), true, (true, false)),
        (9, ("rshared", "rprivate"), true, (false, false)),
        (10, ("", ""), false, (by_runc, false)),
        (11, ("rslave", ""), false, (true, false)),
        (12, ("rprivate", ""), false, (false, false)),
        (13, ("rshared", ""), true, (true, true)),
    ] {
        let got = exchanged(&containerd, &format!("exchange-{number}"), asked, privileged);
        assert_eq!(got, wanted, "{asked:?}, privileged: {privileged}");
    }
}

/// The container's root is its root, and nobody writes to it.
#[test]
fn an_image_volume_is_read_with_its_owners() {
    let containerd = Containerd::start(Version::V2_1);
    let volume = ImageVolume::new();
    let source = volume.path().to_str().expect("ASCII").to_owned();
    let script = "cat /image/first /image/second; stat -c ' %u' /image/first; \
        touch /image/new 2>/dev/null || echo read-only";
    let root = scratch();
    let container = containerd.shell("image-volume", script).root(root.path());
    prints(container.bind(&source, "/image", &["rbind", "ro"]), "firstsecond 0\nread-only");
}
