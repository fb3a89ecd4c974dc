//! Control groups: create, limit, watch, remove; and derive from them the CPUs
//! and the memory that a sandbox is told.

use std::os::fd::OwnedFd;

/// One container's cgroup.
#[derive(Debug)]
pub struct Cgroup {}

impl Cgroup {
    /// Open `cgroup.procs` files, one a hierarchy (one on v2).
    pub fn procs(&self) -> crate::Result<Vec<OwnedFd>> {
        todo!()
    }
}
