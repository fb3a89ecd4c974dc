//! Holds the mounts of a pod's processes until nobody waits for their end.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

use super::open_namespace;
use crate::control::gofer::RootfsMount;
use crate::spec::plan::{DeliveredSource, Plan};
use crate::sys::let_go::let_go;
use crate::sys::pidfd::mount_namespace_of;
use crate::types::HostPid;

/// Mount namespaces of the pod. While they are held, the last process in them ends without
/// destroying the mounts: the kernel waits for a grace period then, and for an overlay's
/// files to be written, before it reports the exit. A child of the shim's destroys them some
/// time after this value is dropped.
#[derive(Debug, Default)]
pub struct HeldMounts {
    /// Those that an init had before it got its user namespace, and has left.
    left: Option<OwnedFd>,
    others: Vec<OwnedFd>,
}

impl HeldMounts {
    /// Holds a namespace that a process has left.
    pub(super) fn left(namespace: OwnedFd) -> Self {
        Self { left: Some(namespace), others: Vec::new() }
    }

    /// Holds the mounts of a container's init, at its gate, as well. If they cannot be held,
    /// its exit takes longer.
    pub fn and_those_of(mut self, pidfd: BorrowedFd<'_>, pid: HostPid) -> Self {
        // Linux 6.11 and later.
        let by_pidfd = mount_namespace_of(pidfd).ok();
        self.others.extend(by_pidfd.or_else(|| open_namespace(pid, "mnt").ok()));
        self
    }

    /// Holds the mounts of boot.
    pub(super) fn of_boot(boot: HostPid) -> Self {
        Self { left: None, others: open_namespace(boot, "mnt").into_iter().collect() }
    }

    /// Returns the mount namespace that the init has left: a container's mounts as they were made.
    /// It came from boot, and may be any.
    pub fn left_by_init(&self) -> Option<&OwnedFd> {
        self.left.as_ref()
    }
}

impl Drop for HeldMounts {
    fn drop(&mut self) {
        let_go(self.left.take().into_iter().chain(self.others.drain(..)));
    }
}

/// Whether containerd or the kubelet takes something away once the container is deleted that
/// its mounts keep busy: a block device, or what was mounted for this container alone. A
/// directory of the node's own file systems is not such.
pub fn keeps_busy(plan: &Plan, rootfs: &[RootfsMount]) -> bool {
    let root = rootfs.iter().any(|mount| match mount.fs_type.as_str() {
        "overlay" => mount.options.iter().flat_map(|option| layers(option)).any(is_mounted_here),
        "bind" => is_mounted_here(&mount.source),
        _ => true,
    });
    root || plan.host.delivered.iter().any(|(_, source)| match source {
        DeliveredSource::Bind { source, .. } => is_block_device_mounted_here(source),
        DeliveredSource::FileSystem { source, .. } => source.starts_with('/'),
        DeliveredSource::Sysfs => false,
    })
}

/// Returns the directories that an overlay's option names.
fn layers(option: &str) -> impl Iterator<Item = &str> {
    let (name, value) = option.split_once('=').unwrap_or_default();
    let named = matches!(name, "lowerdir" | "lowerdir+" | "datadir+" | "upperdir");
    value.split(':').filter(move |directory| named && !directory.is_empty())
}

/// Whether something is mounted at this very path.
fn is_mounted_here(path: impl AsRef<Path>) -> bool {
    mounted_at(path.as_ref()).is_some()
}

/// Whether the file system of a block device is mounted at this very path, as the volumes of
/// the kubelet's storage drivers are. Those without a device have the major number 0.
fn is_block_device_mounted_here(path: impl AsRef<Path>) -> bool {
    mounted_at(path.as_ref()).is_some_and(|device_major| device_major != 0)
}

/// Returns the major number of the file system that is mounted at this path. A path that
/// cannot be looked at is refused elsewhere.
fn mounted_at(path: &Path) -> Option<u32> {
    let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).ok()?;
    let is_root = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    (is_root && path != Path::new("/")).then_some(found.stx_dev_major)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_at_the_path_itself_counts() {
        assert!(is_mounted_here("/proc") && !is_mounted_here("/proc/self"));
        assert!(!is_mounted_here("/") && !is_mounted_here("/nowhere"));
        assert!(!is_block_device_mounted_here("/proc"));
    }

    #[test]
    fn the_layers_of_an_overlay_are_found() {
        let found: Vec<_> =
            ["lowerdir=/a:/b::/c", "lowerdir+=/d", "upperdir=/e", "workdir=/w", "index=off", "ro"]
                .iter()
                .flat_map(|option| layers(option))
                .collect();
        assert_eq!(found, ["/a", "/b", "/c", "/d", "/e"]);
    }
}
