//! The plan: an OCI spec, parsed and checked once. No code that follows looks
//! into the spec again, and a field of a plan is optional only where its
//! absence means something.
//!
//! A plan has two halves. [`ContainerPlan`] is the half that boot needs; it
//! travels over the control channel. [`HostPlan`] stays on the host, with the
//! shim, the gofer and `cgroup/`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

use oci_spec::runtime::{LinuxResources, LinuxSeccomp};
use rustix::mount::MountAttrFlags;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::sys::mount::PropagationKind;
use crate::sys::process::{MemoryPolicy, Rlimit, Scheduler};
use crate::types::Confined;

/// Both halves of one container's plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The half that boot carries out.
    pub container: ContainerPlan,
    /// The half that is carried out on the host.
    pub host: HostPlan,
}

/// The plan from which boot makes one container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// The container's ID.
    pub id: String,
    /// The plan of the init. `None` for the well-known pause container, whose
    /// work boot does itself.
    pub process: Option<ProcessPlan>,
    /// The namespaces that the container does not share with boot.
    pub namespaces: Namespaces,
    /// ID of the container of this pod whose PID namespace this container
    /// joins, as Kubernetes' debug containers do.
    pub pids_of: Option<String>,
    /// ID of the container of this pod whose time namespace this container joins.
    pub times_of: Option<String>,
    /// The offsets of the clocks of its own time namespace.
    pub time_offsets: Vec<TimeOffset>,
    /// Whether the container gets a user namespace of its own below boot's.
    /// False only where the sandbox has none either.
    pub user_namespace: bool,
    /// The mappings of a user namespace for this container alone, beside the pod's: it has
    /// IDs that the pod's lacks. Set when the container joins its sandbox.
    pub mappings: Option<Mappings>,
    /// Whether the root file system is remounted read-only once every mount is
    /// in place.
    pub readonly_root: bool,
    /// Propagation of the root mount as the container sees it (`linux.rootfsPropagation`).
    /// With `None` the root is private, and each mount keeps its own.
    pub root_propagation: Option<Propagation>,
    /// The mounts, in the order of the spec.
    pub mounts: Vec<MountPlan>,
    /// Absolute paths of the device nodes beyond the default ones. The gofer
    /// delivers the nodes in this order.
    pub devices: Vec<PathBuf>,
    /// Paths whose content is hidden: they read as empty.
    pub masked_paths: Vec<PathBuf>,
    /// Paths that are read-only.
    pub readonly_paths: Vec<PathBuf>,
    /// Host name of the container's UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name of the container's UTS namespace.
    pub domainname: Option<String>,
    /// Namespaced sysctls as (`a.b.c`, value), already checked against the
    /// namespaces that they belong to.
    pub sysctls: Vec<(String, String)>,
    /// Sysctls of the container's user namespace (`user.*`), likewise.
    pub user_sysctls: Vec<(String, String)>,
    /// The baseline's seccomp program, as an array of `struct sock_filter`. Empty if there is
    /// none, or if it is joined with that of [`HostPlan::seccomp`].
    pub baseline: Vec<u8>,
    /// The system calls about which boot is asked. `None` if there are none.
    pub watch: Option<Watch>,
    /// How its views count. `None` if it has none, and is told the host's CPUs and memory.
    pub views: Option<Views>,
    /// The bundle directory, which hooks find in the container's state.
    pub bundle: PathBuf,
    /// `startContainer` hooks, which run inside the container just before
    /// execve.
    pub start_hooks: Vec<HookPlan>,
}

impl ContainerPlan {
    /// Whether the container is in a PID namespace below boot's: its own, or
    /// another container's.
    pub fn pids_below(&self) -> bool {
        self.namespaces.pid || self.pids_of.is_some()
    }
}

