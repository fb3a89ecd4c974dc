//! Binds of the spec: a file or directory of the host, as a detached mount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType};

use crate::error::{Context, Error, Result};
use crate::gofer::idmap::{Detached, MOUNT_REMEDY, map_owners, missing};
use crate::gofer::users::{Users, namespace_with};
use crate::spec::plan::{IdmapChoice, PropagationKind};
use crate::sys::mount::{AttrChange, Depth, clone_mount, mount_setattr};

/// Clones `source` and maps its owners as `choice` says. Also tells whether its
/// root is no directory.
///
/// The path is the host administrator's, and its symlinks are followed as
/// anywhere on the host: nothing that a container can write is trusted here
/// any more than the spec that names it. A clone has the source's read-only
/// flag and can have no other, so there is nothing to check afterwards.
pub(super) fn donate(
    source: &Path,
    depth: Depth,
    choice: &IdmapChoice,
    propagation: Option<PropagationKind>,
    users: Option<&Users>,
) -> Result<(OwnedFd, bool)> {
    let mount = clone_mount(CWD, source, depth).map_err(|e| missing(source, &e))?;
    let stat = rustix::fs::fstat(&mount).context(|| format!("fstat {}", source.display()))?;
    let propagation = leaving_host(propagation, users);
    let detached = |depth| Detached { mount: mount.as_fd(), depth, source, remedy: MOUNT_REMEDY };
    match choice {
        IdmapChoice::None => map_owners(&detached(depth), None, propagation)?,
        IdmapChoice::Sandbox => {
            // containerd shifts some volumes itself (the sandbox's /dev/shm).
            let users = users.filter(|users| !users.owns(stat.st_uid));
            map_owners(&detached(depth), users.map(Users::namespace), propagation)?;
        }
        IdmapChoice::Mappings { mappings, recursive } => {
            let own = mappings.uids.is_empty() && mappings.gids.is_empty();
            let made;
            let namespace: BorrowedFd<'_> = match users {
                Some(users) if own || mappings == users.mappings() => users.namespace(),
                None if own => {
                    let why = "an idmapped mount without mappings needs a user namespace";
                    return Err(Error::invalid(format!("{}: {why}", source.display())));
                }
                _ => {
                    made = namespace_with(mappings)?;
                    made.as_fd()
                }
            };
            // The owners of the top mount alone, but the propagation of all.
            let idmap_depth = if *recursive { depth } else { Depth::Top };
            if idmap_depth != depth {
                map_owners(&detached(depth), None, propagation)?;
            }
            map_owners(&detached(idmap_depth), Some(namespace), propagation)?;
        }
    }
    Ok((mount, FileType::from_raw_mode(stat.st_mode) != FileType::Directory))
}

/// How a clone leaves the host. It is born into its source's peer group, from
/// where mounts made inside would show up on the host: only a pod without a
/// user namespace (Kubernetes: a privileged one) may have that.
fn leaving_host(wanted: Option<PropagationKind>, users: Option<&Users>) -> Option<PropagationKind> {
    match wanted {
        Some(PropagationKind::Shared) if users.is_none() => None,
        Some(PropagationKind::Shared | PropagationKind::Slave) => Some(PropagationKind::Slave),
        _ => Some(PropagationKind::Private),
    }
}

/// Makes a detached mount read-only and the like.
pub(super) fn restrict(mount: &OwnedFd, set: u64) -> Result<()> {
    if set == 0 {
        return Ok(());
    }
    // An access time flag replaces the others: mount_setattr(2).
    let clear = if set & libc::MOUNT_ATTR__ATIME != 0 { libc::MOUNT_ATTR__ATIME } else { 0 };
    mount_setattr(mount, Depth::Top, AttrChange { set, clear, ..AttrChange::default() })
        .context(|| "mount_setattr of the mount's options")
}
