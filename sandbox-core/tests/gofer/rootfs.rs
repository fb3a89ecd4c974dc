use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::process::Command;

use rustix::fs::{AtFlags, IFlags, Mode, OFlags, ioctl_setflags};
use sandbox_core::control::gofer::RootfsSource;
use sandbox_core::sys::mount::{AttrChange, Depth, attach_at, clone_mount, mount_setattr};

use crate::harness::*;

/// Checks the properties of every writable overlay for a user namespace.
pub(crate) fn check_overlay(host: &Host, run: &Run) {
    let root = run.rootfs();
    assert_eq!(read(root, "etc/base").unwrap(), "base");
    assert_eq!(read(root, "etc/hidden").unwrap(), "above");
    assert_eq!(owner(root, ""), (HOST_ROOT, HOST_ROOT));
    assert_eq!(owner(root, "etc/base"), (HOST_ROOT, HOST_ROOT));
    assert_eq!(owner(root, "etc/hidden"), (HOST_ROOT + 1000, HOST_ROOT + 1000));

    write_as(HOST_ROOT, root, "etc/new", "new").unwrap();
    write_as(HOST_ROOT + 7, root, "tmp/seven", "7").unwrap();
    write_as(HOST_ROOT, root, "etc/base", "copied up").unwrap();
    rustix::fs::unlinkat(root, "etc/hidden", AtFlags::empty()).unwrap();
    assert_eq!(list(root, "etc"), ["base", "new"]);
    assert_eq!(owner_at(host.path("snapshots/3/fs/etc/new")), (0, 0));
    assert_eq!(owner_at(host.path("snapshots/3/fs/tmp/seven")), (7, 7));
    assert_eq!(owner_at(host.path("snapshots/3/fs/etc/base")), (0, 0));
    assert_eq!(fs::read_to_string(host.path("snapshots/1/fs/etc/base")).unwrap(), "base");
}

#[test]
fn an_overlay_shows_its_layers_with_mapped_owners_and_can_be_written() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let before = host.mounts();
    let run = gofer(&asking_for(vec![snapshots(&host)]), Some(&sandbox));
    check_overlay(&host, &run);
    assert!(host.mounts().is_subset(&before));
    assert!(host.table_line(run.rootfs()).contains("- overlay overlay rw"));
}

#[test]
fn without_a_user_namespace_an_overlay_is_what_it_always_was() {
    let host = Host::new();
    let run = gofer(&asking_for(vec![snapshots(&host)]), None);
    assert_eq!(owner(run.rootfs(), "etc/hidden"), (1000, 1000));
    write_as(0, run.rootfs(), "etc/new", "new").unwrap();
    assert_eq!(owner_at(host.path("snapshots/3/fs/etc/new")), (0, 0));
}

#[test]
fn layers_of_a_view_are_read_only() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let mut view = snapshots(&host);
    view.options.retain(|o| o.starts_with("lowerdir") || o.starts_with("index"));
    view.options.push("nodev".to_owned());
    let run = gofer(&asking_for(vec![view]), Some(&sandbox));
    assert_eq!(read(run.rootfs(), "etc/base").unwrap(), "base");
    let error = write_as(HOST_ROOT, run.rootfs(), "etc/new", "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(host.table_line(run.rootfs()).contains("nodev"));
}

#[test]
fn layers_may_be_links_and_mounts_of_their_own() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let mut overlay = snapshots(&host);
    host.write("elsewhere/fs/etc/linked", "linked");
    symlink(host.path("elsewhere/fs"), host.path("snapshots/4")).unwrap();
    host.mkdir("snapshots/5/fs");
    host.mount("tmpfs", "snapshots/5/fs");
    host.write("snapshots/5/fs/etc/mounted", "mounted");
    let layers = format!("lowerdir={}:{}:", host.text("snapshots/4"), host.text("snapshots/5/fs"));
    let option = overlay.options.pop().unwrap().replace("lowerdir=", &layers);
    overlay.options.push(option);
    let run = gofer(&asking_for(vec![overlay]), Some(&sandbox));
    assert_eq!(list(run.rootfs(), "etc"), ["base", "hidden", "linked", "mounted"]);
    assert_eq!(owner(run.rootfs(), "etc/mounted").0, HOST_ROOT);
    assert_eq!(owner(run.rootfs(), "etc/linked").0, HOST_ROOT);
    check_overlay_after_links(&run);
}

fn check_overlay_after_links(run: &Run) {
    // A link in a layer stays a link, and leads nowhere on the host here.
    let stat = rustix::fs::statat(run.rootfs(), "link", AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFLNK);
}

