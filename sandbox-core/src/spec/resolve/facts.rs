//! The properties of a sandbox that a later container's plan depends on.

use std::fs::{File, Metadata};
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use caps::{CapSet, Capability};

use crate::error::{Context, Result};
use crate::spec::plan::Mappings;
use crate::sys::namespace;
use crate::types::HostPid;

/// The identity of the namespace that a file below `/proc/*/ns`, or a bind
/// mount of one, stands for. Two files stand for the same namespace if and only
/// if their device and inode numbers agree (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    /// Returns the identity of the namespace that `path` stands for.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        Ok(Self::from(std::fs::metadata(path)?))
    }
}

impl From<Metadata> for NamespaceId {
    fn from(metadata: Metadata) -> Self {
        Self { device: metadata.st_dev(), inode: metadata.st_ino() }
    }
}

/// The sandbox that a later container joins.
#[derive(Clone, Debug)]
pub struct SandboxFacts {
    /// boot's PID.
    pub boot: HostPid,
    /// boot's network namespace.
    pub network: NamespaceId,
    /// boot's PID namespace.
    pub pid: NamespaceId,
    /// boot's IPC namespace.
    pub ipc: NamespaceId,
    /// boot's UTS namespace.
    pub uts: NamespaceId,
    /// boot's time namespace, if the kernel has any.
    pub time: Option<NamespaceId>,
    /// boot's user namespace.
    pub user: NamespaceId,
    /// The user namespace of its containers, which owns its UTS namespace.
    pub pod_user: NamespaceId,
    /// Whether that owns the network namespace as well.
    pub own_network: bool,
    /// Whether the network namespace is the host's.
    pub host_network: bool,
    /// Whether the sandbox has its own user namespace.
    pub user_namespace: bool,
    /// The mappings in the root container's spec, if it has any.
    pub mappings: Option<Mappings>,
    /// Whether its containers may make user namespaces.
    pub nested_users: bool,
    /// Whether they have views.
    pub views: bool,
}

impl SandboxFacts {
    /// Reads the identity of boot's namespaces, once in a sandbox's life; its containers make
    /// no user namespaces and have no views until the caller says otherwise. The
    /// caller holds boot's pidfd and has not reaped boot, so that its PID
    /// cannot be another process's.
    pub fn read(boot: HostPid, user_namespace: bool, mappings: Option<Mappings>) -> Result<Self> {
        let of = |name: &str| {
            let path = format!("/proc/{}/ns/{name}", boot.0);
            NamespaceId::of(Path::new(&path)).context(|| format!("stat {path}"))
        };
        let network = of("net")?;
        let owner = |name: &str| -> Result<NamespaceId> {
            let path = format!("/proc/{}/ns/{name}", boot.0);
            let file = File::open(&path).context(|| format!("open {path}"))?;
            let owner = File::from(namespace::owner(file).context(|| "NS_GET_USERNS")?);
            owner.metadata().map(Into::into).context(|| "stat of a user namespace")
        };
        let pod_user = owner("uts")?;
        Ok(Self {
            boot,
            network,
            pid: of("pid")?,
            ipc: of("ipc")?,
            uts: of("uts")?,
            time: of("time").ok(),
            user: of("user")?,
            pod_user,
            own_network: owner("net").is_ok_and(|owner| owner == pod_user),
            host_network: Some(network) == own("net"),
            user_namespace,
            mappings,
            nested_users: false,
            views: false,
        })
    }
}

/// Returns the identity of this process's namespace. Since the shim makes the
/// plans, it is the host's.
pub(super) fn own(name: &str) -> Option<NamespaceId> {
    NamespaceId::of(&Path::new("/proc/self/ns").join(name)).ok()
}

/// The inode number of the first user namespace: the kernel's `PROC_USER_INIT_INO`.
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Whether this process may raise hard limits (getrlimit(2)): it has CAP_SYS_RESOURCE in the
/// first user namespace. That does not change while it runs.
pub(super) fn may_raise_limits() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        own("user").is_some_and(|namespace| namespace.inode == FIRST_USER_NAMESPACE)
            && caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).unwrap_or(false)
    })
}

/// Whether the host has cgroup version 2 and no other.
pub(in crate::spec) fn has_cgroup_v2_only() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}