/// The system calls of a container's processes that wait until boot has answered
/// (seccomp_unotify(2)). What boot answers is what would have happened without it, but for raw
/// sockets and views.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Whether these are calls that the seccomp program refuses, but for those that it answers
    /// with ENOSYS.
    pub refusals: bool,
    /// Calls that the program may allow, and that the kernel refuses for lack of a capability
    /// or of its power.
    pub calls: Vec<WatchedCall>,
    /// Whether raw sockets are made for processes that have CAP_NET_RAW, which has no power over
    /// a network of the host's. They are among the calls.
    pub raw_sockets: bool,
    /// Whether sched_getaffinity(2) and sysinfo(2) tell what the container's views tell, where
    /// its limits say less than the kernel.
    pub views: bool,
    /// The baseline's program alone, which tells its refusals from those of the profile. Empty
    /// unless `refusals`.
    pub baseline: Vec<u8>,
}

/// A system call that takes a capability, or that the baseline shuts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchedCall {
    /// The call's number on this machine.
    pub number: u32,
    /// The number of the capability. `None` if the baseline alone stands in the way.
    pub capability: Option<u8>,
    /// With which arguments it does: those that pass all these tests.
    pub tests: Vec<Test>,
}

/// A test of the lower half of an argument, by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Test {
    /// One of these bits is set.
    AnyOf {
        /// The argument.
        argument: u8,
        /// The bits.
        bits: u32,
    },
    /// The bits of the mask have this value.
    Equals {
        /// The argument.
        argument: u8,
        /// The bits that count.
        mask: u32,
        /// Their value.
        value: u32,
    },
}

/// The way in which a container's views (`views`) count its CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Views {
    /// Whether a CPU quota lowers the count.
    pub cpu_from_quota: bool,
    /// A quota never lowers the count below this.
    pub cpu_minimum: u32,
}

/// The namespaces that are made for the container. Where a field is false, the
/// container shares boot's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Whether it has its own PID namespace. See also
    /// [`ContainerPlan::pids_of`].
    pub pid: bool,
    /// Whether it has its own IPC namespace.
    pub ipc: bool,
    /// Whether it has its own UTS namespace.
    pub uts: bool,
    /// Whether it has its own cgroup namespace.
    pub cgroup: bool,
    /// Whether it has its own time namespace. See also [`ContainerPlan::times_of`].
    pub time: bool,
}

/// The container's shares of caches and bandwidth, as the resctrl file system has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntelRdt {
    /// The class of service: a directory's name, or `/` for the one of all others. `None` for
    /// one of its own.
    pub class: Option<String>,
    /// The lines for the class's `schemata`.
    pub schemata: Vec<String>,
    /// Whether the container has a monitoring group of its own.
    pub monitoring: bool,
}

/// A network device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    /// Its name on the host.
    pub name: String,
    /// Its name in the sandbox. `%d` stands for a number that the kernel chooses.
    pub new_name: String,
}

/// The offset of a clock in a time namespace from the host's, time_namespaces(7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffset {
    /// `monotonic` or `boottime`.
    pub clock: String,
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds beside the seconds.
    pub nanoseconds: u32,
}

/// The plan of one process: a container's init or an exec'd process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// The command line, never empty. `args[0]` is looked up in the `PATH` of
    /// [`ProcessPlan::env`] if it holds no slash.
    pub args: Vec<String>,
    /// The environment, as `NAME=value`.
    pub env: Vec<String>,
    /// The working directory, absolute.
    pub cwd: PathBuf,
    /// User ID as the container sees it.
    pub uid: u32,
    /// Group ID as the container sees it.
    pub gid: u32,
    /// Supplementary group IDs as the container sees them.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask. With `None` it is 0022.
    pub umask: Option<u32>,
    /// The terminal's size, if the process gets a terminal.
    pub terminal: Option<Terminal>,
    /// The five capability sets, as bit masks: bit n is capability n.
    pub capabilities: CapabilitySets,
    /// Resource limits of setrlimit(2).
    pub rlimits: Vec<Rlimit>,
    /// Value of `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// Whether `PR_SET_NO_NEW_PRIVS` is set.
    pub no_new_privileges: bool,
    /// Persona of personality(2).
    pub personality: Option<u64>,
    /// Attributes of sched_setattr(2).
    pub scheduler: Option<Scheduler>,
    /// Value of ioprio_set(2): the class in the upper three bits, the level
    /// below.
    pub io_priority: Option<u32>,
    /// Numbers of the CPUs that the process may run on, before it joins its cgroup and after
    /// (`execCPUAffinity`).
    pub cpu_affinity: CpuAffinity,
    /// Arguments of set_mempolicy(2).
    pub memory_policy: Option<MemoryPolicy>,
    /// AppArmor profile, which takes effect at execve.
    pub apparmor_profile: Option<String>,
    /// SELinux label, which takes effect at execve.
    pub selinux_label: Option<String>,
    /// Whether the process keeps the session keyring that it inherits instead
    /// of joining the container's.
    pub no_new_keyring: bool,
}