#[test]
fn a_hundred_layers_are_no_trouble() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let mut layers = Vec::new();
    for layer in 0..100 {
        host.write(&format!("snapshots/{layer}/fs/{layer}"), "");
        layers.push(host.text(&format!("snapshots/{layer}/fs")));
    }
    let view = mount("overlay", "overlay", &[&format!("lowerdir={}", layers.join(":"))]);
    let run = gofer(&asking_for(vec![view]), Some(&sandbox));
    assert_eq!(list(run.rootfs(), "").len(), 100);
}

#[test]
fn an_overlay_that_comes_back_read_only_is_an_error() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let overlay = snapshots(&host);
    let work = fs::File::open(host.path("snapshots/3/work")).unwrap();
    ioctl_setflags(&work, IFlags::IMMUTABLE).expect(
        "root may set attributes, and TMPDIR's file system has them (as ext4 and tmpfs do)",
    );
    let run = gofer(&asking_for(vec![overlay]), Some(&sandbox));
    ioctl_setflags(&work, IFlags::empty()).unwrap();
    assert!(run.error().contains("came back read-only"), "{}", run.error());
    assert!(run.delivered.is_empty());
}

#[test]
fn containerds_uidmap_option_maps_the_layers_but_not_the_upper_directory() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let mut overlay = snapshots(&host);
    chown(host.path("snapshots/3/fs"), Some(HOST_ROOT), Some(HOST_ROOT)).unwrap();
    for key in ["uidmap", "gidmap"] {
        overlay.options.push(format!("{key}=0:{HOST_ROOT}:65536"));
    }
    let run = gofer(&asking_for(vec![overlay]), Some(&sandbox));
    assert_eq!(owner(run.rootfs(), ""), (HOST_ROOT, HOST_ROOT));
    assert_eq!(owner(run.rootfs(), "etc/hidden"), (HOST_ROOT + 1000, HOST_ROOT + 1000));
    write_as(HOST_ROOT, run.rootfs(), "etc/new", "new").unwrap();
    assert_eq!(owner_at(host.path("snapshots/3/fs/etc/new")), (HOST_ROOT, HOST_ROOT));
}

#[test]
fn a_tree_that_was_shifted_before_is_not_shifted_again() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    chown(host.mkdir("root"), Some(HOST_ROOT), Some(HOST_ROOT)).unwrap();
    let mut request = request();
    request.rootfs = RootfsSource::Directory(host.path("root"));
    let run = gofer(&request, Some(&sandbox));
    assert_eq!(owner(run.rootfs(), ""), (HOST_ROOT, HOST_ROOT));
    write_as(HOST_ROOT, run.rootfs(), "new", "new").unwrap();
    assert_eq!(owner_at(host.path("root/new")), (HOST_ROOT, HOST_ROOT));
}

#[test]
fn a_directory_and_a_bind_are_taken_with_what_is_mounted_below() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.write("root/file", "f");
    host.mount("tmpfs", "root/below");
    host.write("root/below/deep", "d");
    let mut from_directory = request();
    from_directory.rootfs = RootfsSource::Directory(host.path("root"));
    let from_bind = asking_for(vec![mount("bind", &host.text("root"), &["rbind", "rw"])]);
    for request in [from_directory, from_bind] {
        let run = gofer(&request, Some(&sandbox));
        assert_eq!(read(run.rootfs(), "below/deep").unwrap(), "d");
        assert_eq!(owner(run.rootfs(), "below/deep").0, HOST_ROOT);
        write_as(HOST_ROOT, run.rootfs(), "file", "changed").unwrap();
    }
    let read_only = asking_for(vec![mount("bind", &host.text("root"), &["bind", "ro"])]);
    let run = gofer(&read_only, Some(&sandbox));
    assert!(list(run.rootfs(), "below").is_empty());
    write_as(HOST_ROOT, run.rootfs(), "file", "x").unwrap_err();
}

