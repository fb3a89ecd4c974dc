//! Mounts an overlay of the host anew, over layers whose owners are mapped, since an overlay
//! itself cannot be idmapped. Image volumes of Kubernetes are such overlays.
//!
//! Only one that nothing can write to: two overlays with the same upper directory would each
//! see the other's half-made changes. What is read is the same, since the layers are.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::mount::MountAttrFlags;

use crate::error::{Context, Error, Result};
use crate::gofer::layers::Paths;
use crate::gofer::mountinfo::Mount;
use crate::gofer::options::Options;
use crate::gofer::overlay;
use crate::sys::mount::{Depth, clone_mount, open_plain_beneath};

/// Options of the super block that only say what it is on the host.
const NOT_CARRIED: [&str; 2] = ["rw", "seclabel"];

/// Makes a detached mount of what is at `path`, on the overlay `mount` of the host. An error
/// says why it cannot be taken apart.
pub(super) fn make(mount: &Mount, path: &Path, namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut options = options(mount)?;
    let paths = Paths::take(&mut options)?;
    let overlay = paths.open(options, Some(namespace), None)?;
    let made = overlay::mount(&overlay, None)?;
    let below = mount.root.strip_prefix("/").unwrap_or(&mount.root);
    let inside = path.strip_prefix(&mount.point).map_err(|_| {
        Error::internal(format!("{} is not on {}", path.display(), mount.point.display()))
    })?;
    let below = below.join(inside);
    if below.as_os_str().is_empty() {
        return Ok(made);
    }
    open_plain_beneath(&made, &below, OFlags::PATH)
        .and_then(|below| clone_mount(below, "", Depth::Top))
        .context(|| format!("opening {} on the new overlay", below.display()))
}

/// Reads the overlay's options out of the mount table.
fn options(mount: &Mount) -> Result<Options> {
    let listed =
        mount.fs_options().ok_or_else(|| Error::invalid("one of its options is no UTF-8"))?;
    let mut layers = String::new();
    let mut kept = Vec::new();
    for option in listed {
        match option.split_once('=') {
            Some(("upperdir" | "workdir", _)) => {
                return Err(Error::invalid(
                    "it can be written, and must not be mounted twice; mount it without upperdir",
                ));
            }
            // Each layer by itself, and not escaped.
            Some((key @ ("lowerdir+" | "datadir+"), layer)) => {
                if !layers.is_empty() {
                    layers.push_str(if key == "datadir+" { "::" } else { ":" });
                }
                for letter in layer.chars() {
                    if matches!(letter, '\\' | ':') {
                        layers.push('\\');
                    }
                    layers.push(letter);
                }
            }
            _ if NOT_CARRIED.contains(&option.as_str()) => {}
            _ => kept.push(option),
        }
    }
    if !layers.is_empty() {
        kept.push(format!("lowerdir={layers}"));
    }
    // It may have been given to the mount alone.
    kept.extend(mount.options().filter(|option| option != "rw"));
    let mut options = Options::parse(&kept)?;
    options.attributes.insert(MountAttrFlags::MOUNT_ATTR_RDONLY);
    Ok(options)
}
