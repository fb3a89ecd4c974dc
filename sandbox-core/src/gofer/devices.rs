//! Device nodes. The sandbox cannot make them itself (mknod(2) fails with EPERM
//! in a user namespace). It binds each from a tmpfs that the gofer makes.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chownat, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::error::{Context, Error, Result};
use crate::gofer::filesystem::finish;
use crate::gofer::users::{Users, as_root_of};
use crate::spec::plan::DeviceNode;
use crate::sys::mount::FsContext;

/// The default devices of the runtime specification (config-linux.md, "Default
/// Devices"). boot makes `console`, `ptmx` and the links.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Makes a tmpfs with the default nodes, which all users may read and write.
pub(super) fn default(users: Option<&Users>) -> Result<OwnedFd> {
    as_root_of(users, || {
        let tmpfs = tmpfs()?;
        for (name, major, minor) in DEFAULT {
            node(&tmpfs, name, libc::S_IFCHR | 0o666, (major, minor))
                .map_err(|e| refused(&format!("/dev/{name}"), (major, minor), e))?;
        }
        Ok(tmpfs)
    })
}

/// Makes a tmpfs with the nodes of one container, named `0`, `1`, ...
pub(super) fn make(devices: &[DeviceNode], users: Option<&Users>) -> Result<OwnedFd> {
    as_root_of(users, || {
        let tmpfs = tmpfs()?;
        for (index, device) in devices.iter().enumerate() {
            add(&tmpfs, index, device, users)
                .map_err(|e| Error::new(e.kind, format!("linux.devices[{index}]: {e}")))?;
        }
        Ok(tmpfs)
    })
}

fn add(tmpfs: &OwnedFd, index: usize, device: &DeviceNode, users: Option<&Users>) -> Result<()> {
    let path = device.path.display().to_string();
    let number = (device.major, device.minor);
    let name = index.to_string();
    node(tmpfs, &name, device.mode, number).map_err(|e| refused(&path, number, e))?;
    // The sandbox's root made the node.
    if (device.uid, device.gid) == (0, 0) {
        return Ok(());
    }
    let unmapped = |field: &str, id: u32| {
        Error::invalid(format!(
            "{path}: {field} {id} is not mapped in the sandbox's user namespace"
        ))
    };
    let (uid, gid) = match users {
        None => (device.uid, device.gid),
        Some(users) => (
            users.host_uid(device.uid).ok_or_else(|| unmapped("uid", device.uid))?,
            users.host_gid(device.gid).ok_or_else(|| unmapped("gid", device.gid))?,
        ),
    };
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    chownat(tmpfs, &name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
        .context(|| format!("chown of {path}"))
}

/// Makes a small tmpfs, owned by the user as which the gofer acts. So it need
/// not be idmapped, which tmpfs supports only since Linux 6.3.
fn tmpfs() -> Result<OwnedFd> {
    let make = || {
        let context = FsContext::open("tmpfs")?;
        context.string("mode", "755")?;
        context.string("size", "64k")?;
        finish(&context, MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NOSUID)
    };
    make().context(|| "mounting a tmpfs for device nodes")
}

fn node(
    tmpfs: &OwnedFd,
    name: &str,
    mode: u32,
    (major, minor): (u32, u32),
) -> rustix::io::Result<()> {
    let kind = FileType::from_raw_mode(mode);
    let device = if kind == FileType::Fifo { 0 } else { makedev(major, minor) };
    mknodat(tmpfs, name, kind, Mode::from_raw_mode(mode), device)
}

fn refused(path: &str, (major, minor): (u32, u32), error: Errno) -> Error {
    let hint = if error == Errno::PERM {
        "; the devices cgroup that the shim runs in must allow making nodes (\"c *:* m\", \"b *:* m\")"
    } else {
        ""
    };
    Error::internal(format!("mknod of {path} ({major}:{minor}): {error}{hint}"))
}