#[test]
fn a_new_file_system_can_be_the_root_with_others_below() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.write("data/file", "data");
    let root = mount("tmpfs", "tmpfs", &["mode=700", "nosuid"]);
    host.mkdir("skeleton/mnt/data");
    let skeleton = mount("bind", &host.text("skeleton"), &["rbind"]);
    let mut data = mount("bind", &host.text("data"), &["bind", "ro"]);
    data.target = "mnt/data".to_owned();
    let before = host.mounts();
    let run = gofer(&asking_for(vec![root.clone(), skeleton, data]), Some(&sandbox));
    assert_eq!(read(run.rootfs(), "mnt/data/file").unwrap(), "data");
    assert_eq!(owner(run.rootfs(), "mnt/data/file").0, HOST_ROOT);
    assert!(host.mounts().is_subset(&before));

    let run = gofer(&asking_for(vec![root]), Some(&sandbox));
    assert_eq!(owner(run.rootfs(), "").0, HOST_ROOT);
    write_as(HOST_ROOT, run.rootfs(), "file", "x").unwrap();
    assert!(host.table_line(run.rootfs()).contains("nosuid"));
}

#[test]
fn a_target_below_the_root_never_leaves_it() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.write("data/file", "data");
    host.mkdir("root/etc");
    symlink("../../../etc", host.path("root/out")).unwrap();
    let root = mount("bind", &host.text("root"), &["rbind"]);
    let mut data = mount("bind", &host.text("data"), &["bind"]);
    data.target = "/out".to_owned();
    let run = gofer(&asking_for(vec![root, data]), Some(&sandbox));
    assert_eq!(list(run.rootfs(), "etc"), ["file"]);
}

#[test]
fn what_cannot_be_a_root_file_system_is_refused_in_a_sentence() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let ramfs = host.mount("ramfs", "ramfs");
    let missing = host.text("missing");
    let mapped = host.mkdir("mapped");
    let clone = clone_mount(rustix::fs::CWD, &mapped, Depth::Top).unwrap();
    let other = Sandbox::with_root(2_000_000);
    let idmap = Some(std::os::fd::AsFd::as_fd(&other.users));
    mount_setattr(&clone, Depth::Top, AttrChange { idmap, ..AttrChange::default() }).unwrap();
    attach_at(&clone, &mapped).unwrap();
    let only_upper = format!("upperdir={missing}");
    let missing_layer = format!("lowerdir={missing}");
    let mut below = mount("bind", "/", &[]);
    below.target = "x".to_owned();
    let cases = [
        (mount("overlay", "overlay", &[]), "lowerdir is missing"),
        (mount("overlay", "overlay", &["lowerdir=a:b"]), "no absolute path"),
        (mount("overlay", "overlay", &["lowerdir=/", &only_upper]), "given together"),
        (mount("overlay", "overlay", &[&missing_layer]), "missing does not exist"),
        (mount("overlay", "overlay", &["lowerdir=/etc:/usr", "colour=red"]), "colour"),
        (mount("overlay", "overlay", &["lowerdir=/", "uidmap=0:1", "gidmap=0:1:1"]), "uidmap=0:1"),
        (mount("bind", &missing, &["rbind"]), "missing does not exist"),
        (mount("bind", ramfs.to_str().unwrap(), &["rbind"]), "the ramfs file system"),
        (mount("bind", mapped.to_str().unwrap(), &["rbind"]), "is idmapped already"),
        (mount("palisadefs", "x", &[]), "no file system type \"palisadefs\""),
        (mount("tmpfs", "x", &["size=many"]), "size"),
        (mount("ext4", "/dev/null", &["loop"]), "over \"/dev/null\": expected a plain file"),
        (mount("ext4", &missing, &["loop"]), "missing\": the file cannot be opened"),
        (mount("bind", "/", &["bind", "loop"]), "takes a file system on a file"),
        (mount("overlay", "overlay", &["lowerdir=/etc", "loop"]), "takes a file system on a file"),
        (mount("mkfs/ext4", "/x", &["loop", "X-containerd.mkfs.fs=ext4"]), "mount manager"),
        (mount("mkfs/ext4", "/x", &[]), "no file system type \"mkfs/ext4\""),
        (mount("format/overlay", "x", &["lowerdir={{ mount 0 }}"]), "\"format/overlay\""),
        (mount("ext4", "/dev/null", &[]), "ext4 from \"/dev/null\""),
        (below, "no mount for the root itself"),
    ];
    for (mount, expected) in cases {
        let run = gofer(&asking_for(vec![mount.clone()]), Some(&sandbox));
        let error = run.error();
        assert!(error.contains(expected), "{mount:?}: {error}");
        assert!(error.starts_with("root file system: "), "{error}");
        println!("{error}");
    }
}

#[test]
fn the_root_of_a_new_overlay_can_be_opened_like_any_directory() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let run = gofer(&asking_for(vec![snapshots(&host)]), Some(&sandbox));
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(run.rootfs(), ".", flags, Mode::empty()).unwrap();
}

