//! Makes an overlay root file system whose layers are idmapped into the
//! sandbox.

use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Error, Result};
use crate::gofer::filesystem::{is_read_only, refused};
use crate::gofer::layers::{Lower, Overlay, Paths, Upper};
use crate::gofer::mapping::{Mapping, already_shifted};
use crate::gofer::means::Gofer;
use crate::gofer::options::Options;
use crate::gofer::overlay_attached;
use crate::gofer::users::{Users, as_root_of};
use crate::sys::kernel;
use crate::sys::mount::{FsContext, FsError};

/// The first Linux whose overlay takes layers on detached mounts
/// (`clone_private_mount`), and by descriptors opened with `O_PATH`.
const LAYERS_BY_DESCRIPTOR: (u32, u32) = (6, 15);

/// Makes the overlay of a Create request, with the options of overlayfs (kernel
/// documentation, filesystems/overlayfs).
pub(super) fn make(mut options: Options, mapping: Mapping, gofer: &mut Gofer) -> Result<OwnedFd> {
    let paths = Paths::take(&mut options)?;
    let shifted = match &gofer.users {
        Some(users) => already_shifted(&paths.lower[0].0, users)?,
        None => false,
    };
    let owners = gofer.root_owners(shifted);
    let (lower, upper, creator) = match (&mapping, &gofer.for_hooks) {
        (Mapping::Own(namespace), None) => (Some(namespace.as_fd()), None, None),
        (Mapping::Own(_), Some(back)) => (None, Some(back.as_fd()), None),
        (Mapping::Sandbox, None) => (owners, owners, gofer.users.as_ref().filter(|_| !shifted)),
        (Mapping::Sandbox, Some(_)) => (owners, owners, None),
    };
    if gofer.for_hooks.is_some() {
        // It would keep the overlay from being mounted again.
        options.fs.retain(|(key, _)| key != "volatile");
    }
    let overlay = paths.open(options, lower, upper)?;
    let made = mount(&overlay, creator)?;
    // It is read-only if the kernel cannot write to the work directory, which
    // the kernel only logs.
    if overlay.upper.is_some() && !overlay.options.read_only() && is_read_only(&made)? {
        return Err(Error::internal(
            "it came back read-only, since the kernel could not use its workdir; \
             the kernel's log says why",
        ));
    }
    gofer.leftovers.extend(overlay.mounts);
    Ok(made)
}

/// Mounts an overlay over its opened layers. overlayfs accesses them as `creator`'s root.
pub(super) fn mount(overlay: &Overlay, creator: Option<&Users>) -> Result<OwnedFd> {
    // An attempt would cost a grace period of the kernel.
    if kernel::version().is_some_and(|version| version < LAYERS_BY_DESCRIPTOR) {
        return overlay_attached::make(overlay, creator);
    }
    by_descriptor(overlay, creator)?.map_err(|e| refused("mounting it", &e))
}

fn by_descriptor(
    overlay: &Overlay,
    creator: Option<&Users>,
) -> Result<std::result::Result<OwnedFd, FsError>> {
    let configure = || {
        let context = FsContext::open("overlay")?;
        context.string("source", "overlay")?;
        for Lower { layer, data_only } in &overlay.lower {
            context.fd(if *data_only { "datadir+" } else { "lowerdir+" }, &layer.dir)?;
        }
        if let Some(Upper { upper, work }) = &overlay.upper {
            context.fd("upperdir", &upper.dir)?;
            context.fd("workdir", &work.dir)?;
        }
        for (key, value) in &overlay.options.fs {
            context.option(key, value.as_deref())?;
        }
        if overlay.options.read_only() {
            context.flag("ro")?;
        }
        Ok(context)
    };
    let context = match configure() {
        Ok(context) => context,
        Err(e) => return Ok(Err(e)),
    };
    // overlayfs accesses the layers as the user who creates it. On an idmapped
    // mount the host's root is an unmapped user, whose files cannot be made.
    let created = as_root_of(creator, || Ok(context.create()))?;
    Ok(created.and_then(|()| context.mount(overlay.options.attributes)))
}
