//! Steps that both boot and a newborn take while a container is put together. Each makes or
//! changes mounts below a root that the caller holds open, or names of the namespaces that
//! the caller is in. A step does not depend on which of them calls it.

pub(crate) mod attach;
mod cgroup_mount;
pub(crate) mod container_root;
mod copy_up;
pub(crate) mod file_system;
pub(crate) mod masks;
pub(crate) mod names;
pub(crate) mod phase;
pub(crate) mod shared_memory;
pub(crate) mod views;