/// The CPUs of a process that is exec'd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuAffinity {
    /// Those from its clone on.
    pub initial: Option<Vec<u32>>,
    /// Those from the time on at which it is in its cgroup.
    pub last: Option<Vec<u32>>,
}

/// Returns a sysctl's file below `/proc/sys`. As in sysctl(8), a slash in the
/// dotted form stands for a dot: `net.ipv4.conf.eth0/1.forwarding`. The same
/// exchange makes the dotted form of a path.
pub fn sysctl_file(name: &str) -> String {
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

/// Size of a terminal, in characters. Zero leaves the kernel's default.
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
    /// The capabilities that a later execve can gain at most.
    pub bounding: u64,
    /// The capabilities in force.
    pub effective: u64,
    /// The capabilities kept over the execve of a file with inheritable file
    /// capabilities.
    pub inheritable: u64,
    /// The capabilities that the process may raise into the effective set.
    pub permitted: u64,
    /// The capabilities kept over the execve of an ordinary file.
    pub ambient: u64,
}

/// One mount of the spec, as boot carries it out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Absolute path inside the container.
    pub destination: PathBuf,
    /// The source of its content.
    pub source: MountSource,
    /// Changes of its `MOUNT_ATTR_` flags.
    pub attributes: MountAttributes,
    /// Propagation, set after mounting.
    pub propagation: Option<Propagation>,
}

/// The source of a mount's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MountSource {
    /// A fresh proc of the container's PID namespace.
    Proc,
    /// A fresh devpts, with its options.
    Devpts(Vec<FsOption>),
    /// The message queues of the container's IPC namespace.
    Mqueue,
    /// A fresh tmpfs.
    Tmpfs {
        /// File system options (`size`, `mode`, ...).
        options: Vec<FsOption>,
        /// Whether the content of the directory below is copied up first
        /// (`tmpcopyup`).
        copy_up: bool,
    },
    /// The pod's only `/dev/shm`: a tmpfs made with the first container's
    /// options. All containers that share the sandbox's IPC namespace have it.
    SharedMemory(Vec<FsOption>),
    /// The container's cgroup, as seen from its cgroup namespace.
    Cgroup,
    /// A sysfs, which the gofer delivers.
    Sysfs,
    /// A detached mount that the gofer delivers.
    Delivered,
}

impl MountSource {
    /// Whether the gofer delivers it.
    pub fn is_delivered(&self) -> bool {
        matches!(self, Self::Sysfs | Self::Delivered)
    }

    /// Returns the options of a file system that boot mounts.
    pub fn options(&self) -> &[FsOption] {
        match self {
            Self::Devpts(options) | Self::Tmpfs { options, .. } | Self::SharedMemory(options) => {
                options
            }
            Self::Proc | Self::Mqueue | Self::Cgroup | Self::Sysfs | Self::Delivered => &[],
        }
    }

    /// As [`MountSource::options`], to change them.
    pub fn options_mut(&mut self) -> &mut [FsOption] {
        match self {
            Self::Devpts(options) | Self::Tmpfs { options, .. } | Self::SharedMemory(options) => {
                options
            }
            Self::Proc | Self::Mqueue | Self::Cgroup | Self::Sysfs | Self::Delivered => &mut [],
        }
    }
}

/// A file system option: `key` or `key=value`.
pub type FsOption = (String, Option<String>);

