//! Mounts whose owners cannot be mapped. Kernel file systems are then taken as
//! they are. All others are refused by name.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::gofer::assemble::{Way, assemble};
use crate::gofer::cloned_tree::{Again, Change, ClonedTree, missing};
use crate::gofer::mountinfo::{Mount, MountTable};
use crate::sys::mount::{AttrChange, Depth, clone_mount, mount_of, mount_setattr};

/// File systems whose files the kernel generates. Their files belong to the
/// host's root in any case, so nothing is lost if they are not mapped: the
/// sandbox sees them as owned by 65534, with the permissions for others.
const KERNEL_TYPES: [&str; 22] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// Whether files of this type keep their owners.
pub(super) fn is_kernel_type(fs_type: &str) -> bool {
    KERNEL_TYPES.contains(&fs_type)
}

/// Continues if a clone could not be mapped as a whole: maps each mount of the
/// tree that can be mapped, and leaves the kernel's as they are. The kernel
/// does not report which mount caused the error, so each is tried.
pub(super) fn settle(
    clone: ClonedTree<'_>,
    namespace: BorrowedFd<'_>,
    change: Change<'_>,
    error: &io::Error,
) -> Result<OwnedFd> {
    // Without a table, the error only names less.
    let table = MountTable::read().unwrap_or_default();
    let id = mount_of(&clone.place).context(|| format!("statx of {}", clone.path.display()))?.id;
    let Some(own) = table.of_id(id) else {
        let what = clone.what();
        return Err(Error::invalid(format!("{what} into the sandbox's user namespace: {error}")));
    };
    if is_kernel_type(&own.fs_type) {
        // This includes all that is mounted below it.
        return clone.keep_owners(change.propagation);
    }
    let source = path_of(&clone.place).context(|| clone.path.display().to_string())?;
    let refuse = |mount: &Mount, why: Option<Error>| {
        refusal(&clone, mount, if mount.id == id { "" } else { ", which lies below it," }, why)
    };
    let own_clone = clone_mount(&clone.place, "", Depth::Top).map_err(|e| missing(&source, &e))?;
    let root = match mapped(own_clone, &source, own, namespace, change, clone.again)? {
        Mapped::Done(root) => root,
        Mapped::Not(_, why) => return Err(refuse(own, why)),
    };
    if change.idmap_depth == Depth::Top {
        return Ok(root);
    }
    let mut parts = Vec::new();
    for mount in table.visible_below(id, &source) {
        let below = mount.point.strip_prefix(&source).unwrap_or(&mount.point);
        let part = ClonedTree::of_mount(&clone.place, below, mount, clone.remedy)?;
        let part = match mapped(part.mount, part.path, mount, namespace, change, clone.again)? {
            Mapped::Done(part) => part,
            Mapped::Not(part, _) if is_kernel_type(&mount.fs_type) => {
                let propagation = change.propagation;
                let plain = AttrChange { propagation, ..AttrChange::default() };
                mount_setattr(&part, Depth::Top, plain).context(|| clone.what())?;
                part
            }
            Mapped::Not(_, why) => return Err(refuse(mount, why)),
        };
        parts.push((below, part));
    }
    // A file has nothing below it, and cannot be assembled upon.
    if parts.is_empty() { Ok(root) } else { assemble(&root, &parts, Way::Plain) }
}

/// Returns the path of a descriptor, without symlinks.
fn path_of(place: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// What came of one mount.
enum Mapped {
    Done(OwnedFd),
    /// It cannot be mapped, and is as it was, for a reason if there is more to say than its
    /// type.
    Not(OwnedFd, Option<Error>),
}

/// Maps the clone of one mount alone. An overlay that cannot be written is mounted anew
/// instead.
fn mapped(
    mount: OwnedFd,
    path: &Path,
    table: &Mount,
    namespace: BorrowedFd<'_>,
    change: Change<'_>,
    again: Option<Again>,
) -> Result<Mapped> {
    let (idmap, propagation) = (Some(namespace), change.propagation);
    let change = AttrChange { idmap, propagation, ..AttrChange::default() };
    if mount_setattr(&mount, Depth::Top, change).is_ok() {
        return Ok(Mapped::Done(mount));
    }
    let again = again.filter(|_| table.fs_type == "overlay" && !table.idmapped());
    Ok(match again.map(|make| make(table, path, namespace)) {
        None => Mapped::Not(mount, None),
        Some(Ok(made)) => Mapped::Done(made),
        Some(Err(why)) => Mapped::Not(mount, Some(why)),
    })
}

/// Returns the error for a mount that cannot be mapped. `below` says where it lies.
fn refusal(
    clone: &ClonedTree<'_>,
    mount: &Mount,
    below: &str,
    why_not_again: Option<Error>,
) -> Error {
    let place = mount.point.display();
    let fs_type = &mount.fs_type;
    let why = if mount.idmapped() {
        format!(
            "the mount {place}{below} ({fs_type}) is idmapped already, \
             and the kernel maps a mount only once"
        )
    } else {
        let since = match fs_type.as_str() {
            "tmpfs" => " (tmpfs can since Linux 6.3, unless it was mounted in a user namespace)",
            "overlay" => {
                " (overlay cannot yet; Docker's can have owners that fit, by its userns-remap)"
            }
            other if other.starts_with("fuse") => {
                " (fuse can since Linux 6.12, if its server agrees)"
            }
            _ => "",
        };
        let again = why_not_again
            .map(|why| format!(", and it cannot be mounted anew over mapped layers: {why}"))
            .unwrap_or_default();
        format!(
            "the {fs_type} file system of the mount {place}{below} cannot be idmapped{since}{again}"
        )
    };
    Error::invalid(format!(
        "the owners of {} cannot be mapped into the sandbox's user namespace: {why}. {}",
        clone.path.display(),
        clone.remedy
    ))
}
