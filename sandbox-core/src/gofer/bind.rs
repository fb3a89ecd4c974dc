//! Bind mounts of the spec: a file or directory of the host, as a detached
//! mount.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::FileType;

use crate::error::{Context, Error, Result};
use crate::gofer::cloned_tree::{Change, ClonedTree, MOUNT_REMEDY};
use crate::gofer::users::{Users, namespace_with};
use crate::gofer::{idmap, overlay_again};
use crate::spec::plan::{IdmapChoice, Mappings};
use crate::sys::mount::{Depth, PropagationKind};

/// A bind mount, opened.
pub(super) struct Opened {
    pub(super) mount: OwnedFd,
    /// Whether its root is not a directory.
    pub(super) is_file: bool,
    /// Its root's owner and group, if one of them does not exist in the container.
    pub(super) foreign: Option<(u32, u32)>,
}

/// Clones `source` and maps its owners as `choice` demands.
///
/// The host's administrator chose the path, and its symlinks are followed as
/// anywhere on the host. A container cannot write to anything that is trusted
/// here, no more than to the spec that names the path. A clone has the source's
/// read-only flag and cannot have another, so nothing needs to be checked
/// afterwards.
pub(super) fn open(
    source: &Path,
    depth: Depth,
    choice: &IdmapChoice,
    propagation: Option<PropagationKind>,
    users: Option<&Users>,
) -> Result<Opened> {
    let mut clone = ClonedTree::open(source, depth, MOUNT_REMEDY)?;
    clone.again = Some(overlay_again::make);
    let stat = rustix::fs::fstat(&clone.mount).context(|| format!("fstat {}", source.display()))?;
    let is_file = FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
    let propagation = leaving_host(propagation, users);
    let plain = Change { idmap: None, idmap_depth: depth, propagation };
    let made;
    let mut foreign = None;
    let change = match choice {
        IdmapChoice::None => plain,
        // Such a mapping changes nothing.
        IdmapChoice::Mappings { mappings, .. } if changes_nothing(mappings, users) => plain,
        IdmapChoice::Sandbox => {
            // containerd shifts some volumes itself, such as the sandbox's /dev/shm.
            let users = users.filter(|users| !users.owns(stat.st_uid));
            let owner = (stat.st_uid, stat.st_gid);
            foreign = users.is_some_and(|users| !users.maps(owner)).then_some(owner);
            Change { idmap: users.and_then(Users::idmap), ..plain }
        }
        IdmapChoice::Mappings { mappings, recursive } => {
            made = namespace_for(mappings, users).map_err(|e| {
                Error::new(e.kind, format!("mapping the owners of {}: {e}", source.display()))
            })?;
            let idmap_depth = if *recursive { depth } else { Depth::Top };
            Change { idmap: Some(made.as_fd()), idmap_depth, ..plain }
        }
    };
    Ok(Opened { mount: idmap::change(clone, change)?, is_file, foreign })
}

/// Whether a mount's mappings are the container's own, and leave all owners as they are.
fn changes_nothing(mappings: &Mappings, users: Option<&Users>) -> bool {
    let own = mappings.uids.is_empty() && mappings.gids.is_empty();
    users.is_some_and(|users| users.idmap().is_none() && (own || mappings == users.mappings()))
}

/// Returns a user namespace with the mappings of a mount. No mappings mean the
/// container's own (runtime specification, `idmap`).
fn namespace_for(mappings: &Mappings, users: Option<&Users>) -> Result<OwnedFd> {
    let own = mappings.uids.is_empty() && mappings.gids.is_empty();
    match users {
        Some(users) if own || mappings == users.mappings() => {
            users.namespace().try_clone_to_owned().context(|| "dup")
        }
        None if own => Err(Error::invalid("without mappings it needs a user namespace")),
        _ => namespace_with(mappings),
    }
}

/// Returns the propagation with which a clone leaves the host. A new clone belongs to
/// its source's peer group, through which mounts made inside would appear on the host.
/// Only a pod without a user namespace (in Kubernetes, a privileged one) may have that.
fn leaving_host(wanted: Option<PropagationKind>, users: Option<&Users>) -> Option<PropagationKind> {
    match wanted {
        Some(PropagationKind::Shared) if users.is_none() => None,
        Some(PropagationKind::Shared | PropagationKind::Slave) => Some(PropagationKind::Slave),
        _ => Some(PropagationKind::Private),
    }
}
