//! Places in boot's root file system, which is empty except for what every container is
//! made from.
//!
//! ```text
//! /proc         the pod's processes, attached once the gofer delivers it
//! /dev          the default device nodes, likewise
//! /views        the file system that boot serves, if containers get views
//! /uncovered    empty: here a newborn leaves a proc that nothing covers
//! /shm          the pod's shared memory, if containerd makes none
//! /container    empty: here a newborn puts its container together, in a copy of boot's
//!               mounts
//! /devices      likewise, for the container's own device nodes
//! ```

/// The proc of the pod.
pub(crate) const PROC: &str = "/proc";
/// The default device nodes.
pub(crate) const DEVICES: &str = "/dev";
/// The null device of the default devices.
pub(crate) const DEV_NULL: &str = "/dev/null";
/// The mount point of the pod's shared memory, if it has one.
pub(crate) const SHARED_MEMORY: &str = "/shm";
/// The directory at which a newborn puts its container together.
pub(crate) const CONTAINER: &str = "/container";
/// The directory at which a newborn attaches its container's own device nodes.
pub(crate) const OWN_DEVICES: &str = "/devices";
/// The file system that boot serves.
pub(crate) const VIEWS: &str = "/views";
/// The directory at which a newborn leaves a proc that nothing covers.
pub(crate) const UNCOVERED: &str = "/uncovered";
