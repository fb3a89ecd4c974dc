//! Plain types that many modules share. This file imports no other module of
//! the crate.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The ID that the kernel shows for an ID without a mapping, and that images
/// call nobody.
pub(crate) const OVERFLOW_ID: u32 = 65534;

/// A process ID in the host's (the shim's) PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPid(pub i32);

/// A process ID in the pod's PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodPid(pub(crate) i32);

/// The rule by which a sandbox gets a user namespace or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Userns {
    /// Always, with an allocated range, unless the spec has mappings of its own
    /// or the pod needs the host's user namespace.
    #[default]
    Auto,
    /// Only if the spec has mappings.
    Spec,
    /// Never.
    Never,
}

/// The host IDs from which sandboxes get theirs: docs/options.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdPool {
    /// The first ID.
    pub start: u32,
    /// The number of IDs.
    pub size: u32,
    /// The number of IDs, from 0 on, that the containers of one sandbox have: a multiple of
    /// [`IdPool::SLICE`].
    pub per_sandbox: u32,
    /// Set if the shim is not root of the host. The numbers above then say nothing but how
    /// many IDs a sandbox should have.
    pub rootless: Option<Rootless>,
}

/// The IDs of a user namespace that an ordinary user made, and whose root the shim is.
///
/// All sandboxes have the same IDs, those from 0 on: files belong to them as they are, since
/// only the host's root may idmap a file system of the host (mount_setattr(2)). boots have the
/// IDs beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rootless {
    /// The number of IDs from 0 on that exist as users and as groups: at least two.
    pub ids: u32,
    /// The IDs at which a line of its own maps begins. A line of a map below must not reach
    /// over one: user_namespaces(7).
    pub lines: &'static [u32],
}

impl Rootless {
    /// Returns the number of IDs, from 0 on, of the containers of each sandbox: one at least
    /// is left for boots.
    pub fn of_containers(self, wanted: u32) -> u32 {
        wanted.min(self.ids.saturating_sub(1)).max(1)
    }
}

impl IdPool {
    /// The number of IDs that are taken together: all 16-bit IDs, as subuid(5) tools assign.
    pub const SLICE: u32 = 65536;
}

impl Default for IdPool {
    fn default() -> Self {
        Self { start: 0x4000_0000, size: 0x4000_0000, per_sandbox: Self::SLICE, rootless: None }
    }
}

/// The CPUs and the memory that a container is told it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// The number of CPUs, at least one.
    pub cpus: u32,
    /// The bytes of memory, at most the host's.
    pub memory: u64,
    /// What the kernel would tell it wrongly.
    pub limited: Limited,
}

/// What a container's limits say less of than what the kernel tells its programs by system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limited {
    /// Whether a quota is worth fewer CPUs than sched_getaffinity(2) tells.
    pub cpus: bool,
    /// Whether there is less memory than sysinfo(2) tells.
    pub memory: bool,
}

/// A file of a cgroup that a container's views are made from. The shim opens it, and boot reads
/// it at each look: cgroup-v2.rst, and memory.rst, cpuacct.rst, cpusets.rst, blkio-controller.rst
/// and pids.rst of version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ViewSource {
    /// `memory.max` or `memory.limit_in_bytes`
    MemoryLimit,
    /// `memory.current` or `memory.usage_in_bytes`
    MemoryUsage,
    /// `memory.swap.max` or `memory.memsw.limit_in_bytes`
    SwapLimit,
    /// `memory.swap.current` or `memory.memsw.usage_in_bytes`
    SwapUsage,
    /// `memory.stat`
    MemoryStat,
    /// `cpu.max` or `cpu.cfs_quota_us`
    CpuQuota,
    /// `cpu.cfs_period_us`
    CpuPeriod,
    /// `cpu.stat` or `cpuacct.stat`
    CpuStat,
    /// `cpuset.cpus.effective` or `cpuset.effective_cpus`
    Cpus,
    /// `io.stat` or `blkio.throttle.io_service_bytes_recursive`
    IoBytes,
    /// `blkio.throttle.io_serviced_recursive`
    IoOperations,
    /// `cpu.pressure`
    CpuPressure,
    /// `io.pressure`
    IoPressure,
    /// `memory.pressure`
    MemoryPressure,
    /// `pids.max`
    PidsLimit,
    /// `pids.current`
    PidsUsage,
    /// `cgroup.threads` or `tasks`
    Threads,
}

/// The name of one process of a sandbox: a container's init, or an exec'd process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// The container's ID.
    pub container: String,
    /// The exec's ID, unique in the container; `None` for the container's init.
    pub exec: Option<String>,
}

impl ProcessId {
    /// Names the init of a container.
    pub fn init(container: impl Into<String>) -> Self {
        Self { container: container.into(), exec: None }
    }

    /// Names an exec'd process of a container.
    pub fn exec(container: impl Into<String>, exec: impl Into<String>) -> Self {
        Self { container: container.into(), exec: Some(exec.into()) }
    }

