//! The plan: an OCI spec after it was parsed and checked once. Nothing
//! downstream looks into the spec again, and nothing in a plan is optional
//! unless its absence means something.
//!
//! A plan has two halves. [`ContainerPlan`] is what boot needs and travels over
//! the control channel. [`HostPlan`] is what stays on the host side: with the
//! shim, with the gofer and with `cgroup/`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, LinuxSeccomp};
use serde::{Deserialize, Serialize};

/// Both halves of one container's plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What boot does.
    pub container: ContainerPlan,
    /// What is done on the host.
    pub host: HostPlan,
}

/// What boot needs to make one container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// The container's ID.
    pub id: String,
    /// The first process. `None` for the well-known pause container, whose
    /// part boot plays itself.
    pub process: Option<ProcessPlan>,
    /// Which namespaces are the container's own.
    pub namespaces: Namespaces,
    /// The container of the pod whose PID namespace it joins, as Kubernetes'
    /// debug containers do.
    pub pids_of: Option<String>,
    /// Whether the container gets a user namespace of its own below boot's.
    /// False only where the sandbox has none either.
    pub user_namespace: bool,
    /// The root file system is remounted read-only once every mount is in place.
    pub readonly_root: bool,
    /// Propagation of the root mount as the container sees it.
    pub root_propagation: Propagation,
    /// The mounts, in the order of the spec.
    pub mounts: Vec<MountPlan>,
    /// Absolute paths of device nodes beyond the default ones; the nodes
    /// themselves come from the gofer, in this order.
    pub devices: Vec<PathBuf>,
    /// Paths that read as empty.
    pub masked_paths: Vec<PathBuf>,
    /// Paths that cannot be written.
    pub readonly_paths: Vec<PathBuf>,
    /// Host name to set in the container's UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name to set in the container's UTS namespace.
    pub domainname: Option<String>,
    /// Namespaced sysctls, `a.b.c` to value, already checked against the
    /// namespaces that they belong to.
    pub sysctls: Vec<(String, String)>,
    /// The bundle directory, which hooks are told.
    pub bundle: PathBuf,
    /// `startContainer` hooks, run inside the container just before execve.
    pub start_hooks: Vec<HookPlan>,
}

impl ContainerPlan {
    /// Whether it is in a PID namespace below boot's: its own, or another
    /// container's.
    pub fn pids_below(&self) -> bool {
        self.namespaces.pid || self.pids_of.is_some()
    }
}

/// Which namespaces are made for the container. False means: boot's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// A PID namespace of its own. See also [`ContainerPlan::pids_of`].
    pub pid: bool,
    /// An IPC namespace of its own.
    pub ipc: bool,
    /// A UTS namespace of its own.
    pub uts: bool,
    /// A cgroup namespace of its own.
    pub cgroup: bool,
}

/// One process: a container's first or an exec'd one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// The command line; never empty. `args[0]` is looked up in `PATH` of
    /// [`ProcessPlan::env`] when it holds no slash.
    pub args: Vec<String>,
    /// `NAME=value` strings.
    pub env: Vec<String>,
    /// Working directory; absolute.
    pub cwd: PathBuf,
    /// Numeric user, group and supplementary groups as the container sees them.
    pub uid: u32,
    /// See [`ProcessPlan::uid`].
    pub gid: u32,
    /// See [`ProcessPlan::uid`].
    pub additional_gids: Vec<u32>,
    /// File mode creation mask; the kernel's inherited one when `None`.
    pub umask: Option<u32>,
    /// Present when the process gets a terminal.
    pub terminal: Option<Terminal>,
    /// The five capability sets, as bit masks (bit n is capability n).
    pub capabilities: CapabilitySets,
    /// Resource limits to set.
    pub rlimits: Vec<Rlimit>,
    /// `oom_score_adj` to set.
    pub oom_score_adj: Option<i32>,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// personality(2) persona.
    pub personality: Option<u64>,
    /// sched_setattr(2) attributes.
    pub scheduler: Option<Scheduler>,
    /// ioprio_set(2) value: class in the upper three bits, level below.
    pub io_priority: Option<u32>,
    /// CPUs the process may run on (exec CPU affinity), as a list of CPU numbers.
    pub cpu_affinity: Option<Vec<u32>>,
    /// AppArmor profile to change to at exec.
    pub apparmor_profile: Option<String>,
    /// SELinux label to take at exec.
    pub selinux_label: Option<String>,
    /// Keep the session keyring of the caller instead of joining a new one.
    pub no_new_keyring: bool,
}

