//! The container's cgroups at `/sys/fs/cgroup`, as seen from its cgroup namespace:
//! cgroup2 if the host has only that, otherwise a tmpfs with one directory for each v1
//! hierarchy.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};

use super::file_system::{file_system, set_attributes};
use crate::error::{Context, Result};
use crate::spec::plan::{FsOption, MountAttributes};
use crate::sys::mount::attach_to;

/// Makes the mount at the destination itself.
pub(crate) fn make() -> Result<OwnedFd> {
    if hierarchies()?.is_empty() {
        return file_system("cgroup2", &[]);
    }
    file_system("tmpfs", &[("mode".to_owned(), Some("755".to_owned()))])
}

/// Mounts the v1 hierarchies below, with the attributes of the whole mount.
pub(crate) fn fill(mount: &OwnedFd, attributes: &MountAttributes) -> Result<()> {
    for hierarchy in hierarchies()? {
        let options = hierarchy.options();
        let made = file_system("cgroup", &options)?;
        set_attributes(&made, attributes).context(|| "set the attributes of a cgroup mount")?;
        let name = hierarchy.directory();
        mkdirat(mount, name, Mode::from_raw_mode(0o755)).context(|| format!("mkdir {name}"))?;
        let place = openat(mount, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open {name}"))?;
        attach_to(&made, &place).context(|| format!("mount the cgroup hierarchy {name}"))?;
        // Programs also look for cpu,cpuacct under the name cpu.
        for alias in hierarchy.aliases() {
            symlinkat(name, mount, alias).context(|| format!("symlink {alias}"))?;
        }
    }
    Ok(())
}

/// A v1 hierarchy, by its name in /proc/self/cgroup: cgroups(7).
struct Hierarchy(String);

impl Hierarchy {
    fn options(&self) -> Vec<FsOption> {
        self.0
            .split(',')
            .map(|option| match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.to_owned(), None),
            })
            .collect()
    }

    fn directory(&self) -> &str {
        self.0.strip_prefix("name=").unwrap_or(&self.0)
    }

    fn aliases(&self) -> impl Iterator<Item = &str> {
        let several = self.0.contains(',');
        self.0.split(',').filter(move |_| several)
    }
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let path = "/proc/self/cgroup";
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let text = file
        .map_err(std::io::Error::from)
        .and_then(|file| std::io::read_to_string(std::fs::File::from(file)))
        .context(|| format!("read {path}"))?;
    let named = text.lines().filter_map(|line| line.split(':').nth(1));
    Ok(named.filter(|name| !name.is_empty()).map(|name| Hierarchy(name.to_owned())).collect())
}
