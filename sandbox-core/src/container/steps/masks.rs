//! Masked and read-only paths (OCI `linux.maskedPaths`, `linux.readonlyPaths`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;

use super::file_system::file_system;
use super::phase::{MountPhase, Phases};
use crate::container::paths::DEV_NULL;
use crate::error::{Context, Error, Result};
use crate::places::{find, is_directory, is_proc};
use crate::spec::plan::ContainerPlan;
use crate::sys::mount::{AttrChange, Depth, attach_to, clone_mount, mount_setattr};

/// A proc or a sysfs of the container: its destination, and the mount.
pub(crate) type KernelMount = (PathBuf, OwnedFd);

/// Where paths are looked up. What lies below one of them is looked up on the mount itself: a
/// second way there from the container's root could lead elsewhere meanwhile, if a symlink
/// of the image leads through a volume that another container changes.
#[derive(Clone, Copy)]
pub(crate) struct Lookup<'a> {
    pub(crate) root: BorrowedFd<'a>,
    pub(crate) kernel: &'a [KernelMount],
}

impl<'a> Lookup<'a> {
    /// Finds the place of a path, if it exists.
    fn find(self, path: &Path) -> Result<Option<OwnedFd>> {
        match self.kernel_mount_of(path) {
            Some((mount, rest)) => find(mount.as_fd(), rest),
            None => find(self.root, path),
        }
    }

    /// Returns the one that a path lies below, and the rest of the path.
    fn kernel_mount_of<'p>(self, path: &'p Path) -> Option<(&'a OwnedFd, &'p Path)> {
        self.kernel.iter().find_map(|(destination, mount)| {
            let rest = path.strip_prefix(destination).ok()?;
            (!rest.as_os_str().is_empty()).then_some((mount, rest))
        })
    }
}

/// Masks and protects the paths that come in this phase.
pub(crate) fn cover(lookup: Lookup<'_>, plan: &ContainerPlan, now: MountPhase) -> Result<()> {
    let phases = Phases::of(plan);
    let ours = |paths: &[PathBuf]| -> Vec<PathBuf> {
        paths.iter().filter(|path| phases.of_path(path) == now).cloned().collect()
    };
    for path in ours(&plan.readonly_paths) {
        if !make_read_only(lookup, &path)? {
            let others = plan.readonly_paths.iter().chain(&plan.masked_paths);
            check_missing(lookup, &path, others)?;
        }
    }
    ours(&plan.masked_paths).iter().try_for_each(|p| mask(lookup, p))
}

/// Hides a path: a file behind /dev/null, a directory behind an empty one. A path that
/// does not exist needs no mask.
fn mask(lookup: Lookup<'_>, path: &Path) -> Result<()> {
    let Some(place) = lookup.find(path)? else {
        return Ok(());
    };
    let what = || format!("mask {}", path.display());
    let cover = if is_directory(&place)? {
        let empty = file_system("tmpfs", &[("nr_inodes".to_owned(), Some("1".to_owned()))])?;
        mount_setattr(&empty, Depth::Top, AttrChange::READ_ONLY).context(what)?;
        empty
    } else {
        null_device().context(what)?
    };
    attach_to(&cover, &place).context(what)
}

/// Makes a path and all mounts below it read-only. Returns whether it exists.
fn make_read_only(lookup: Lookup<'_>, path: &Path) -> Result<bool> {
    let Some(place) = lookup.find(path)? else {
        return Ok(false);
    };
    let what = || format!("make {} read-only", path.display());
    let again = clone_mount(&place, "", Depth::Tree).context(what)?;
    mount_setattr(&again, Depth::Tree, AttrChange::READ_ONLY).context(what)?;
    attach_to(&again, place.as_fd()).context(what)?;
    Ok(true)
}

/// Refuses a read-only path that does not exist, but may come later and would be writable then:
/// a sysctl, which comes with a module of the kernel or a network device. Everything else that
/// is missing stays so, or is the container's own, and is skipped as in runc.
fn check_missing<'a>(
    lookup: Lookup<'_>,
    path: &Path,
    others: impl Iterator<Item = &'a PathBuf>,
) -> Result<()> {
    let Some((mount, rest)) = lookup.kernel_mount_of(path) else { return Ok(()) };
    let may_come = rest.starts_with("sys")
        && rest != Path::new("sys")
        && is_proc(mount)?
        && find(mount.as_fd(), Path::new("sys"))?.is_some();
    let mut others = others.filter(|other| *other != path);
    if !may_come || others.any(|other| path.starts_with(other)) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "linux.readonlyPaths: {} does not exist, and would be writable if a module of the kernel \
         or a network device made it later; name a directory above it, such as /proc/sys",
        path.display()
    )))
}

/// Clones the sandbox's own null device. An image can fake the container's `/dev/null`
/// (CVE-2025-31133).
fn null_device() -> std::io::Result<OwnedFd> {
    let null = clone_mount(CWD, DEV_NULL, Depth::Top)?;
    let stat = rustix::fs::fstat(&null)?;
    let is_null =
        stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3);
    match is_null {
        true => Ok(null),
        false => Err(std::io::Error::other(Error::internal(format!(
            "{DEV_NULL} is not the null device"
        )))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::open_root;

    #[test]
    fn a_sysctl_that_is_missing_cannot_be_read_only() {
        let (root, proc) = (open_root("/").unwrap(), open_root("/proc").unwrap());
        let kernel = [(PathBuf::from("/proc"), proc)];
        let lookup = Lookup { root: root.as_fd(), kernel: &kernel };
        let check = |path: &str, others: &[&str]| {
            let others: Vec<PathBuf> = others.iter().map(PathBuf::from).collect();
            check_missing(lookup, Path::new(path), others.iter())
        };
        let late = "/proc/sys/net/bridge/late";
        assert!(check(late, &[late]).unwrap_err().to_string().contains(late));
        assert!(check(late, &[late, "/proc/sys"]).is_ok());
        for stays_missing in ["/proc/asound", "/proc/sysrq-none", "/none", "/proc/sys"] {
            assert!(check(stays_missing, &[]).is_ok(), "{stays_missing}");
        }
    }

    #[test]
    fn what_lies_below_proc_is_found_on_proc_alone() {
        let directory = tempfile::tempdir().unwrap();
        let make = |path: &str| std::fs::create_dir_all(directory.path().join(path)).unwrap();
        for path in ["root/proc/sys", "root/proc/only-here", "proc/sys", "root/etc"] {
            make(path);
        }
        let open = |path: &str| open_root(directory.path().join(path).to_str().unwrap()).unwrap();
        let (root, kernel) = (open("root"), [(PathBuf::from("/proc"), open("proc"))]);
        let lookup = Lookup { root: root.as_fd(), kernel: &kernel };
        let identity = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let found = |path: &str| lookup.find(Path::new(path)).unwrap().as_ref().map(identity);
        assert_eq!(found("/proc/sys"), Some(identity(&open("proc/sys"))));
        assert_eq!(found("/proc/only-here"), None);
        assert_eq!(found("/proc"), Some(identity(&open("root/proc"))));
        assert_eq!(found("/etc"), Some(identity(&open("root/etc"))));
    }
}
