//! Places in boot's root file system, which is empty except for what every container is
//! made from.
//!
//! ```text
//! /proc         the pod's processes, attached once the gofer delivers it
//! /dev          the default device nodes, likewise
//! /containers   one directory for each container that is being made
//! /shm          the pod's shared memory, if containerd makes none
//! ```

/// The proc of the pod.
pub(crate) const PROC: &str = "/proc";
/// The default device nodes.
pub(crate) const DEVICES: &str = "/dev";
/// The null device of the default devices.
pub(crate) const DEV_NULL: &str = "/dev/null";
/// The mount point of the pod's shared memory, if it has one.
pub(crate) const SHARED_MEMORY: &str = "/shm";
/// The directory below which containers are put together.
pub(crate) const CONTAINERS: &str = "/containers";
