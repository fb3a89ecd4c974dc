//! What is known of the sandbox that a later container goes into.

use std::os::linux::fs::MetadataExt;
use std::path::Path;

use crate::error::{Context, Result};
use crate::sandbox::HostPid;
use crate::spec::plan::Mappings;

/// Which namespace a file below `/proc/*/ns` or a bind mount of one stands for.
/// Two files stand for the same namespace if and only if device and inode
/// number agree (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    /// The namespace that `path` stands for.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self { device: metadata.st_dev(), inode: metadata.st_ino() })
    }
}

/// The sandbox that a later container goes into.
#[derive(Clone, Debug)]
pub struct SandboxFacts {
    /// boot.
    pub boot: HostPid,
    /// boot's network namespace.
    pub network: NamespaceId,
    /// boot's PID namespace.
    pub pid: NamespaceId,
    /// boot's IPC namespace.
    pub ipc: NamespaceId,
    /// boot's UTS namespace.
    pub uts: NamespaceId,
    /// boot's user namespace.
    pub user: NamespaceId,
    /// The network namespace is the host's.
    pub host_network: bool,
    /// The sandbox has a user namespace of its own.
    pub user_namespace: bool,
    /// The mappings that the root container's spec brought, if it did.
    pub mappings: Option<Mappings>,
}

impl SandboxFacts {
    /// Looks at boot's namespaces, once in a sandbox's life. The caller holds
    /// boot's pidfd unreaped, so that its PID cannot be another process's.
    pub fn read(boot: HostPid, user_namespace: bool, mappings: Option<Mappings>) -> Result<Self> {
        let of = |name: &str| {
            let path = format!("/proc/{}/ns/{name}", boot.0);
            NamespaceId::of(Path::new(&path)).context(|| format!("stat {path}"))
        };
        let network = of("net")?;
        Ok(Self {
            boot,
            network,
            pid: of("pid")?,
            ipc: of("ipc")?,
            uts: of("uts")?,
            user: of("user")?,
            host_network: Some(network) == own("net"),
            user_namespace,
            mappings,
        })
    }
}

/// A namespace of this process: the host's, since plans are made by the shim.
pub(super) fn own(name: &str) -> Option<NamespaceId> {
    NamespaceId::of(&Path::new("/proc/self/ns").join(name)).ok()
}
