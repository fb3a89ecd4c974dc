//! The images of the tests, made from programs of this machine: a shell with
//! the usual commands (Debian's static busybox) and a pause image. They are OCI
//! layouts in a tar archive, as `ctr image import` takes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::built::{EXECUTABLES, palisade_executables};

/// An image with a shell and the usual commands, and the users `root`, `alice`
/// (1000) and `bob` (1001).
pub const BUSYBOX: &str = "palisade.test/busybox:1";

/// An image with `/pause`, for pods.
pub const PAUSE: &str = "palisade.test/pause:1";

const SHELL: &str = "/bin/busybox";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n\
    alice:x:1000:1000:alice:/home/alice:/bin/sh\n\
    bob:x:1001:1001:bob:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\nalice:x:1000:\nbob:x:1001:\nwheel:x:10:alice\n";

/// Returns the programs of this machine that the images are made from.
pub fn ingredients() -> [PathBuf; 2] {
    [SHELL.into(), sibling("pause")]
}

/// Returns an archive with both images.
pub fn archive() -> Vec<u8> {
    let mut layout = Layout::default();
    layout.add_image(BUSYBOX, busybox_layer(), &["sh"]);
    layout.add_image(PAUSE, pause_layer(), &["/pause"]);
    layout.into_archive()
}

/// Returns an archive with the shell image under another name.
pub fn named(name: &str) -> Vec<u8> {
    let mut layout = Layout::default();
    layout.add_image(name, busybox_layer(), &["sh"]);
    layout.into_archive()
}

/// The image that `integration/kubernetes/palisade.yaml` runs on nodes.
pub const INSTALLER: &str = concat!("localhost/palisade-installer:", env!("CARGO_PKG_VERSION"));

/// Returns an archive with the installer: the executables, and the scripts
/// that install them on a node.
pub fn installer() -> Vec<u8> {
    let mut layout = Layout::default();
    layout.add_image(INSTALLER, installer_layer(), &["sh"]);
    layout.into_archive()
}

fn installer_layer() -> Vec<u8> {
    let mut layer = Layer::new();
    for directory in ["bin", "node", "palisade", "proc", "sys", "dev", "etc"] {
        layer.directory(directory, 0o755, 0);
    }
    layer.directory("tmp", 0o1777, 0);
    layer.busybox();
    for name in EXECUTABLES {
        layer.program(&format!("palisade/{name}"), &palisade_executables().join(name));
    }
    layer.file("bin/palisade-node", 0o755, include_bytes!("../kubernetes/palisade-node"));
    let configure = include_bytes!("../../shim/package/palisade-containerd");
    layer.file("bin/palisade-containerd", 0o755, configure);
    layer.finish()
}

/// Returns the digest of the busybox image's only layer, which is also the name
/// of its unpacked snapshot.
pub fn busybox_diff_id() -> String {
    format!("sha256:{}", sha256(&busybox_layer()))
}

/// Unpacks the busybox image into a directory.
pub fn unpack_busybox(into: &Path) {
    unpack(&busybox_layer(), into);
}

/// Unpacks the installer into a directory.
pub fn unpack_installer(into: &Path) {
    unpack(&installer_layer(), into);
}

fn unpack(layer: &[u8], into: &Path) {
    let mut archive = tar::Archive::new(layer);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.unpack(into).expect("unpack the test image");
}

/// Returns the busybox image's only layer, as a tar archive.
pub fn busybox_layer() -> Vec<u8> {
    let mut layer = Layer::new();
    for directory in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "var"] {
        layer.directory(directory, 0o755, 0);
    }
    layer.directory("tmp", 0o1777, 0);
    layer.directory("home/alice", 0o700, 1000);
    layer.file("etc/passwd", 0o644, PASSWD.as_bytes());
    layer.file("etc/group", 0o644, GROUP.as_bytes());
    layer.file("etc/not-executable", 0o644, b"#!/bin/sh\n");
    layer.symlink("etc/outside", "../../../../../../tmp");
    layer.busybox();
    layer.finish()
}

fn pause_layer() -> Vec<u8> {
    let mut layer = Layer::new();
    layer.program("pause", &sibling("pause"));
    layer.finish()
}

fn applets() -> Vec<String> {
    let listed = std::process::Command::new(SHELL).arg("--list").output();
    let listed = listed.expect("run /bin/busybox (Debian's busybox-static)");
    let names = String::from_utf8(listed.stdout).expect("busybox lists its applets in ASCII");
    names.lines().filter(|name| *name != "busybox").map(str::to_owned).collect()
}

/// Returns an executable of this crate, which cargo puts beside the test
/// executables or one folder above them.
pub fn sibling(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("the path of this executable");
    let beside = me.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    beside
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no executable `{name}` near {}", me.display()))
}

/// A layer that is being built.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Layer {
        Layer(Builder::new(Vec::new()))
    }

    fn entry(&mut self, path: &str, kind: EntryType, mode: u32, id: u64, content: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(id);
        header.set_gid(id);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).expect("write a tar entry");
    }

    fn directory(&mut self, path: &str, mode: u32, owner: u64) {
        self.entry(path, EntryType::Directory, mode, owner, &[]);
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, EntryType::Regular, mode, 0, content);
    }

    fn program(&mut self, path: &str, from: &Path) {
        let content =
            std::fs::read(from).unwrap_or_else(|e| panic!("read {}: {e}", from.display()));
        self.file(path, 0o755, &content);
    }

    /// Adds a shell and the usual commands, in `bin`.
    fn busybox(&mut self) {
        self.program("bin/busybox", Path::new("/bin/busybox"));
        for applet in applets() {
            self.symlink(&format!("bin/{applet}"), "busybox");
        }
    }

    fn symlink(&mut self, path: &str, target: &str) {
        let mut header = Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).expect("write a tar entry");
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("finish a tar archive in memory")
    }
}

/// An OCI image layout that is being built (image-spec, image-layout.md).
#[derive(Default)]
struct Layout {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: Vec<Value>,
}

impl Layout {
    fn blob(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = sha256(&content);
        let descriptor = json!({
            "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len(),
        });
        self.blobs.insert(digest, content);
        descriptor
    }

    fn add_image(&mut self, name: &str, layer: Vec<u8>, command: &[&str]) {
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", layer);
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Cmd": command, "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
        });
        let config =
            self.blob("application/vnd.oci.image.config.v1+json", config.to_string().into());
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        let mut manifest =
            self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into());
        manifest["annotations"] = json!({ "io.containerd.image.name": name });
        self.manifests.push(manifest);
    }

    fn into_archive(self) -> Vec<u8> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        let mut archive = Layer::new();
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
        archive.file("index.json", 0o644, index.to_string().as_bytes());
        for (digest, content) in &self.blobs {
            archive.file(&format!("blobs/sha256/{digest}"), 0o644, content);
        }
        archive.finish()
    }
}

/// Returns a checksum as `sha256sum` prints it.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Formats bytes in lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