/// Size of a terminal, in characters. Zero means: leave the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The five capability sets of capabilities(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// What a later exec can gain at most.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// Kept over the exec of a file with inheritable file capabilities.
    pub inheritable: u64,
    /// May be raised into effective.
    pub permitted: u64,
    /// Kept over the exec of an ordinary file.
    pub ambient: u64,
}

/// One resource limit of setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The kernel's `RLIMIT_` number.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// sched_setattr(2) attributes, in the kernel's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// `SCHED_` policy number.
    pub policy: u32,
    /// `SCHED_FLAG_` bits.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Static priority.
    pub priority: u32,
    /// Nanoseconds.
    pub runtime: u64,
    /// Nanoseconds.
    pub deadline: u64,
    /// Nanoseconds.
    pub period: u64,
}

/// One mount of the spec, as boot carries it out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Absolute path inside the container.
    pub destination: PathBuf,
    /// What is mounted there.
    pub source: MountSource,
    /// `MOUNT_ATTR_` changes, for the top mount and for all below it.
    pub attributes: MountAttributes,
    /// Propagation to set after mounting.
    pub propagation: Option<Propagation>,
}

/// Where the content of a mount comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MountSource {
    /// A fresh proc of the container's PID namespace.
    Proc,
    /// A fresh devpts instance, with its options.
    Devpts(Vec<FsOption>),
    /// The message queues of the container's IPC namespace.
    Mqueue,
    /// A fresh tmpfs.
    Tmpfs {
        /// File system options (`size`, `mode`, ...).
        options: Vec<FsOption>,
        /// First copy up what the directory below holds (`tmpcopyup`).
        copy_up: bool,
    },
    /// The pod's one `/dev/shm`: a tmpfs that the first container's options
    /// make, and that all containers have which share the sandbox's IPC.
    SharedMemory(Vec<FsOption>),
    /// The container's cgroup as seen from its cgroup namespace.
    Cgroup,
    /// A detached mount that the gofer hands over.
    Donated {
        /// The source is no directory: make a file as its mount point.
        is_file: bool,
    },
}

/// A file system option: `key` or `key=value`.
pub type FsOption = (String, Option<String>);

/// What mount_setattr(2) is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountAttributes {
    /// `attr_set` of the mount itself.
    pub set: u64,
    /// `attr_clr` of the mount itself.
    pub clear: u64,
    /// `attr_set`, recursively (`rro` and friends).
    pub recursive_set: u64,
    /// `attr_clr`, recursively.
    pub recursive_clear: u64,
}

/// Mount propagation, mount_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propagation {
    /// Which kind.
    pub kind: PropagationKind,
    /// For every mount below as well.
    pub recursive: bool,
}

/// The four kinds of propagation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PropagationKind {
    /// `MS_SHARED`
    Shared,
    /// `MS_SLAVE`
    Slave,
    /// `MS_PRIVATE`
    Private,
    /// `MS_UNBINDABLE`
    Unbindable,
}

/// A program run at a point of the container's life (OCI `hooks`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPlan {
    /// Absolute path.
    pub path: PathBuf,
    /// Arguments, including `argv[0]`.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<String>,
    /// Killed after this long.
    pub timeout: Option<Duration>,
}

