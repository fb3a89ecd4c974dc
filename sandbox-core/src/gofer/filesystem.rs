//! Makes new file systems: proc, sysfs, and any other that has a type.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Context, Error, FailureKind, Result};
use crate::gofer::child::made_in_child;
use crate::gofer::cloned_tree::{MOUNT_REMEDY, ROOTFS_REMEDY};
use crate::gofer::options::Options;
use crate::gofer::unmappable::is_kernel_type;
use crate::gofer::users::Users;
use crate::spec::plan::FsOption;
use crate::sys::mount::{AttrChange, Depth, FsContext, FsError, mount_setattr};

/// Types that are always read-only and report it even if it was not requested.
const READ_ONLY_TYPES: [&str; 5] = ["erofs", "squashfs", "cramfs", "iso9660", "romfs"];

/// Makes a proc of boot's PID namespace. boot cannot make the first one itself:
/// the kernel demands that a whole proc is visible already
/// (`mount_too_revealing`).
pub(super) fn proc_of(pids: &OwnedFd) -> Result<OwnedFd> {
    // Since Linux 6.17 the namespace can be named. Before, a process in it must
    // mount proc, and only a child can be in it.
    let named = || {
        let context = FsContext::open("proc").ok()?;
        context.fd("pidns", pids).ok()?;
        Some(context)
    };
    match named() {
        Some(context) => finish(&context, MountAttrFlags::empty()).context(|| "mounting proc"),
        None => made_in_child(CloneFlags::empty(), || {
            setns(pids, CloneFlags::CLONE_NEWPID).context(|| "setns into boot's PID namespace")?;
            made_in_child(CloneFlags::empty(), || {
                let context = FsContext::open("proc").context(|| "fsopen proc")?;
                finish(&context, MountAttrFlags::empty()).context(|| "mounting proc")
            })
        }),
    }
}

/// Makes a sysfs of the sandbox's network namespace, which shows only its
/// devices. The gofer leaves that namespace again, since a network file system
/// later in the list uses the host's network. A rootless one cannot, and sends a child.
pub(super) fn sysfs(network: Option<&OwnedFd>, rootless: bool) -> Result<OwnedFd> {
    let network = network.ok_or_else(|| Error::internal("a sysfs without a network namespace"))?;
    let kind = Some(LinkNameSpaceType::Network);
    if rootless {
        return made_in_child(CloneFlags::empty(), || {
            move_into_link_name_space(network.as_fd(), kind)
                .context(|| "setns into the network")?;
            FsContext::open("sysfs")
                .and_then(|context| finish(&context, MountAttrFlags::empty()))
                .context(|| "mounting sysfs")
        });
    }
    let own = std::fs::File::open("/proc/self/ns/net").context(|| "opening /proc/self/ns/net")?;
    move_into_link_name_space(network.as_fd(), kind).context(|| "setns into the network")?;
    let made = FsContext::open("sysfs")
        .and_then(|context| finish(&context, MountAttrFlags::empty()))
        .context(|| "mounting sysfs");
    move_into_link_name_space(own.as_fd(), kind)
        .context(|| "setns back into the host's network")?;
    made
}

/// Makes a file system of any type, for a mount of the spec.
pub(super) fn fresh(
    fs_type: &str,
    source: &str,
    options: &[FsOption],
    users: Option<&Users>,
) -> Result<OwnedFd> {
    let read_only = options.iter().any(|(key, _)| key == "ro");
    let mount = make(fs_type, source, options, MountAttrFlags::empty(), read_only)?;
    map_owners(&mount, fs_type, MOUNT_REMEDY, users.and_then(Users::idmap))?;
    Ok(mount)
}

/// Makes a file system of any type, for the root file system.
pub(super) fn fresh_root(
    fs_type: &str,
    source: &str,
    options: &Options,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd> {
    let read_only = options.read_only();
    let mut fs_options = options.fs.clone();
    if read_only {
        // The super block as well, since a read-only block device allows no
        // other.
        fs_options.push(("ro".to_owned(), None));
    }
    let mount = make(fs_type, source, &fs_options, options.attributes, read_only)?;
    map_owners(&mount, fs_type, ROOTFS_REMEDY, idmap)?;
    Ok(mount)
}

/// Maps the owners of the file system into the sandbox's user namespace.
pub(super) fn map_owners(
    mount: &OwnedFd,
    fs_type: &str,
    remedy: &str,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<()> {
    if idmap.is_none() {
        return Ok(());
    }
    match mount_setattr(mount, Depth::Top, AttrChange { idmap, ..AttrChange::default() }) {
        Err(_) if is_kernel_type(fs_type) => Ok(()),
        result => result.map_err(|e| {
            Error::invalid(format!(
                "the owners of its files cannot be mapped into the sandbox's user namespace, \
                 since the {fs_type} file system cannot be idmapped ({e}). {remedy}"
            ))
        }),
    }
}

fn make(
    fs_type: &str,
    source: &str,
    options: &[FsOption],
    attributes: MountAttrFlags,
    read_only: bool,
) -> Result<OwnedFd> {
    let what = || format!("mounting {fs_type} from {source:?}");
    let context = FsContext::open(fs_type).map_err(|e| match e.errno {
        Errno::NODEV => Error::invalid(format!("the kernel knows no file system type {fs_type:?}")),
        _ => refused(&what(), &e),
    })?;
    if !source.is_empty() {
        context.string("source", source).map_err(|e| refused(&what(), &e))?;
    }
    for (key, value) in options {
        context
            .option(key, value.as_deref())
            .map_err(|e| refused(&format!("{}: option {key:?}", what()), &e))?;
    }
    let mount = finish(&context, attributes).map_err(|e| refused(&what(), &e))?;
    if !read_only && !READ_ONLY_TYPES.contains(&fs_type) && is_read_only(&mount)? {
        return Err(Error::invalid(format!(
            "{}: it came back read-only though \"ro\" was not among its options",
            what()
        )));
    }
    Ok(mount)
}

/// Returns the error of a failed step. If the source or an option is wrong, the
/// spec is invalid.
pub(super) fn refused(what: &str, error: &FsError) -> Error {
    let kind = match error.errno {
        Errno::INVAL | Errno::NOENT | Errno::NOTBLK | Errno::NOTDIR => FailureKind::Invalid,
        _ => FailureKind::Internal,
    };
    Error::new(kind, format!("{what}: {error}"))
}

pub(super) fn finish(
    context: &FsContext,
    attributes: MountAttrFlags,
) -> std::result::Result<OwnedFd, FsError> {
    context.create()?;
    context.mount(attributes)
}

/// Whether the mount or the file system below it is read-only: statvfs(3).
pub(super) fn is_read_only(mount: &OwnedFd) -> Result<bool> {
    let stat = rustix::fs::fstatvfs(mount).context(|| "fstatvfs")?;
    Ok(stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}