/// The changes that mount_setattr(2) makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountAttributes {
    /// `attr_set` of the mount itself.
    #[serde(with = "attribute_bits")]
    pub set: MountAttrFlags,
    /// `attr_clr` of the mount itself.
    #[serde(with = "attribute_bits")]
    pub clear: MountAttrFlags,
    /// `attr_set`, recursively (`rro` and friends).
    #[serde(with = "attribute_bits")]
    pub recursive_set: MountAttrFlags,
    /// `attr_clr`, recursively.
    #[serde(with = "attribute_bits")]
    pub recursive_clear: MountAttrFlags,
}

impl Default for MountAttributes {
    fn default() -> Self {
        let none = MountAttrFlags::empty();
        Self { set: none, clear: none, recursive_set: none, recursive_clear: none }
    }
}

/// Mount attributes as the kernel's bits.
mod attribute_bits {
    use rustix::mount::MountAttrFlags;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        flags: &MountAttrFlags,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        flags.bits().serialize(to)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(
        from: D,
    ) -> Result<MountAttrFlags, D::Error> {
        u32::deserialize(from).map(MountAttrFlags::from_bits_retain)
    }
}

/// Mount propagation, mount_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propagation {
    /// The kind.
    pub kind: PropagationKind,
    /// Whether it applies to every mount below as well.
    pub recursive: bool,
}

/// A program that is run at a point of the container's life (OCI `hooks`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPlan {
    /// Absolute path of the program.
    pub path: PathBuf,
    /// Arguments, including `argv[0]`.
    pub args: Vec<String>,
    /// The whole environment; the program inherits nothing.
    pub env: Vec<String>,
    /// Time after which the program is killed.
    pub timeout: Option<Duration>,
}

/// The half of a plan that is carried out on the host.
#[derive(Clone, Debug)]
pub struct HostPlan {
    /// Absolute path of the root file system, used if the Create request
    /// carries no mounts.
    pub rootfs: PathBuf,
    /// Sources of the mounts that the gofer opens, each with the index of its
    /// [`MountPlan`], in ascending order of index.
    pub delivered: Vec<(usize, DeliveredSource)>,
    /// Nodes that the gofer makes for [`ContainerPlan::devices`], in that
    /// order.
    pub devices: Vec<DeviceNode>,
    /// `linux.cgroupsPath`; empty when the spec has none.
    pub cgroups_path: String,
    /// `linux.resources`, including the devices.
    pub resources: LinuxResources,
    /// `linux.intelRdt`.
    pub intel_rdt: Option<IntelRdt>,
    /// The network that the sandbox joins. For a later container of a sandbox
    /// it was checked to be the sandbox's own.
    pub network: Network,
    /// The host's network devices that are moved into the sandbox's network.
    pub net_devices: Vec<NetDevice>,
    /// The time namespace that a new sandbox joins, if it is not the host's.
    pub time_namespace: Option<PathBuf>,
    /// The host's namespaces that a new sandbox shares.
    pub host_namespaces: HostNamespaces,
    /// ID mappings of the spec, if it has any.
    pub mappings: Option<Mappings>,
    /// The number of IDs, from 0 on, of a sandbox with an allocated range.
    pub range_size: u32,
    /// The IDs beyond those that the spec names, ascending: an allocated range gets spare
    /// ones for them.
    pub foreign_ids: Vec<u32>,
    /// The first reason why `userns = "auto"` gives this sandbox no user
    /// namespace: a part of a sentence, such as "the pod is privileged". For a
    /// later container, the reason why it would get none. The shim warns if
    /// [`ContainerPlan::user_namespace`] is true nevertheless.
    pub no_user_namespace: Option<String>,
    /// `process.oomScoreAdj` of the root container, which boot gets as well.
    pub oom_score_adj: Option<i32>,
    /// Network sysctls, which the shim writes inside the network namespace.
    pub network_sysctls: Vec<(String, String)>,
    /// The seccomp profile, not compiled.
    pub seccomp: Option<LinuxSeccomp>,
    /// The baseline, if the container has one.
    pub confined: Option<Confined>,
    /// Whether the pod's containers may make user namespaces. The first container decides.
    pub nested_users: bool,
    /// Whether the pod's containers have views. The first container decides.
    pub views: bool,
    /// Hooks run on the host.
    pub hooks: HostHooks,
    /// Annotations that set properties of the cgroup's systemd unit, if it has
    /// one.
    pub unit_properties: Vec<UnitProperty>,
    /// The annotations.
    pub annotations: HashMap<String, String>,
    /// The bundle directory, absolute.
    pub bundle: PathBuf,
    /// What the spec grants or asks for and has no effect in this sandbox.
    pub powerless: Vec<Powerless>,
    /// What the gofer opens for a container that is made from a checkpoint.
    pub checkpoint: Option<CheckpointSource>,
}

