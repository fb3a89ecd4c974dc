//! Idmapped mounts: files show the owners that they have on disk, moved into
//! the sandbox's user namespace (mount_setattr(2), `MOUNT_ATTR_IDMAP`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;

use crate::error::{Context, Error, Result};
use crate::gofer::mountinfo::{Mount, MountTable};
use crate::spec::plan::PropagationKind;
use crate::sys::mount::{AttrChange, Depth, clone_mount, mount_setattr};

/// A detached mount and where it came from, for the errors.
pub(super) struct Detached<'a> {
    pub(super) mount: BorrowedFd<'a>,
    /// The mounts that the descriptor holds.
    pub(super) depth: Depth,
    /// The path on the host that it was cloned from.
    pub(super) source: &'a Path,
    /// What a user can do when its owners cannot be mapped.
    pub(super) remedy: &'static str,
}

/// For mounts of the spec.
pub(super) const MOUNT_REMEDY: &str = "Give the mount the option \"noidmap\" (its files then \
     belong to nobody inside), or run the pod with userns = \"never\"";

/// For the root file system.
pub(super) const ROOTFS_REMEDY: &str = "Put the snapshots onto a file system that supports \
     idmapped mounts, or run the pod with userns = \"never\"";

/// Maps the owners of a detached mount and cuts its propagation, if asked to:
/// in one call, and for all mounts of the tree or none.
///
/// A kernel file system (proc, sysfs, cgroup, ...) cannot be mapped and is left
/// as it is: its files belong to the host's root whatever one does, so they
/// appear as nobody's.
pub(super) fn map_owners(
    detached: &Detached<'_>,
    namespace: Option<BorrowedFd<'_>>,
    propagation: Option<PropagationKind>,
) -> Result<()> {
    let plain = AttrChange { propagation, ..AttrChange::default() };
    let change = |change| mount_setattr(detached.mount, detached.depth, change);
    if namespace.is_none() && propagation.is_none() {
        return Ok(());
    }
    match change(AttrChange { idmap: namespace, ..plain }) {
        Ok(()) => Ok(()),
        Err(_) if namespace.is_some() && is_kernel_file_system(detached.mount)? => {
            change(plain).context(|| sentence_start(detached))
        }
        Err(e) => match namespace {
            Some(namespace) => Err(refusal(detached, namespace, &e)),
            None => Err(e).context(|| sentence_start(detached)),
        },
    }
}

fn sentence_start(detached: &Detached<'_>) -> String {
    format!("mount_setattr of {}", detached.source.display())
}

/// Whether a descriptor lies on one of the file systems whose files the kernel
/// makes up, none of which can be idmapped. By `f_type` of statfs(2).
fn is_kernel_file_system(fd: BorrowedFd<'_>) -> Result<bool> {
    const MAGIC: [u64; 20] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
        0x1cd1,      // devpts
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0xcafe_4a11, // bpf
        0x7363_6673, // securityfs
        0x1980_0202, // mqueue
        0x6e73_6673, // nsfs
        0x6165_676c, // pstore
        0xde5e_81e4, // efivarfs
        0xf97c_ff8c, // selinuxfs
        0x6265_6570, // configfs
        0x6573_5546, // fusectl, when it shares fuse's number
        0x6573_5543, // fusectl
        0x4249_4e4d, // binfmt_misc
        0x0187,      // autofs
        0x0762_4c51, // resctrl
    ];
    let found = rustix::fs::fstatfs(fd).context(|| "fstatfs")?.f_type as u64;
    // A devtmpfs says that it is a tmpfs, and only its table entry tells.
    Ok(MAGIC.contains(&found))
}

/// The sentence for a mount whose owners cannot be mapped. Looks for the one
/// mount of a tree that is to blame, since the kernel names none.
fn refusal(detached: &Detached<'_>, namespace: BorrowedFd<'_>, error: &io::Error) -> Error {
    let source = detached.source.display();
    let table = MountTable::read();
    let Some(mount) = culprit(&table, detached, namespace) else {
        let what = sentence_start(detached);
        return Error::invalid(format!("{what} into the sandbox's user namespace: {error}"));
    };
    let place = mount.point.display();
    let below = if detached.source.starts_with(&mount.point) { "" } else { ", mounted below it" };
    let (fs_type, remedy) = (&mount.fs_type, detached.remedy);
    let why = if mount.idmapped() {
        format!(
            "the mount {place}{below} ({fs_type}) is idmapped already, and the kernel maps a mount only once"
        )
    } else {
        let since = match mount.fs_type.as_str() {
            "tmpfs" => {
                " (tmpfs can since Linux 6.3, unless it was mounted inside a user namespace)"
            }
            "overlay" => " (overlay can since Linux 6.6, unless a layer cannot)",
            _ => "",
        };
        format!("the {fs_type} file system of the mount {place}{below} cannot be idmapped{since}")
    };
    Error::invalid(format!(
        "the owners of {source} cannot be mapped into the sandbox's user namespace: {why}. {remedy}"
    ))
}

/// The first mount of the tree that cannot be mapped by itself.
fn culprit<'a>(
    table: &'a MountTable,
    detached: &Detached<'_>,
    namespace: BorrowedFd<'_>,
) -> Option<&'a Mount> {
    let source = detached.source.canonicalize().ok()?;
    let own = table.holding(&source)?;
    let cannot = |path: &Path| {
        let Ok(copy) = clone_mount(CWD, path, Depth::Top) else { return false };
        let idmap = AttrChange { idmap: Some(namespace), ..AttrChange::default() };
        mount_setattr(copy, Depth::Top, idmap).is_err()
    };
    if detached.depth == Depth::Top || cannot(&source) {
        return Some(own);
    }
    table.below(&source).find(|mount| cannot(&mount.point))
}

/// A clone of what `path` leads to, with its owners mapped. For the layers of a
/// root file system.
pub(super) fn mapped_clone(
    path: &Path,
    depth: Depth,
    namespace: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd> {
    let mount = clone_mount(CWD, path, depth).map_err(|e| missing(path, &e))?;
    let detached = Detached { mount: mount.as_fd(), depth, source: path, remedy: ROOTFS_REMEDY };
    map_owners(&detached, namespace, Some(PropagationKind::Private))?;
    Ok(mount)
}

/// The sentence for a source that cannot be opened.
pub(super) fn missing(path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => Error::invalid(format!("the source {path} does not exist")),
        io::ErrorKind::NotADirectory => Error::invalid(format!(
            "the source {path} leads through something that is no directory"
        )),
        io::ErrorKind::InvalidInput => Error::invalid(format!(
            "the source {path} cannot be cloned: it is unbindable, or mounts below it are locked \
             and only \"rbind\" may take it"
        )),
        _ => Error::internal(format!("open_tree {path}: {error}")),
    }
}
