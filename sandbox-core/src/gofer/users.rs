//! The sandbox's user namespace and its mappings, by which mounts show their
//! owners.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::error::{Context, Error, Result};
use crate::gofer::child::idle;
use crate::spec::plan::{IdMapping, Mappings};

/// The users of a sandbox that has a user namespace.
pub(super) struct Users {
    namespace: OwnedFd,
    mappings: Mappings,
    root: (u32, u32),
}

impl Users {
    /// Takes a user namespace and its mappings, which must have a root.
    pub(super) fn new(namespace: OwnedFd, mappings: Mappings) -> Result<Self> {
        let missing =
            |field: &str| Error::invalid(format!("linux.{field}: container ID 0 is not mapped"));
        let uid = mappings.uid_outside(0).ok_or_else(|| missing("uidMappings"))?;
        let gid = mappings.gid_outside(0).ok_or_else(|| missing("gidMappings"))?;
        Ok(Self { namespace, mappings, root: (uid, gid) })
    }

    /// Returns the namespace, for `MOUNT_ATTR_IDMAP`.
    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Returns the namespace by which owners are mapped. `None` if they keep their numbers: a
    /// shim that is not root of the host may map the owners of no file system of the host.
    pub(super) fn idmap(&self) -> Option<BorrowedFd<'_>> {
        (!self.mappings.keep_numbers()).then(|| self.namespace())
    }

    /// Returns the mappings, to compare them.
    pub(super) fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// Returns the host's user and group of the container's root.
    pub(super) fn root(&self) -> (u32, u32) {
        self.root
    }

    /// Returns the host's ID of a user in the container.
    pub(super) fn host_uid(&self, inside: u32) -> Option<u32> {
        self.mappings.uid_outside(inside)
    }

    /// Returns the host's ID of a group in the container.
    pub(super) fn host_gid(&self, inside: u32) -> Option<u32> {
        self.mappings.gid_outside(inside)
    }

    /// Whether this owner and group on disk exist in the container.
    pub(super) fn maps(&self, (uid, gid): (u32, u32)) -> bool {
        self.host_uid(uid).is_some() && self.host_gid(gid).is_some()
    }

    /// Whether a file of this host user belongs to the sandbox already, because its
    /// owners were shifted before.
    pub(super) fn owns(&self, host_uid: u32) -> bool {
        self.mappings.uids.iter().any(|line| line.holds_outside(host_uid))
    }
}

/// Runs `work` with the file system user and group of the sandbox's root, but with all
/// of the gofer's capabilities (setfsuid(2), capabilities(7)). New files then belong to
/// the container's root. The capabilities in the initial user namespace stay in force,
/// since only they allow the mount.
pub(super) fn as_root_of<T>(users: Option<&Users>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(users) = users else { return work() };
    let (uid, gid) = users.root();
    let (own_uid, own_gid) = become_for_files(Uid::from_raw(uid), Gid::from_raw(gid))?;
    let result = work();
    become_for_files(own_uid, own_gid)?;
    result
}

/// Changes the file system user and group, and returns the former ones.
fn become_for_files(uid: Uid, gid: Gid) -> Result<(Uid, Gid)> {
    // setfsuid from 0 to another user removes the file capabilities from the effective
    // set. The permitted set keeps them.
    let capabilities = rustix::thread::capabilities(None).context(|| "capget")?;
    let former = (setfsuid(uid), setfsgid(gid));
    rustix::thread::set_capabilities(None, capabilities).context(|| "capset")?;
    // Both calls fail silently. A second call shows it.
    if setfsuid(uid) != uid || setfsgid(gid) != gid {
        return Err(Error::internal(format!("the kernel refused setfsuid {uid}, setfsgid {gid}")));
    }
    Ok(former)
}

/// Makes a user namespace with the given mappings, which only its descriptor keeps
/// alive. It is for mounts with mappings of their own.
pub(super) fn namespace_with(mappings: &Mappings) -> Result<OwnedFd> {
    let child = idle(CloneFlags::CLONE_NEWUSER)?;
    let process = format!("/proc/{}", child.pid());
    mappings
        .write(&process)
        .map_err(|e| Error::invalid(format!("the kernel refuses these ID mappings: {e}")))?;
    let namespace =
        fs::File::open(format!("{process}/ns/user")).context(|| "opening a user namespace")?;
    Ok(namespace.into())
}

/// Parses mappings as containerd writes them into mount options:
/// `inside:outside:size`, separated by commas (containerd, `mount_idmapped_linux.go`).
pub(super) fn parse_mappings(option: &str, text: &str) -> Result<Vec<IdMapping>> {
    let parse = |entry: &str| {
        let mut numbers = entry.split(':').map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(inside)), Some(Ok(outside)), Some(Ok(size)), None) => {
                Some(IdMapping { inside, outside, size })
            }
            _ => None,
        }
    };
    text.split(',').map(parse).collect::<Option<_>>().ok_or_else(|| {
        Error::invalid(format!("option {option}={text}: expected container:host:size"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_mount_options_are_read_whole_or_refused() {
        let map = parse_mappings("uidmap", "0:65536:10,10:1000:1").unwrap();
        assert_eq!(map[1], IdMapping { inside: 10, outside: 1000, size: 1 });
        for wrong in ["", "0:1", "0:1:2:3", "0:1:2,", "a:1:2", "0:-1:2"] {
            let error = parse_mappings("uidmap", wrong).unwrap_err().to_string();
            assert!(error.contains("uidmap="), "{error}");
        }
    }
}