/// The files of the host from which a container is restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSource {
    /// The directory with the images.
    pub images: PathBuf,
    /// criu, its loader and its libraries: the name that each gets, and its path.
    pub programs: Vec<(String, PathBuf)>,
}

/// Something that a spec grants or asks for, and that has no effect in its sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Powerless {
    /// The spec's field.
    pub field: String,
    /// What does not work: a part of a sentence.
    pub lost: String,
    /// What to set instead: a part of a sentence.
    pub instead: String,
    /// Whether containers get it by default, so that nobody may have asked for it.
    pub by_default: bool,
}

impl fmt::Display for Powerless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, lost, instead, .. } = self;
        write!(f, "{field} has no effect: {lost}; instead, {instead}")
    }
}

/// A property of a systemd unit, as in org.freedesktop.systemd1(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitProperty {
    /// Its name on the bus.
    pub name: String,
    /// Its value, of the type that the bus expects. Only systemd knows that
    /// type.
    pub value: PropertyValue,
}

/// The value of a [`UnitProperty`], named after its type on the bus.
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
    /// `prestart`, then `createRuntime` hooks: they run once the namespaces
    /// exist and before the root changes.
    pub create_runtime: Vec<HookPlan>,
    /// `createContainer` hooks.
    pub create_container: Vec<HookPlan>,
    /// `poststart` hooks.
    pub poststart: Vec<HookPlan>,
    /// `poststop` hooks.
    pub poststop: Vec<HookPlan>,
}

/// The host's namespaces that a sandbox has instead of new ones. None if it has a user
/// namespace: no process of it would have any power over them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostNamespaces {
    /// Whether its processes have the host's PIDs.
    pub pid: bool,
    /// Whether it has the host's IPC namespace.
    pub ipc: bool,
    /// Whether it has the host's UTS namespace.
    pub uts: bool,
}

/// The network namespace of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// The host's.
    Host,
    /// A new one, owned by the sandbox's user namespace.
    New,
    /// An existing one at this path.
    Path(PathBuf),
}

/// Mappings of a user namespace, as in uid_map and gid_map
/// (user_namespaces(7)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mappings {
    /// User IDs.
    pub uids: Vec<IdMapping>,
    /// Group IDs.
    pub gids: Vec<IdMapping>,
}

impl Mappings {
    /// Looks a user ID up; returns the ID that it is outside.
    pub fn uid_outside(&self, inside: u32) -> Option<u32> {
        outside(&self.uids, inside)
    }

    /// Looks a user ID up from outside; returns the ID that it is inside.
    pub fn uid_inside(&self, outside: u32) -> Option<u32> {
        let inside = |line: &IdMapping| {
            let offset = outside.checked_sub(line.outside).filter(|offset| *offset < line.size)?;
            line.inside.checked_add(offset)
        };
        self.uids.iter().find_map(inside)
    }

    /// Looks a group ID up; returns the ID that it is outside.
    pub fn gid_outside(&self, inside: u32) -> Option<u32> {
        outside(&self.gids, inside)
    }

    /// Returns the mappings of a user namespace in which the IDs outside keep their
    /// numbers, with one more ID if `own` is given.
    pub fn one_to_one(&self, own: Option<u32>) -> Self {
        let own = own.map(|id| IdMapping { inside: id, outside: id, size: 1 });
        let same = |lines: &[IdMapping]| {
            let kept = lines.iter().map(|line| IdMapping { inside: line.outside, ..*line });
            joined(kept.chain(own).collect())
        };
        Self { uids: same(&self.uids), gids: same(&self.gids) }
    }

