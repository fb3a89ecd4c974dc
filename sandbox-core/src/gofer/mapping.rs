//! The mapping of the owners of a root file system.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::gofer::cloned_tree::missing;
use crate::gofer::options::Options;
use crate::gofer::users::{Users, namespace_with, parse_mappings};
use crate::spec::plan::Mappings;

/// The source of the mapping.
pub(super) enum Mapping {
    /// The sandbox's own user namespace.
    Sandbox,
    /// The options `uidmap=` and `gidmap=`, which containerd 2 adds for a snapshot
    /// whose upper directory it has shifted itself.
    Own(OwnedFd),
}

impl Mapping {
    pub(super) fn take(options: &mut Options, users: Option<&Users>) -> Result<Self> {
        let (uids, gids) = match (options.take("uidmap"), options.take("gidmap")) {
            (Some(uids), Some(gids)) => (uids, gids),
            (None, None) => return Ok(Self::Sandbox),
            _ => return Err(Error::invalid("uidmap and gidmap must be given together")),
        };
        let mappings = Mappings {
            uids: parse_mappings("uidmap", &uids)?,
            gids: parse_mappings("gidmap", &gids)?,
        };
        let namespace = match users {
            Some(users) if *users.mappings() == mappings => {
                users.namespace().try_clone_to_owned().context(|| "dup")?
            }
            _ => namespace_with(&mappings)?,
        };
        Ok(Self::Own(namespace))
    }
}

/// Whether the owner of a layer's top directory is one of the sandbox's own
/// host IDs.
pub(super) fn already_shifted(path: &Path, users: &Users) -> Result<bool> {
    let stat = rustix::fs::stat(path).map_err(|e| missing(path, &e.into()))?;
    Ok(users.owns(stat.st_uid))
}
