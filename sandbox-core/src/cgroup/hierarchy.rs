//! Finds the cgroup hierarchies of this host by its mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::statfs;

use super::{Cgroup, Dir, SavedCgroup};
use crate::error::{Context, Error, Result};

/// `CGROUP2_SUPER_MAGIC` of magic.h, as in statfs(2).
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// The way in which a host mounts its cgroups (cgroups(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only version 1 hierarchies.
    V1,
    /// Version 1 for the controllers, and a version 2 mount beside them.
    /// Treated as version 1 throughout.
    Hybrid,
    /// One unified version 2 hierarchy.
    V2,
}

impl Mode {
    /// Returns the mode of this host. The mounts are read once per process.
    pub fn of_host() -> Result<Mode> {
        Ok(Hierarchies::of_host()?.mode)
    }

    /// Whether limits and statistics are those of version 2.
    pub fn is_v2(self) -> bool {
        self == Mode::V2
    }
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Its controllers: `cpu` and `cpuacct` where they are mounted together,
    /// `name=systemd` for that named hierarchy, none for version 2.
    pub(super) controllers: Vec<String>,
    /// Its mount point.
    pub(super) mount: PathBuf,
    /// The cgroup that the mount shows: `/`, unless a part of the tree was
    /// bind-mounted into a container.
    root: PathBuf,
}

/// All hierarchies that a container's processes join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchies {
    pub(super) mode: Mode,
    pub(super) all: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Returns the hierarchies of this host. They are read once, since the
    /// mounts do not change while a shim lives.
    pub(super) fn of_host() -> Result<&'static Hierarchies> {
        static FOUND: OnceLock<Hierarchies> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(found);
        }
        let found = Self::find()?;
        Ok(FOUND.get_or_init(|| found))
    }

    fn find() -> Result<Hierarchies> {
        // statfs of the usual place detects version 2 without reading mounts,
        // which may be thousands.
        let usual = Path::new("/sys/fs/cgroup");
        if statfs(usual).is_ok_and(|s| s.f_type == CGROUP2_MAGIC) {
            return Ok(Self::unified(usual.to_owned(), "/".into()));
        }
        let path = "/proc/self/mountinfo";
        // A mount of anything else may be at any bytes.
        let text = fs::read(path).context(|| format!("read {path}"))?;
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn unified(mount: PathBuf, root: PathBuf) -> Hierarchies {
        let all = vec![Hierarchy { controllers: Vec::new(), mount, root }];
        Hierarchies { mode: Mode::V2, all }
    }

    /// Parses the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
    pub(super) fn parse(mountinfo: &str) -> Result<Hierarchies> {
        let mut v1: Vec<Hierarchy> = Vec::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
            let mut left = left.split(' ').skip(3);
            let (Some(root), Some(mount)) = (left.next(), left.next()) else {
                continue;
            };
            let (root, mount) = (unescape(root), unescape(mount));
            match kind {
                "cgroup" => {
                    let controllers = controllers_of(options);
                    let known = v1.iter().any(|h| h.controllers == controllers);
                    // If a hierarchy is mounted more than once, the first mount
                    // counts.
                    if !known && !controllers.is_empty() {
                        v1.push(Hierarchy { controllers, mount, root });
                    }
                }
                "cgroup2" if v2.is_none() => v2 = Some((mount, root)),
                _ => {}
            }
        }
        let controlled = v1.iter().any(|h| !h.controllers[0].starts_with("name="));
        match v2 {
            Some((mount, root)) if !controlled => Ok(Self::unified(mount, root)),
            None if !controlled => Err(Error::internal(
                "/proc/self/mountinfo: no cgroup file system with controllers is mounted, expected one at /sys/fs/cgroup",
            )),
            v2 => {
                let mode = if v2.is_some() { Mode::Hybrid } else { Mode::V1 };
                Ok(Hierarchies { mode, all: v1 })
            }
        }
    }
}

impl Hierarchies {
    /// Returns a cgroup at a place in each hierarchy, without making it.
    pub(super) fn cgroup(&self, below: impl Fn(&Hierarchy) -> Result<PathBuf>) -> Result<Cgroup> {
        let dir = |h: &Hierarchy| {
            let path = h.mount.join(below(h)?);
            Ok(Dir { controllers: h.controllers.clone(), mount: h.mount.clone(), path })
        };
        let dirs = self.all.iter().map(dir).collect::<Result<_>>()?;
        let saved = SavedCgroup { v2: self.mode.is_v2(), dirs, unit: None, resctrl: None };
        Ok(Cgroup::of(saved))
    }
}

impl Hierarchy {
    /// Returns the cgroup of this hierarchy in the text of a `/proc/PID/cgroup`
    /// (cgroups(7)), relative to the mount.
    pub(super) fn own(&self, proc_cgroup: &str) -> Option<PathBuf> {
        proc_cgroup.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (names, path) = (fields.next()?, fields.next()?);
            let ours = match self.controllers.first() {
                None => names.is_empty(),
                Some(first) => names.split(',').any(|name| name == first),
            };
            let path = Path::new(path);
            let below = path.strip_prefix(&self.root).unwrap_or(Path::new(""));
            ours.then(|| below.strip_prefix("/").unwrap_or(below).to_owned())
        })
    }
}

/// Returns the controllers among the super block options of a version 1 mount:
/// all but the generic options.
fn controllers_of(options: &str) -> Vec<String> {
    const GENERIC: [&str; 8] =
        ["rw", "ro", "xattr", "noprefix", "clone_children", "none", "seclabel", "cpuset_v2_mode"];
    options
        .split(',')
        .filter(|o| !GENERIC.contains(o) && !o.starts_with("release_agent="))
        .map(str::to_owned)
        .collect()
}

/// Decodes the octal escapes of mountinfo (`\040` for a space).
fn unescape(field: &str) -> PathBuf {
    let mut plain = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|o| u8::from_str_radix(o, 8).ok());
        match code {
            Some(byte) if byte.is_ascii() => {
                plain.push(byte.into());
                rest = &rest[at + 4..];
            }
            _ => {
                plain.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    plain.push_str(rest);
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
90 31 0:32 / /elsewhere/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_host_is_version_1_and_each_hierarchy_counts_once() {
        let found = Hierarchies::parse(HYBRID).unwrap();
        assert_eq!(found.mode, Mode::Hybrid);
        let names: Vec<_> = found.all.iter().map(|h| h.controllers.join(",")).collect();
        assert_eq!(names, ["cpu,cpuacct", "memory", "name=systemd"]);
        assert_eq!(found.all[1].mount, Path::new("/sys/fs/cgroup/memory"));
    }

    #[test]
    fn a_named_hierarchy_beside_version_2_is_still_version_2() {
        let found = Hierarchies::parse(
            "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
             41 31 0:38 / /sys/fs/with\\040space rw - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        let found = found.unwrap();
        assert_eq!(found.mode, Mode::V2);
        assert_eq!(found.all[0].mount, Path::new("/sys/fs/with space"));
    }

    #[test]
    fn without_cgroups_the_error_names_the_cause() {
        let error = Hierarchies::parse("27 1 254:0 / / rw - ext4 /dev/vda rw\n").unwrap_err();
        assert!(error.to_string().contains("no cgroup file system"), "{error}");
    }

    #[test]
    fn the_own_cgroup_is_relative_to_the_mount() {
        let line = "50 31 0:32 /pod/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = Hierarchies::parse(line).unwrap();
        let own = found.all[0].own("9:cpu:/\n4:memory:/pod/x/y\n0::/\n");
        assert_eq!(own, Some("y".into()));
    }
}
