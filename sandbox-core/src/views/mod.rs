//! The views: what a container is told about its CPUs and its memory, live, wherever a program
//! looks.
//!
//! ```text
//!   a program reads /proc/meminfo ──▶ the kernel asks boot (`fuse`) ──▶ what the container's
//!                                     cgroup says now (`sources`) ──▶ the text (`files`)
//! ```
//! boot serves a file system of its own to the kernel, with one directory per container, whose
//! files the newborn binds over the kernel's. All is read when somebody looks: nothing here has
//! a thread, a timer or a cache that could say what was true before. Which CPUs a container is
//! told it has is in `cpus`; what boot's own proc says is in `host`.

pub(crate) mod cpus;
pub(crate) mod files;
pub mod fuse;
pub(crate) mod host;
mod kernel_file;
mod memory_stat;
#[cfg(test)]
pub(crate) mod recorded;
pub(crate) mod sources;

/// A file whose text boot makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum File {
    /// `/proc/cpuinfo`
    Cpuinfo,
    /// `/proc/diskstats`
    Diskstats,
    /// `/proc/loadavg`
    Loadavg,
    /// `/proc/meminfo`
    Meminfo,
    /// `/proc/stat`
    Stat,
    /// `/proc/swaps`
    Swaps,
    /// `/proc/uptime`
    Uptime,
    /// `/proc/pressure/cpu`
    PressureCpu,
    /// `/proc/pressure/io`
    PressureIo,
    /// `/proc/pressure/memory`
    PressureMemory,
    /// `/proc/sys/kernel/threads-max`
    ThreadsMax,
    /// `/sys/devices/system/cpu/online`
    CpuOnline,
    /// `/sys/devices/system/cpu/possible`
    CpuPossible,
    /// `/sys/devices/system/cpu/present`
    CpuPresent,
    /// `/sys/devices/system/node/nodeN/cpulist`
    NodeCpulist(u32),
    /// `/sys/devices/system/node/nodeN/cpumap`
    NodeCpumap(u32),
    /// `/sys/devices/system/node/nodeN/meminfo`
    NodeMeminfo(u32),
}
