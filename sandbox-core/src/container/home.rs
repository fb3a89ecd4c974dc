//! The namespaces in which the capabilities of a container count.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::paths::PROC;
use crate::types::PodPid;

/// The namespaces in which a container's capabilities count: device and inode of each
/// (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    users: (u64, u64),
    network: (u64, u64),
}

impl Home {
    /// Returns those of a thread.
    pub(crate) fn of(thread: PodPid) -> Option<Self> {
        let of = |kind: &str| {
            let namespace = fs::metadata(format!("{PROC}/{}/ns/{kind}", thread.0)).ok()?;
            Some((namespace.dev(), namespace.ino()))
        };
        Some(Self { users: of("user")?, network: of("net")? })
    }
}
