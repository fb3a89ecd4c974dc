//! Makes the overlay on a Linux before 6.15, which takes no layer on a detached
//! mount. In a mount namespace that ends with a child, the layers' mounts are
//! attached at short temporary paths, which the options then name.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags};

use crate::error::{Context, Error, Result};
use crate::gofer::assemble::isolate_mounts;
use crate::gofer::child::made_in_child;
use crate::gofer::cloned_tree::restrict;
use crate::gofer::filesystem::finish;
use crate::gofer::layers::{Layer, Lower, Overlay, Upper};
use crate::gofer::users::{Users, as_root_of};
use crate::sys::mount::{Depth, FsContext, attach_at, attach_to, clone_mount};

/// mount(2) reads at most a page of options.
const MAX_OPTIONS: usize = 4095;

/// Makes the overlay by mount(2).
pub(super) fn make(overlay: &Overlay, creator: Option<&Users>) -> Result<OwnedFd> {
    made_in_child(CloneFlags::CLONE_NEWNS, || {
        isolate_mounts()?;
        enter_scratch()?;
        for (index, mount) in overlay.mounts.iter().enumerate() {
            attach_to(mount, directory(&index.to_string())?).context(|| "move_mount of a layer")?;
        }
        directory("root")?;
        let flags =
            if overlay.options.read_only() { MountFlags::RDONLY } else { MountFlags::empty() };
        let options = options(overlay)?;
        as_root_of(creator, || {
            rustix::mount::mount(c"overlay", c"root", c"overlay", flags, options.as_c_str())
                .map_err(|e| refused(overlay, &options, e))
        })?;
        let made = clone_mount(CWD, c"root", Depth::Top).context(|| "open_tree of the overlay")?;
        restrict(&made, overlay.options.attributes)?;
        Ok(made)
    })
}

fn refused(overlay: &Overlay, options: &CStr, error: Errno) -> Error {
    let hint = if error == Errno::INVAL && !overlay.mounts.is_empty() {
        "; idmapped layers need Linux 5.19"
    } else {
        ""
    };
    Error::internal(format!("mounting it with {options:?}: {error}{hint}"))
}

/// Mounts a tmpfs over the root, which is not needed here, and makes it the
/// working directory.
fn enter_scratch() -> Result<()> {
    let tmpfs = FsContext::open("tmpfs")
        .and_then(|context| finish(&context, MountAttrFlags::empty()))
        .context(|| "mounting a tmpfs")?;
    attach_at(&tmpfs, c"/").context(|| "move_mount onto /")?;
    rustix::process::fchdir(&tmpfs).context(|| "fchdir")
}

fn directory(name: &str) -> Result<OwnedFd> {
    rustix::fs::mkdirat(CWD, name, Mode::RWXU).context(|| format!("mkdir {name}"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, name, flags, Mode::empty()).context(|| format!("opening {name}"))
}

/// Formats the options for mount(2).
fn options(overlay: &Overlay) -> Result<CString> {
    let mut text = String::from("lowerdir=");
    for (index, Lower { layer, data_only }) in overlay.lower.iter().enumerate() {
        text.push_str(match (index, data_only) {
            (0, _) => "",
            (_, false) => ":",
            (_, true) => "::",
        });
        text.push_str(&path(layer));
    }
    if let Some(Upper { upper, work }) = &overlay.upper {
        text.push_str(&format!(",upperdir={},workdir={}", path(upper), path(work)));
    }
    for (key, value) in &overlay.options.fs {
        text.push_str(&format!(",{key}"));
        if let Some(value) = value {
            text.push_str(&format!("={value}"));
        }
    }
    if text.len() > MAX_OPTIONS {
        return Err(Error::invalid(format!(
            "{} layers make more options ({} bytes) than this kernel reads ({MAX_OPTIONS}); \
             Linux 6.15 reads any number",
            overlay.lower.len(),
            text.len()
        )));
    }
    CString::new(text).map_err(|_| Error::invalid("an option holds a zero byte"))
}

/// Returns a layer's path from the scratch directory, or from the host's root,
/// with the characters escaped at which overlayfs splits.
fn path(layer: &Layer) -> String {
    let path = layer.path.display();
    let plain = match layer.mount {
        Some(mount) => format!("{mount}/{path}"),
        None => path.to_string(),
    };
    let mut escaped = String::with_capacity(plain.len());
    for character in plain.chars() {
        if matches!(character, '\\' | ':' | ',') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
