//! Control groups.
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// One container's cgroup.
#[derive(Debug)]
pub struct Cgroup {}
/// Saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedCgroup {}

impl Cgroup {
    /// Open `cgroup.procs` files, one a hierarchy (one on v2).
    pub fn procs(&self) -> crate::Result<Vec<OwnedFd>> {
        todo!()
    }
    /// open
    pub fn open(_s: SavedCgroup) -> crate::Result<Cgroup> {
        todo!()
    }
    /// remove
    pub fn remove(&self) -> crate::Result<()> {
        todo!()
    }
}
