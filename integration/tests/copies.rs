//! Files that Palisade copies: `tmpcopyup`.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use integration::containerd::Containerd;
use integration::on_each_containerd;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, fsetxattr, makedev, mknodat};
use serde_json::json;

on_each_containerd!(
    a_copied_directory_is_like_its_original,
    file_capabilities_survive_a_copy,
    a_device_node_that_cannot_be_copied_is_told,
);

/// A file's capabilities, `struct vfs_cap_data`: version 2, effective, CAP_CHOWN.
const CAN_CHOWN: [u8; 20] = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Makes a directory that is bound at `/stuff`, and copied into the tmpfs there.
fn stuff(containerd: &Containerd) -> String {
    let stuff = containerd.directory().join("stuff");
    fs::create_dir_all(stuff.join("deep")).expect("make a directory");
    stuff.to_str().expect("an ASCII path").to_owned()
}

fn add_copy(spec: &mut serde_json::Value, source: &str) {
    integration::spec::add_bind(spec, source, "/stuff", &["bind"]);
    let tmpfs = json!({
        "destination": "/stuff", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"],
    });
    spec["mounts"].as_array_mut().expect("mounts").push(tmpfs);
}

/// runc's copies have new times, each of several names is a file of its own, and the
/// set-group-ID bit of a directory is lost.
fn a_copied_directory_is_like_its_original(containerd: Containerd) {
    let source = stuff(&containerd);
    let deep = Path::new(&source).join("deep");
    fs::write(deep.join("file"), "text\n").expect("write a file");
    fs::hard_link(deep.join("file"), deep.join("same")).expect("link it");
    chown(deep.join("file"), Some(1000), Some(1001)).expect("give it away");
    fs::set_permissions(deep.join("file"), fs::Permissions::from_mode(0o4750)).expect("chmod");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    File::open(deep.join("file")).expect("open it").set_modified(old).expect("set its time");
    chown(&deep, Some(7), Some(8)).expect("give it away");
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o711)).expect("chmod");
    let group = Path::new(&source).join("group");
    fs::create_dir(&group).expect("make a directory");
    chown(&group, Some(7), Some(8)).expect("give it away");
    fs::set_permissions(&group, fs::Permissions::from_mode(0o2770)).expect("chmod");
    let script = "stat -f -c %T /stuff; cd /stuff/deep; stat -c '%a %u %g' . file; cat same; \
                  stat -c '%h %Y' file; stat -c %a ../group";
    let container = containerd.shell("copies", script).spec(|s| add_copy(s, &source));
    let (code, output) = container.start().finish();
    let alike = "tmpfs\n711 7 8\n4750 1000 1001\ntext\n";
    assert!(code == 0 && output.starts_with(alike), "{output}");
    assert!(
        containerd.runtime_name().contains("runc") || output.ends_with("\n2 1000000\n2770\n"),
        "{output}"
    );
}

/// runc's copies have none.
fn file_capabilities_survive_a_copy(containerd: Containerd) {
    let source = stuff(&containerd);
    let program = Path::new(&source).join("busybox");
    fs::copy("/bin/busybox", &program).expect("copy busybox");
    let file = File::open(&program).expect("open it");
    fsetxattr(&file, c"security.capability", &CAN_CHOWN, XattrFlags::empty()).expect("setcap");
    let script = "/stuff/busybox grep CapEff /proc/self/status";
    let container = containerd.shell("capable", script).spec(|s| {
        add_copy(s, &source);
        s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        s["process"]["noNewPrivileges"] = json!(false);
    });
    let (code, output) = container.start().finish();
    let expected = if containerd.runtime_name().contains("runc") { 0 } else { 1 };
    assert_eq!((code, output), (0, format!("CapEff:\t{expected:016x}\n")));
}

/// runc refuses the container.
fn a_device_node_that_cannot_be_copied_is_told(containerd: Containerd) {
    let source = stuff(&containerd);
    let node = Path::new(&source).join("null");
    let (kind, mode) = (FileType::CharacterDevice, Mode::from_raw_mode(0o666));
    mknodat(CWD, &node, kind, mode, makedev(1, 3)).expect("make a node");
    fs::hard_link(&node, Path::new(&source).join("same")).expect("link it");
    let script = "ls /stuff | grep -c -e null -e same";
    let container = containerd.shell("nodes", script).spec(|s| add_copy(s, &source));
    if containerd.runtime_name().contains("runc") {
        container.try_create().expect_err("runc cannot copy nodes");
        return;
    }
    let (_, output) = container.start().finish();
    assert_eq!(output, "0\n");
    let told = "lost the device node (2 such in all)";
    assert!(containerd.log().contains(told), "{}", containerd.log());
}
