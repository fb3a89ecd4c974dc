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
}

impl IdPool {
    /// The number of IDs that are taken together: all 16-bit IDs, as subuid(5) tools assign.
    pub const SLICE: u32 = 65536;
}

impl Default for IdPool {
    fn default() -> Self {
        Self { start: 0x4000_0000, size: 0x4000_0000, per_sandbox: Self::SLICE }
    }
}

/// The CPUs and the memory that a container is told it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// The number of CPUs, at least one.
    pub cpus: u32,
    /// The bytes of memory, at most the host's.
    pub memory: u64,
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
