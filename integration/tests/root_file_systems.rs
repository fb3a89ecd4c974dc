//! Root file systems that containerd leaves to the shim. With its snapshotter overlayfs that is
//! an overlay; the others' (blockfile, erofs) are passed here as containerd 2.x passes them,
//! after its mount manager has done its part.

use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_client::types::v1::Status as TaskStatus;
use containerd_shim_protos::types::mount::Mount;
use integration::attack::add_attacker;
use integration::containerd::{Containerd, Version};
use integration::shim::Bundle;

fn mount(kind: &str, source: &Path, options: &[&str]) -> Mount {
    Mount {
        type_: kind.to_owned(),
        source: source.to_string_lossy().into_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

fn run(program: &str, args: &[&Path]) {
    let ran = Command::new(program).args(args).output();
    let ran = ran.unwrap_or_else(|e| panic!("run {program}: {e}"));
    assert!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// Runs a container with this root to its end. Returns its exit status.
fn exit_of(bundle: &Bundle, root: Vec<Mount>) -> Result<u32, String> {
    let shim = bundle.start_shim().expect("start a shim");
    let mut request = shim.request();
    request.rootfs = root;
    let ended = shim.create_with(&request).and_then(|_| shim.run_to_end());
    shim.shutdown();
    ended
}

/// Makes a bundle whose root is moved elsewhere, to be put into a file system.
fn bundle(containerd: &Containerd, id: &str, script: &str) -> (Bundle, PathBuf) {
    let bundle = Bundle::new(containerd, id, script);
    let tree = bundle.path.join("tree");
    std::fs::rename(bundle.path.join("rootfs"), &tree).expect("move the root");
    std::fs::create_dir(bundle.path.join("rootfs")).expect("make the mount point");
    (bundle, tree)
}

#[test]
fn what_the_mount_manager_has_not_done_is_refused_by_name() {
    let containerd = Containerd::start(Version::V2_1);
    for (id, kind, options, wanted) in [
        ("mkfs", "mkfs/ext4", &["X-containerd.mkfs.fs=ext4", "loop"][..], "X-containerd.mkfs.fs"),
        ("format", "format/overlay", &["lowerdir={{ mount 0 }}"], "format/overlay"),
        ("unknown", "palisadefs", &[], "palisadefs"),
    ] {
        let (bundle, tree) = bundle(&containerd, id, "true");
        let error = exit_of(&bundle, vec![mount(kind, &tree, options)]).expect_err(kind);
        assert!(error.contains(wanted) && error.contains("rootfs[0]"), "{error}");
    }
}

mod needs_loop_devices {
    use super::*;

    /// containerd's blockfile snapshotter.
    #[test]
    fn a_file_with_ext4_holds_a_root() {
        let containerd = Containerd::start(Version::V2_1);
        let script = "echo new > /file && [ \"$(stat -c %u /bin/busybox)\" = 0 ] && exit 7";
        let (bundle, tree) = bundle(&containerd, "blockfile", script);
        let image = bundle.path.join("image");
        std::fs::File::create(&image).and_then(|f| f.set_len(64 << 20)).expect("make a file");
        run("mkfs.ext4", &["-q".as_ref(), "-d".as_ref(), &tree, &image]);
        let root = || vec![mount("ext4", &image, &["rw", "loop"])];
        assert_eq!(exit_of(&bundle, root()), Ok(7));
        assert_eq!(devices_of(&image), "");
        // What a container has written is there for the next.
        let (again, _) = super::bundle(&containerd, "again", "grep -q new /file");
        assert_eq!(exit_of(&again, root()), Ok(0));
        assert_eq!(devices_of(&image), "");
    }

    /// A container's file systems on devices are gone when its Delete returns: a snapshotter
    /// takes the device away then.
    fn devices_of(image: &Path) -> String {
        let listed = Command::new("losetup").arg("-j").arg(image).output().expect("losetup");
        String::from_utf8_lossy(&listed.stdout).into_owned()
    }

    /// The kernel closes late what it cannot close at once, one after another for the whole
    /// host, and any container can hold that up.
    #[test]
    fn another_pod_cannot_hold_up_the_end_of_a_root() {
        let containerd = Containerd::start(Version::V2_1);
        let hog = containerd.container("hog", ["/attacker", "hold-closes"]).spec(add_attacker);
        let hog = hog.start();
        hog.stdio().wait_for_output("held");
        let (bundle, tree) = bundle(&containerd, "other", "exit 7");
        let image = bundle.path.join("image");
        std::fs::File::create(&image).and_then(|f| f.set_len(64 << 20)).expect("make a file");
        run("mkfs.ext4", &["-q".as_ref(), "-d".as_ref(), &tree, &image]);
        assert_eq!(exit_of(&bundle, vec![mount("ext4", &image, &["rw", "loop"])]), Ok(7));
        assert_eq!(devices_of(&image), "");
        assert_eq!(hog.status(), TaskStatus::Running);
    }

    /// containerd's erofs snapshotter: a view of one layer, and layers that the mount manager
    /// has mounted on the host, below a writable overlay.
    #[test]
    fn erofs_layers_hold_a_root() {
        let containerd = Containerd::start(Version::V2_1);
        let script = "[ \"$(stat -c %u /bin/busybox)\" = 0 ] && ! echo x > /file && exit 7";
        let (one, tree) = bundle(&containerd, "erofs-view", script);
        let image = one.path.join("layer.erofs");
        run("mkfs.erofs", &["--quiet".as_ref(), &image, &tree]);
        assert_eq!(exit_of(&one, vec![mount("erofs", &image, &["ro", "loop"])]), Ok(7));

        let script = "[ \"$(stat -c %u /bin/busybox)\" = 0 ] && echo x > /file && exit 8";
        let (two, _) = bundle(&containerd, "erofs-overlay", script);
        let [layer, upper, work] = ["layer", "upper", "work"].map(|name| two.path.join(name));
        for path in [&layer, &upper, &work] {
            std::fs::create_dir(path).expect("make a directory");
        }
        run("mount", &["-t".as_ref(), "erofs".as_ref(), "-oro,loop".as_ref(), &image, &layer]);
        let directories = [("lowerdir", &layer), ("upperdir", &upper), ("workdir", &work)];
        let options = directories.map(|(key, path)| format!("{key}={}", path.display()));
        let options = options.each_ref().map(String::as_str);
        let ended = exit_of(&two, vec![mount("overlay", Path::new("overlay"), &options)]);
        run("umount", &[&layer]);
        assert_eq!(ended, Ok(8));
        assert_eq!(std::fs::read_to_string(upper.join("file")).expect("the file"), "x\n");
    }
}
