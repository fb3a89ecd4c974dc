//! The mounts of a container, and which of their flags are locked: what a mount above in the order
//! of user namespaces has set cannot be taken off below (mount_namespaces(7)). The kernel lists no
//! such locks, so each is tried, on a copy of the mount that is nowhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use rustix::mount::MountAttrFlags;
use sandbox_core::sys::mount::{self, AttrChange, Depth};
use sandbox_core::types::HostPid;

/// The time in which all locks must have been tried: a file system of the container's own could
/// let us wait for ever.
const PATIENCE: Duration = Duration::from_secs(3);

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its ID.
    pub id: u64,
    /// Where it is in the container.
    pub destination: PathBuf,
    /// The directory or file of the file system that is seen there.
    pub root: PathBuf,
    /// What was mounted: a device, or what the file system calls its source.
    pub source: String,
    /// The type of the file system.
    pub kind: String,
    /// The options of the mount: `ro`, `nosuid`, …
    pub options: Vec<String>,
    /// The options of the file system.
    pub file_system_options: Vec<String>,
    /// How it is propagated: `shared:1`, `master:2`, or nothing.
    pub propagation: Vec<String>,
    /// Whether it is idmapped.
    pub idmapped: bool,
    /// The options that cannot be taken off from inside. `None` if that could not be tried: for a
    /// mount that another one covers.
    pub locked: Option<Vec<&'static str>>,
}

/// Reads the mounts of a process, in the order of the kernel.
///
/// # Errors
/// The error says that the process has ended.
pub fn of(pid: HostPid) -> Result<Vec<Mount>> {
    let path = format!("/proc/{}/mountinfo", pid.0);
    let table = fs::read(&path).with_context(|| format!("read {path}"))?;
    let mut mounts: Vec<Mount> = table.split(|byte| *byte == b'\n').filter_map(parse).collect();
    // A thread of its own, since it enters the container's mounts; it ends with this process if
    // the container's file system does not answer.
    let (sender, receiver) = mpsc::channel();
    let tried = mounts.clone();
    thread::spawn(move || {
        let _ = try_locks(pid, &tried, &sender);
    });
    let end = std::time::Instant::now() + PATIENCE;
    while let Ok((id, locked)) =
        receiver.recv_timeout(end.saturating_duration_since(std::time::Instant::now()))
    {
        if let Some(mount) = mounts.iter_mut().find(|mount| mount.id == id) {
            mount.locked = Some(locked);
        }
    }
    Ok(mounts)
}

/// The options whose locks can be tried, with the attributes that set them.
const LOCKABLE: [(&str, MountAttrFlags); 4] = [
    ("ro", MountAttrFlags::MOUNT_ATTR_RDONLY),
    ("nosuid", MountAttrFlags::MOUNT_ATTR_NOSUID),
    ("nodev", MountAttrFlags::MOUNT_ATTR_NODEV),
    ("noexec", MountAttrFlags::MOUNT_ATTR_NOEXEC),
];

/// What was found out about one mount.
type Locked = (u64, Vec<&'static str>);

/// Enters the mount namespace of a process with this thread, and tries the locks.
fn try_locks(pid: HostPid, mounts: &[Mount], found: &mpsc::Sender<Locked>) -> Result<()> {
    let namespace = fs::File::open(format!("/proc/{}/ns/mnt", pid.0))?;
    // Other threads share this one's root directory, which the kernel refuses to move.
    nix::sched::unshare(CloneFlags::CLONE_FS)?;
    nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNS)?;
    for mount in mounts {
        if let Some(locked) = locks(mount) {
            found.send((mount.id, locked))?;
        }
    }
    Ok(())
}

/// Tries the locks of one mount. The kernel checks a change of a copy as one of the mount itself,
/// whoever asks.
fn locks(mount: &Mount) -> Option<Vec<&'static str>> {
    let place = mount::open_place(&mount.destination).ok()?;
    // Another mount can cover it, or a symbolic link of the container's lead elsewhere.
    let on = mount::mount_of(&place).ok()?;
    if on.id != mount.id {
        return None;
    }
    let set = LOCKABLE.iter().filter(|(name, _)| mount.options.iter().any(|set| set == name));
    let mut locked = Vec::new();
    for (name, attribute) in set {
        let copy = mount::clone_mount(&place, c"", Depth::Tree).ok()?;
        let change = AttrChange { clear: *attribute, ..AttrChange::default() };
        if mount::mount_setattr(&copy, Depth::Top, change)
            .is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
        {
            locked.push(*name);
        }
    }
    Some(locked)
}

/// Parses a line of mountinfo. Paths are bytes, in any encoding.
fn parse(line: &[u8]) -> Option<Mount> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let list = |field: &[u8]| text(field).split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?).parse().ok()?;
    let (_parent, _device) = (fields.next()?, fields.next()?);
    let (root, destination) = (unescape(fields.next()?), unescape(fields.next()?));
    let options = list(fields.next()?);
    let propagation = fields.by_ref().take_while(|field| *field != b"-").map(text).collect();
    let (kind, source) = (text(fields.next()?), unescape(fields.next()?));
    let file_system_options = list(fields.next()?);
    let idmapped = options.iter().any(|option| option == "idmapped");
    Some(Mount {
        id,
        destination,
        root,
        source: source.to_string_lossy().into_owned(),
        kind,
        options,
        file_system_options,
        propagation,
        idmapped,
        locked: None,
    })
}

/// Undoes the kernel's escapes: `\040` is a space.
fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let code =
            octal.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    Path::new(std::ffi::OsStr::from_bytes(&bytes)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whatever_their_paths_are() {
        let line = b"36 35 98:0 /mnt1 /my\\040dir rw,noatime,idmapped shared:1 master:2 - ext3 /dev/root rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.destination.to_str()), (36, Some("/my dir")));
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("ext3", "/dev/root"));
        assert_eq!(mount.propagation, ["shared:1", "master:2"]);
        assert!(mount.idmapped && mount.locked.is_none());
        assert_eq!(parse(b""), None);
        assert_eq!(unescape(b"a\\9z\\134"), Path::new("a\\9z\\"));
    }
}
