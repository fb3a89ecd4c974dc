//! Makes the root file system from the mounts of the Create request.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::control::gofer::{RootfsMount, RootfsSource};
use crate::error::{Context, Error, Result};
use crate::gofer::assemble::{Way, assemble};
use crate::gofer::cloned_tree::restrict;
use crate::gofer::filesystem::fresh_root;
use crate::gofer::idmap::mapped_clone;
use crate::gofer::loop_device;
use crate::gofer::mapping::{Mapping, already_shifted};
use crate::gofer::means::Gofer;
use crate::gofer::options::Options;
use crate::gofer::overlay;
use crate::sys::mount::{Depth, attach_at};

/// Makes the root file system as one detached tree, if the request wants one.
pub(super) fn make(source: &RootfsSource, gofer: &mut Gofer) -> Result<Option<OwnedFd>> {
    let made = match source {
        RootfsSource::None => return Ok(None),
        RootfsSource::Directory(path) => tree(path, Depth::Tree, gofer),
        RootfsSource::Mounts(mounts) => all(mounts, gofer),
    };
    made.map(Some).map_err(|e| Error::new(e.kind, format!("root file system: {e}")))
}

/// Attaches the root file system at a directory of the host, as it is.
pub(super) fn attach(source: &RootfsSource, gofer: &mut Gofer, place: &Path) -> Result<()> {
    let Some(root) = make(source, gofer)? else { return Ok(()) };
    attach_at(&root, place)
        .context(|| format!("attach the root file system at {}", place.display()))
}

/// Takes it away from there. containerd may have done that.
pub(super) fn take_away(place: &Path) -> Result<()> {
    match unmount(place, UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        // Somebody looks at it.
        Err(Errno::BUSY) => unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .context(|| format!("unmount {}", place.display())),
        Err(e) => Err(e).context(|| format!("unmount {}", place.display())),
    }
}

/// Applies the mounts in order. A mount without a target hides all before it; one with
/// a target is mounted below (containerd, `mount.All`).
fn all(mounts: &[RootfsMount], gofer: &mut Gofer) -> Result<OwnedFd> {
    let mut root = None;
    let mut below = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let made = one(mount, gofer)
            .map_err(|e| Error::new(e.kind, format!("rootfs[{index}] ({}): {e}", mount.fs_type)))?;
        if matches!(mount.target.as_str(), "" | "/") {
            gofer.leftovers.extend(root.replace(made));
            gofer.leftovers.extend(below.drain(..).map(|(_, hidden)| hidden));
        } else {
            below.push((Path::new(&mount.target), made));
        }
    }
    let root = root.ok_or_else(|| {
        Error::invalid("the request carries no mount for the root itself (one without a target)")
    })?;
    if below.is_empty() { Ok(root) } else { assemble(&root, &below, Way::InTree) }
}

fn one(mount: &RootfsMount, gofer: &mut Gofer) -> Result<OwnedFd> {
    let mut options = Options::parse(&mount.options)?;
    let mapping = Mapping::take(&mut options, gofer.users.as_ref())?;
    refuse_internal(&options)?;
    if options.by_loop_device && (mount.fs_type == "overlay" || is_bind(mount, &options)) {
        return Err(Error::invalid("the option \"loop\" takes a file system on a file"));
    }
    match (mount.fs_type.as_str(), options.bind) {
        ("overlay", _) => overlay::make(options, mapping, gofer),
        ("bind", recursive) | (_, recursive @ Some(_)) => {
            let depth = Depth::from(recursive.unwrap_or(false));
            let source = Path::new(&mount.source);
            let made = match mapping {
                Mapping::Own(namespace) => {
                    let owners = gofer.for_hooks.is_none().then(|| namespace.as_fd());
                    mapped_clone(source, depth, owners)
                }
                Mapping::Sandbox => tree(source, depth, gofer),
            }?;
            restrict(&made, options.attributes)?;
            Ok(made)
        }
        (fs_type, None) => {
            let idmap = match &mapping {
                Mapping::Own(namespace) => gofer.for_hooks.is_none().then(|| namespace.as_fd()),
                Mapping::Sandbox => gofer.root_owners(false),
            };
            if !options.by_loop_device {
                return fresh_root(fs_type, &mount.source, &options, idmap);
            }
            let device = loop_device::attach(&mount.source, &options)?;
            options.fs.retain(|(key, _)| key != loop_device::DIRECT_IO);
            fresh_root(fs_type, &device.path.to_string_lossy(), &options, idmap)
        }
    }
}

fn is_bind(mount: &RootfsMount, options: &Options) -> bool {
    mount.fs_type == "bind" || options.bind.is_some()
}

/// Refuses what only containerd's mount manager understands, as containerd's shim for runc
/// does: a mount that reaches the shim with it has not been prepared.
fn refuse_internal(options: &Options) -> Result<()> {
    match options.fs.iter().find(|(key, _)| key.starts_with("X-containerd.")) {
        Some((key, _)) => Err(Error::invalid(format!(
            "the option {key:?} is for containerd's mount manager, which has not consumed it"
        ))),
        None => Ok(()),
    }
}

/// Clones a directory of the host. Maps its owners, unless they were shifted into the
/// sandbox's range before, as the runtime specification expects of a bundle whose spec
/// has mappings.
fn tree(path: &Path, depth: Depth, gofer: &Gofer) -> Result<OwnedFd> {
    let shifted = match &gofer.users {
        Some(users) => already_shifted(path, users)?,
        None => false,
    };
    mapped_clone(path, depth, gofer.root_owners(shifted))
}
