//! Device nodes. The sandbox cannot make them itself (mknod(2) fails with EPERM
//! in a user namespace). It binds each from a tmpfs that the gofer makes. A gofer in a user
//! namespace makes none either, and binds those of the host there.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Uid, chownat, fstat, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::error::{Context, Error, Result};
use crate::gofer::assemble::{Way, assemble};
use crate::gofer::filesystem::finish;
use crate::gofer::means::Gofer;
use crate::gofer::users::{Users, as_root_of};
use crate::spec::plan::{DeviceNode, Powerless};
use crate::sys::mount::{AttrChange, Depth, FsContext, clone_mount, mount_setattr, open_place};

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

/// Makes a tmpfs with the default nodes, which all users may read and write. They are the
/// host's if these are to be bound.
pub(super) fn default(users: Option<&Users>, bind: bool) -> Result<OwnedFd> {
    if bind {
        let nodes = DEFAULT.map(|(name, major, minor)| {
            (name.to_owned(), Path::new("/dev").join(name), libc::S_IFCHR, (major, minor))
        });
        return bound(&nodes, users).map(|(made, _)| made);
    }
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

/// Makes a tmpfs with the nodes of one container, named `0`, `1`, ..., of which those that are
/// devices are the host's of the same path. Names in the gofer's report what they cannot have.
pub(super) fn bind(devices: &[DeviceNode], gofer: &mut Gofer) -> Result<OwnedFd> {
    let nodes: Vec<Node> = devices
        .iter()
        .enumerate()
        .map(|(index, device)| {
            let number = (device.major, device.minor);
            (index.to_string(), device.path.clone(), device.mode, number)
        })
        .collect();
    let (made, found) = bound(&nodes, gofer.users.as_ref())?;
    for (index, stat) in found.into_iter().enumerate() {
        let (device, stat) = (&devices[index], stat.as_ref());
        gofer.powerless.extend(stat.and_then(|stat| unlike(index, device, stat)));
    }
    Ok(made)
}

/// Names the mode and the owner that a spec asks for and the host's node has not. The default
/// owner, root, may not have been asked for.
fn unlike(index: usize, device: &DeviceNode, stat: &Stat) -> Option<Powerless> {
    let same_mode = device.mode & 0o7777 == stat.st_mode & 0o7777;
    let (wanted, has) = ((device.uid, device.gid), (stat.st_uid, stat.st_gid));
    if same_mode && wanted == has {
        return None;
    }
    Some(Powerless {
        field: format!("linux.devices[{index}]"),
        lost: format!(
            "fileMode, uid and gid: {} is the host's own, with the mode {:o} and its owner there",
            device.path.display(),
            stat.st_mode & 0o7777
        ),
        instead: "change the host's, or run containerd as the host's root".into(),
        by_default: same_mode && wanted == (0, 0),
    })
}

/// The name of a node in a tmpfs, the path of the host's, its type and its number.
type Node = (String, PathBuf, u32, (u32, u32));

/// Makes a tmpfs on which the host's device nodes are mounted. Returns it with what each is;
/// `None` for a FIFO, which needs no privilege and is made.
fn bound(nodes: &[Node], users: Option<&Users>) -> Result<(OwnedFd, Vec<Option<Stat>>)> {
    let file = libc::S_IFREG | 0o600;
    let tmpfs = as_root_of(users, || {
        let tmpfs = tmpfs()?;
        for (name, path, mode, number) in nodes {
            let is_fifo = FileType::from_raw_mode(*mode) == FileType::Fifo;
            node(&tmpfs, name, if is_fifo { *mode } else { file }, *number)
                .map_err(|e| refused(&path.display().to_string(), *number, e))?;
        }
        Ok(tmpfs)
    })?;
    let (mut parts, mut found) = (Vec::new(), Vec::new());
    for (name, path, mode, number) in nodes {
        if FileType::from_raw_mode(*mode) == FileType::Fifo {
            found.push(None);
            continue;
        }
        let (mount, stat) = of_host(path, *mode, *number)?;
        parts.push((Path::new(name), mount));
        found.push(Some(stat));
    }
    Ok((assemble(&tmpfs, &parts, Way::Plain)?, found))
}

/// Clones the mount of the host's node at a path, which must be this device.
fn of_host(path: &Path, mode: u32, (major, minor): (u32, u32)) -> Result<(OwnedFd, Stat)> {
    let wrong = |what: String| {
        Error::invalid(format!(
            "the device {} ({major}:{minor}): {what}; a shim that is not root of the host makes \
             no device nodes, and binds the host's at the same path",
            path.display()
        ))
    };
    let place = open_place(path).map_err(|e| wrong(e.to_string()))?;
    let stat = fstat(&place).context(|| format!("fstat {}", path.display()))?;
    let kind = FileType::from_raw_mode(mode);
    if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != makedev(major, minor) {
        return Err(wrong("the host's is another".into()));
    }
    let mount = clone_mount(&place, c"", Depth::Top)
        .context(|| format!("open_tree of {}", path.display()))?;
    // As those that are made, which lie on one mount that boot makes read-only.
    mount_setattr(&mount, Depth::Top, AttrChange::READ_ONLY)
        .context(|| format!("mount_setattr of {}", path.display()))?;
    Ok((mount, stat))
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
    let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    let device = if is_device { makedev(major, minor) } else { 0 };
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