/// What is done on the host for one container.
#[derive(Clone, Debug)]
pub struct HostPlan {
    /// The root file system where the Create request carries no mounts: absolute.
    pub rootfs: PathBuf,
    /// Mounts that the gofer opens, each with the index of its [`MountPlan`],
    /// in ascending order of index.
    pub donated: Vec<(usize, DonatedSource)>,
    /// Nodes to make for [`ContainerPlan::devices`], in that order.
    pub devices: Vec<DeviceNode>,
    /// `linux.cgroupsPath`; empty when the spec has none.
    pub cgroups_path: String,
    /// `linux.resources`, devices included.
    pub resources: LinuxResources,
    /// Which network the sandbox joins. For a later container of a sandbox
    /// this was checked to be the sandbox's own.
    pub network: Network,
    /// ID mappings that the spec brings, if it does.
    pub mappings: Option<Mappings>,
    /// The first reason why `userns = "auto"` gives this sandbox no user
    /// namespace (a sentence part such as "the pod is privileged"). For a later
    /// container, why it would have needed none: worth a warning if
    /// [`ContainerPlan::user_namespace`] says that it has one nevertheless.
    pub no_user_namespace: Option<String>,
    /// `process.oomScoreAdj` of the root container, which is also boot's.
    pub oom_score_adj: Option<i32>,
    /// Network sysctls, which the shim writes inside the network namespace.
    pub network_sysctls: Vec<(String, String)>,
    /// The seccomp profile, not yet compiled.
    pub seccomp: Option<LinuxSeccomp>,
    /// Hooks run on the host.
    pub hooks: HostHooks,
    /// Annotations that concern the cgroup's systemd unit, if it has one.
    pub unit_properties: Vec<UnitProperty>,
    /// The annotations.
    pub annotations: HashMap<String, String>,
    /// Bundle directory, absolute.
    pub bundle: PathBuf,
}

/// A property of a systemd unit (org.freedesktop.systemd1(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitProperty {
    /// As the bus has it.
    pub name: String,
    /// Of the type that the bus wants, which only systemd knows.
    pub value: PropertyValue,
}

/// The value of a [`UnitProperty`], by its type on the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the types of D-Bus by their names")]
pub enum PropertyValue {
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
}

/// Hooks that run in the runtime's namespaces.
#[derive(Clone, Debug, Default)]
pub struct HostHooks {
    /// `prestart` then `createRuntime`: after the namespaces exist, before the
    /// root changes.
    pub create_runtime: Vec<HookPlan>,
    /// `createContainer`
    pub create_container: Vec<HookPlan>,
    /// `poststart`
    pub poststart: Vec<HookPlan>,
    /// `poststop`
    pub poststop: Vec<HookPlan>,
}

/// The network namespace of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// The host's.
    Host,
    /// A new one, owned by the sandbox's user namespace.
    New,
    /// An existing one.
    Path(PathBuf),
}

/// User namespace mappings, as in uid_map and gid_map (user_namespaces(7)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mappings {
    /// User IDs.
    pub uids: Vec<IdMapping>,
    /// Group IDs.
    pub gids: Vec<IdMapping>,
}

/// One line of a uid_map or gid_map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First ID inside.
    pub inside: u32,
    /// First ID outside.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

/// Where the gofer finds the content of a mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DonatedSource {
    /// A file or directory of the host.
    Bind {
        /// Absolute path on the host.
        source: PathBuf,
        /// Take the mounts below it along.
        recursive: bool,
        /// How its owners appear in the container.
        idmap: IdmapChoice,
    },
    /// A fresh sysfs of the sandbox's network namespace.
    Sysfs,
    /// Any other file system type, made with fsopen(2) on the host.
    FileSystem {
        /// The type, such as `ext4` or `nfs`.
        fs_type: String,
        /// The source, as mount(8) takes it.
        source: String,
        /// File system options.
        options: Vec<FsOption>,
    },
}

/// How the owners of files in a bind mount appear inside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum IdmapChoice {
    /// By the sandbox's user namespace: host ID 0 is container ID 0. What
    /// happens when the spec says nothing.
    Sandbox,
    /// Not at all: files keep their host IDs (`noidmap`, or no user namespace).
    None,
    /// By the mappings that the mount brings (`uidMappings`, `idmap`, `ridmap`).
    Mappings {
        /// The mappings; empty means the container's own.
        mappings: Mappings,
        /// `ridmap`: for every mount below as well.
        recursive: bool,
    },
}

/// A device node that the gofer makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, with the permission bits.
    pub mode: u32,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Owner as the container sees it.
    pub uid: u32,
    /// Group as the container sees it.
    pub gid: u32,
}