/// Some machines lend no loop devices.
mod needs_loop_devices {
    use super::*;

    /// A block device over a file, until it is dropped.
    struct Loop(String);

    impl Loop {
        fn over(image: &std::path::Path) -> Self {
            let run = Command::new("losetup").args(["--find", "--show"]).arg(image).output();
            let run = run.expect("run losetup (util-linux)");
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            Self(String::from_utf8(run.stdout).unwrap().trim().to_owned())
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let run = Command::new("losetup").args(["--detach", &self.0]).status();
            assert!(run.unwrap().success());
        }
    }

    #[test]
    fn a_block_device_can_hold_the_root_file_system() {
        let (host, sandbox) = (Host::new(), Sandbox::new());
        for (name, options, writable) in
            [("a", &["rw", "noatime"][..], true), ("b", &["ro"], false)]
        {
            let image = host.path(name);
            fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
            let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
            assert!(made.expect("run mkfs.ext4 (e2fsprogs)").success());
            let device = Loop::over(&image);
            let run = gofer(&asking_for(vec![mount("ext4", &device.0, options)]), Some(&sandbox));
            assert_eq!(owner(run.rootfs(), "lost+found").0, HOST_ROOT);
            assert_eq!(write_as(HOST_ROOT, run.rootfs(), "file", "x").is_ok(), writable);
        }
    }

    fn made_by(program: &str, args: &[&str]) {
        let run = Command::new(program).args(args).output();
        let run = run.unwrap_or_else(|e| panic!("run {program}: {e}"));
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }

    /// The devices that are over a file.
    fn devices_over(image: &std::path::Path) -> usize {
        let run = Command::new("losetup").arg("--associated").arg(image).output().unwrap();
        String::from_utf8(run.stdout).unwrap().lines().count()
    }

    /// containerd's blockfile snapshotter.
    #[test]
    fn a_file_can_hold_the_root_file_system() {
        let (host, sandbox) = (Host::new(), Sandbox::new());
        let image = host.path("image");
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        made_by("mkfs.ext4", &["-q", image.to_str().unwrap()]);
        let by = |options: &[&str]| {
            let root = mount("ext4", image.to_str().unwrap(), options);
            gofer(&asking_for(vec![root]), Some(&sandbox))
        };
        let run = by(&["loop", "rw", "direct-io"]);
        assert_eq!(owner(run.rootfs(), "lost+found").0, HOST_ROOT);
        write_as(HOST_ROOT, run.rootfs(), "file", "x").unwrap();
        // A second device over what is mounted would destroy it.
        let again = by(&["loop", "rw"]);
        assert_eq!(devices_over(&image), 1);
        assert_eq!(read(again.rootfs(), "file").unwrap(), "x");
        drop((run, again));
        until_gone(|| devices_over(&image));
        let run = by(&["ro", "loop"]);
        assert_eq!(read(run.rootfs(), "file").unwrap(), "x");
        write_as(HOST_ROOT, run.rootfs(), "file", "y").unwrap_err();
    }

    /// containerd's erofs snapshotter, for a view of one layer.
    #[test]
    fn an_erofs_file_can_hold_the_root_file_system() {
        let (host, sandbox) = (Host::new(), Sandbox::new());
        host.write("tree/dir/file", "content");
        let image = host.text("image.erofs");
        made_by("mkfs.erofs", &["--quiet", &image, &host.text("tree")]);
        // By a loop device, and by the kernel itself (6.12).
        let run = gofer(&asking_for(vec![mount("erofs", &image, &["ro", "loop"])]), Some(&sandbox));
        assert_eq!(read(run.rootfs(), "dir/file").unwrap(), "content");
        assert_eq!(owner(run.rootfs(), "dir/file").0, HOST_ROOT);
        write_as(HOST_ROOT, run.rootfs(), "dir/file", "x").unwrap_err();
        let run = gofer(&asking_for(vec![mount("erofs", &image, &["ro"])]), Some(&sandbox));
        match kernel_at_least(6, 12) {
            true => assert_eq!(read(run.rootfs(), "dir/file").unwrap(), "content"),
            false => assert!(run.error().contains(&image)),
        }
    }

    /// Detached mounts go once their last descriptor is closed, and devices with them.
    fn until_gone(left: impl Fn() -> usize) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while left() > 0 {
            assert!(std::time::Instant::now() < deadline, "{} are left", left());
            std::thread::yield_now();
        }
    }

    fn kernel_at_least(major: u32, minor: u32) -> bool {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap(), numbers.next().unwrap()) >= (major, minor)
    }
}
