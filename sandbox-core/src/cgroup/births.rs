//! Lets boot clone processes directly into a container's cgroup of version 2.
//!
//! To move a process there, the kernel waits for a grace period (14 to 28 ms on 16 CPUs) unless
//! somebody else has moved one shortly before: for each container but the root one, and for
//! each exec into it. A process that is born there (`CLONE_INTO_CGROUP`, clone(2)) waits for
//! nothing. But the kernel asks the cloner's own credentials for write access to
//! `cgroup.procs` of that cgroup, and of the lowest one above both it and the cloner's
//! (`cgroup_css_set_fork`): an open descriptor does not help. docs/decisions.md says what else
//! was weighed, and why boot may have that access.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat, stat};

use super::Cgroup;
use crate::error::{Context, Result};
use crate::sys::mount::open_alone;

const PROCS: &str = "cgroup.procs";
const ROOT: u32 = 0;

impl Cgroup {
    /// Lets boot, as this user of the host and in the cgroup `of_boot`, clone processes into
    /// this cgroup. Returns false if it may not: on version 1, or if another sandbox's boot
    /// has the access to the cgroup above. Such processes join the cgroup after their birth.
    pub fn allow_births(&self, of_boot: &Cgroup, boot: u32) -> Result<bool> {
        let Some(above) = self.above_both(of_boot) else { return Ok(false) };
        let allowed = give(&above.join(PROCS), ROOT, boot)?
            && give(&self.saved.dirs[0].path.join(PROCS), ROOT, boot)?;
        if allowed {
            self.open_birthplace()?;
        }
        Ok(allowed)
    }

    /// Opens the directory that a boot which may clone processes into this cgroup is to have.
    pub fn open_birthplace(&self) -> Result<()> {
        if self.saved.v2 && self.birthplace.get().is_none() {
            let path = &self.saved.dirs[0].path;
            let alone = open_alone(path).context(|| format!("open {}", path.display()))?;
            let _ = self.birthplace.set(alone);
        }
        Ok(())
    }

    /// Returns the directory for births in this cgroup, if boot may have them. Nothing above
    /// it can be reached from there: boot may have been taken over.
    pub fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.birthplace.get().map(AsFd::as_fd)
    }

    /// Takes from boot the access to the cgroup above this one, its own, that
    /// [`Cgroup::allow_births`] gave. The containers' cgroups are removed anyway.
    pub fn forbid_births(&self, boot: u32) -> Result<()> {
        // Those of a pod are siblings.
        let above =
            self.saved.dirs.first().filter(|_| self.saved.v2).and_then(|dir| dir.path.parent());
        above.map_or(Ok(()), |above| give(&above.join(PROCS), boot, ROOT).map(drop))
    }

    /// Returns the cgroup above this one and boot's, if they are siblings. Another one may
    /// belong to half the host.
    fn above_both(&self, of_boot: &Cgroup) -> Option<PathBuf> {
        let (mine, boots) = (self.saved.dirs.first()?, of_boot.saved.dirs.first()?);
        let above = mine.path.parent().filter(|above| *above != mine.mount)?;
        (self.saved.v2 && boots.path.parent() == Some(above)).then(|| above.to_owned())
    }
}

/// Gives a file of a cgroup from one user to another. Returns whether it belongs to the
/// latter now.
fn give(file: &Path, from: u32, to: u32) -> Result<bool> {
    let owner = match stat(file) {
        // The pod's cgroup may be removed already.
        Err(_) if to == ROOT => return Ok(true),
        other => other.context(|| format!("stat {}", file.display()))?.st_uid,
    };
    if owner == from {
        let to = Some(Uid::from_raw(to));
        chownat(CWD, file, to, None::<Gid>, AtFlags::SYMLINK_NOFOLLOW)
            .context(|| format!("chown {}", file.display()))?;
    }
    Ok(owner == from || owner == to)
}