    /// Whether this is a container's init.
    pub fn is_init(&self) -> bool {
        self.exec.is_none()
    }

    /// Returns the exec's ID as containerd's messages have it: empty for the
    /// init.
    pub fn exec_id(&self) -> &str {
        self.exec.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exec {
            None => write!(f, "container {}", self.container),
            Some(exec) => write!(f, "exec {exec} of container {}", self.container),
        }
    }
}

/// A system call as a seccomp program sees it (`struct seccomp_data`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Call {
    /// The architecture whose calls the number counts (`linux/audit.h`).
    pub audit: u32,
    /// The call's number.
    pub number: u32,
    /// Its arguments. Pointers are not followed.
    pub arguments: [u64; 6],
}

/// How far the baseline goes, ordered from loose to tight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// No baseline.
    Off,
    /// What ordinary software does not use is refused.
    #[default]
    Default,
    /// What is not known to be used is refused.
    Strict,
}

/// The option `baseline` with its exceptions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// How far it goes.
    pub level: Level,
    /// The parts that are allowed nevertheless.
    pub allowed: Allowed,
}

impl Baseline {
    /// No baseline.
    pub const OFF: Self = Self { level: Level::Off, allowed: Allowed::NONE };

    /// Whether it holds nested user namespaces back.
    pub(crate) fn holds_user_namespaces(self) -> bool {
        self.level != Level::Off && !self.allowed.contains(Allowed::USER_NAMESPACES)
    }
}

/// A set of parts of the kernel that are allowed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed(u32);

impl Allowed {
    /// No part.
    pub const NONE: Self = Self(0);
    pub(crate) const USER_NAMESPACES: Self = Self(1);
    pub(crate) const IO_URING: Self = Self(1 << 1);
    pub(crate) const BPF: Self = Self(1 << 2);
    pub(crate) const PERF: Self = Self(1 << 3);
    pub(crate) const USERFAULTFD: Self = Self(1 << 4);
    pub(crate) const KEYS: Self = Self(1 << 5);
    pub(crate) const SOCKETS: Self = Self(1 << 6);
    pub(crate) const ALG: Self = Self(1 << 7);
    pub(crate) const VSOCK: Self = Self(1 << 8);
    pub(crate) const CAN: Self = Self(1 << 9);
    pub(crate) const TCP_ULP: Self = Self(1 << 10);
    pub(crate) const MSG_OOB: Self = Self(1 << 11);
    pub(crate) const TIOCSTI: Self = Self(1 << 12);
    pub(crate) const SOCKETCALL: Self = Self(1 << 13);
    pub(crate) const X32: Self = Self(1 << 14);
    pub(crate) const OBSOLETE: Self = Self(1 << 15);
    pub(crate) const PERSONALITY: Self = Self(1 << 16);
    pub(crate) const PTRACE: Self = Self(1 << 17);
    pub(crate) const MULTICAST: Self = Self(1 << 18);

    /// The names that the option `baseline_allow` takes.
    pub const NAMES: [(&'static str, Self); 19] = [
        ("user_namespaces", Self::USER_NAMESPACES),
        ("io_uring", Self::IO_URING),
        ("bpf", Self::BPF),
        ("perf", Self::PERF),
        ("userfaultfd", Self::USERFAULTFD),
        ("keys", Self::KEYS),
        ("sockets", Self::SOCKETS),
        ("alg", Self::ALG),
        ("vsock", Self::VSOCK),
        ("can", Self::CAN),
        ("tcp_ulp", Self::TCP_ULP),
        ("msg_oob", Self::MSG_OOB),
        ("tiocsti", Self::TIOCSTI),
        ("socketcall", Self::SOCKETCALL),
        ("x32", Self::X32),
        ("obsolete", Self::OBSOLETE),
        ("personality", Self::PERSONALITY),
        ("ptrace", Self::PTRACE),
        ("multicast", Self::MULTICAST),
    ];

    /// Returns the part of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, part)| *part)
    }

    /// Returns the parts of both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the parts that the other set lacks.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all parts of the other set are in this one.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the names of its parts.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(_, part)| self.contains(*part)).map(|(name, _)| name)
    }
}

impl fmt::Debug for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// All that a container's program depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confined {
    /// The baseline.
    pub baseline: Baseline,
    /// The capabilities that its processes can have, as a bit mask.
    pub capabilities: u64,
    /// Whether the program holds nested user namespaces back, since the kernel's limit does
    /// not.
    pub filters_user_namespaces: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_its_container_and_its_exec() {
        let (init, exec) = (ProcessId::init("web"), ProcessId::exec("web", "sh"));
        assert_eq!((init.to_string(), init.exec_id()), ("container web".to_owned(), ""));
        assert_eq!(
            (exec.to_string(), exec.exec_id()),
            ("exec sh of container web".to_owned(), "sh")
        );
        assert!(init.is_init() && !exec.is_init());
    }
}