    /// Returns the same mappings, in which no line reaches over one of these IDs outside.
    pub fn cut_at(&self, ids: &[u32]) -> Self {
        let cut = |lines: &[IdMapping]| lines.iter().flat_map(|line| line.cut_at(ids)).collect();
        Self { uids: cut(&self.uids), gids: cut(&self.gids) }
    }

    /// Whether each ID has the same number outside.
    pub fn keep_numbers(&self) -> bool {
        self.uids.iter().chain(&self.gids).all(|line| line.inside == line.outside)
    }

    /// Returns the user and the group outside of the root inside.
    pub fn root_outside(&self) -> Option<(u32, u32)> {
        Some((self.uid_outside(0)?, self.gid_outside(0)?))
    }

    /// Writes the maps of the user namespace that a process made. `process` is its
    /// directory in a proc.
    pub fn write(&self, process: impl AsRef<Path>) -> Result<()> {
        for (name, map) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            let line = |m: &IdMapping| format!("{} {} {}\n", m.inside, m.outside, m.size);
            let text: String = map.iter().map(line).collect();
            let path = process.as_ref().join(name);
            // One write(2), as user_namespaces(7) demands.
            fs::write(&path, &text).context(|| format!("write {text:?} to {}", path.display()))?;
        }
        Ok(())
    }
}

/// Joins lines that continue each other: a map has at most 340.
fn joined(mut lines: Vec<IdMapping>) -> Vec<IdMapping> {
    lines.sort_unstable_by_key(|line| line.inside);
    let mut joined: Vec<IdMapping> = Vec::with_capacity(lines.len());
    for line in lines {
        match joined.last_mut() {
            Some(last)
                if last.inside + last.size == line.inside
                    && last.outside + last.size == line.outside =>
            {
                last.size += line.size;
            }
            _ => joined.push(line),
        }
    }
    joined
}

fn outside(map: &[IdMapping], inside: u32) -> Option<u32> {
    let line = map.iter().find(|line| line.holds_inside(inside))?;
    Some(line.outside + (inside - line.inside))
}

/// One line of a uid_map or gid_map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First ID inside the user namespace.
    pub inside: u32,
    /// First ID outside of it.
    pub outside: u32,
    /// Number of IDs.
    pub size: u32,
}

impl IdMapping {
    fn cut_at(self, ids: &[u32]) -> Vec<Self> {
        let within = |id: &u32| self.outside < *id && self.holds_outside(*id);
        let mut starts: Vec<u32> = ids.iter().copied().filter(within).collect();
        starts.push(self.outside);
        starts.sort_unstable();
        starts.dedup();
        let ends = starts.iter().skip(1).copied().chain([self.outside + self.size]);
        let line = |(start, end): (&u32, u32)| Self {
            inside: self.inside + (start - self.outside),
            outside: *start,
            size: end - start,
        };
        starts.iter().zip(ends).map(line).collect()
    }

    /// Whether an ID inside is one of the line's.
    pub fn holds_inside(&self, id: u32) -> bool {
        holds(self.inside, self.size, id)
    }

    /// Whether an ID outside is one of the line's.
    pub fn holds_outside(&self, id: u32) -> bool {
        holds(self.outside, self.size, id)
    }
}

fn holds(first: u32, size: u32, id: u32) -> bool {
    id.checked_sub(first).is_some_and(|offset| offset < size)
}

/// The place where the gofer finds the content of a mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DeliveredSource {
    /// A file or directory of the host.
    Bind {
        /// Absolute path on the host.
        source: PathBuf,
        /// Whether the mounts below it are taken as well.
        recursive: bool,
        /// The mapping of its owners.
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

/// The mapping of the owners of a bind mount's files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum IdmapChoice {
    /// That of the sandbox's user namespace: host ID 0 is container ID 0. The
    /// default.
    Sandbox,
    /// None: files keep their host IDs (`noidmap`, or no user namespace).
    None,
    /// The mount's own mappings (`uidMappings`, `idmap`, `ridmap`).
    Mappings {
        /// The mappings. Empty means the container's own.
        mappings: Mappings,
        /// Whether they apply to every mount below as well (`ridmap`).
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
    /// Owner, as the container sees it.
    pub uid: u32,
    /// Group, as the container sees it.
    pub gid: u32,
}
