//! The machine's own containerd, as a unit of systemd, which packages and
//! installers change. `ci/node` makes machines for these tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::config::cni_conflist;
use crate::slot::Slot;

/// The socket of the node's containerd.
pub const SOCKET: &str = "/run/containerd/containerd.sock";

/// The directory in which containerd looks for the pods' network.
const NETWORKS: &str = "/etc/cni/net.d";

/// The preparations for a test, undone on drop: a network for pods, and another
/// containerd in place of the distribution's.
#[derive(Debug)]
pub struct Node {
    network: PathBuf,
    replaced: Vec<PathBuf>,
}

impl Node {
    pub(crate) fn prepare(slot: &Slot, executables: &Path) -> Node {
        fs::create_dir_all(NETWORKS).expect("make the folder of networks");
        let network = Path::new(NETWORKS).join("10-palisade-test.conflist");
        fs::write(&network, cni_conflist(slot)).expect("write the network's configuration");
        let mut node = Node { network, replaced: Vec::new() };
        for name in ["containerd", "containerd-shim-runc-v2", "ctr"] {
            let (own, other) = (Path::new("/usr/bin").join(name), executables.join(name));
            if fs::canonicalize(&other).is_ok_and(|other| other == own) {
                continue;
            }
            let none: Option<&str> = None;
            mount(Some(&other), &own, none, MsFlags::MS_BIND, none)
                .unwrap_or_else(|e| panic!("bind {} to {}: {e}", other.display(), own.display()));
            node.replaced.push(own);
        }
        node
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        systemctl("stop");
        for path in &self.replaced {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_file(&self.network);
    }
}

pub(crate) fn systemctl(verb: &str) {
    let status = Command::new("systemctl").args([verb, "containerd"]).status();
    assert!(status.expect("run systemctl").success(), "systemctl {verb} containerd");
}
