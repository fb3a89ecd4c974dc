//! Places in boot's root file system, which is empty but for what every container
//! is made from.
//!
//! ```text
//! /proc         the pod's processes; attached when the gofer delivers it
//! /dev          the default device nodes; likewise
//! /containers   one directory a container while it is being made
//! /shm          the pod's shared memory, where containerd brings none
//! ```

/// The pod's processes.
pub(crate) const PROC: &str = "/proc";
/// The default device nodes.
pub(crate) const DEVICES: &str = "/dev";
/// The null device among them.
pub(crate) const DEV_NULL: &str = "/dev/null";
/// Where the pod's shared memory is attached, if it has one.
pub(crate) const SHARED_MEMORY: &str = "/shm";
/// Below this, containers are put together.
pub(crate) const CONTAINERS: &str = "/containers";
