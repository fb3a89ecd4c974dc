//! Interprets `linux.cgroupsPath` (runtime-spec, config-linux.md, "Cgroups
//! Path") as runc does.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// The program that makes the cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// The shim, by mkdir.
    #[default]
    Cgroupfs,
    /// systemd: the shim requests a transient unit over D-Bus (the option
    /// `cgroup_driver` or `SystemdCgroup`). A path of the form `slice:prefix:name` means the same.
    Systemd,
}

/// The place of a container's cgroup.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Below the mount point of each hierarchy.
    Absolute(PathBuf),
    /// Below the caller's own cgroup.
    Relative(PathBuf),
    /// A transient unit of systemd.
    Unit(Unit),
}

/// A transient unit of systemd and its slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) slice: String,
    pub(super) name: String,
}

/// Resolves a cgroups path. An empty one means `/<id>`, or `system.slice` with
/// the systemd driver: beside all other cgroups and never inside the service
/// that the shim may be part of, whose restart would end the container as well.
pub(super) fn place(id: &str, cgroups_path: &str, driver: Driver) -> Result<Place> {
    if cgroups_path.contains(['\0', '\n']) {
        return Err(invalid(cgroups_path, "no zero byte and no line break"));
    }
    let parts: Vec<&str> = cgroups_path.split(':').collect();
    if let ([slice, prefix, name], false) = (parts.as_slice(), cgroups_path.contains('/')) {
        return unit(cgroups_path, slice, prefix, name).map(Place::Unit);
    }
    match (driver, cgroups_path) {
        (Driver::Systemd, "") => unit(id, "", "palisade", id).map(Place::Unit),
        (Driver::Systemd, _) => {
            Err(invalid(cgroups_path, "the form slice:prefix:name that the systemd driver needs"))
        }
        (Driver::Cgroupfs, "") => below(id, id).map(Place::Absolute),
        (Driver::Cgroupfs, path) if path.starts_with('/') => below(path, path).map(Place::Absolute),
        (Driver::Cgroupfs, path) => below(path, path).map(Place::Relative),
    }
}

/// Cleans a path. `..` is resolved textually and never leaves the root, as in runc's
/// CleanPath.
fn below(cgroups_path: &str, path: &str) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    if clean.as_os_str().is_empty() {
        return Err(invalid(
            cgroups_path,
            "a cgroup below the root, which is not the container's to limit",
        ));
    }
    Ok(clean)
}

/// Returns the unit: `prefix-name.scope`, or `name` itself when that is a slice.
fn unit(cgroups_path: &str, slice: &str, prefix: &str, name: &str) -> Result<Unit> {
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let name = match (name, prefix) {
        ("", _) => return Err(invalid(cgroups_path, "a name after the second colon")),
        (name, _) if name.ends_with(".slice") => name.to_owned(),
        (name, "") => format!("{name}.scope"),
        (name, prefix) => format!("{prefix}-{name}.scope"),
    };
    expand_slice(slice).ok_or_else(|| invalid(cgroups_path, "a slice such as a-b.slice first"))?;
    Ok(Unit { slice: slice.to_owned(), name })
}

/// Returns the directory of a systemd slice: `a-b.slice` is in `a.slice/a-b.slice`
/// (systemd.slice(5)). `None` if the name is no slice's.
pub(super) fn expand_slice(slice: &str) -> Option<PathBuf> {
    let stem = slice.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in stem.split('-') {
        if part.is_empty() || part.contains('/') {
            return None;
        }
        path.push(format!("{prefix}{part}.slice"));
        prefix = format!("{prefix}{part}-");
    }
    Some(path)
}

fn invalid(cgroups_path: &str, expected: &str) -> Error {
    Error::invalid(format!("linux.cgroupsPath {cgroups_path:?}: expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroupfs(path: &str) -> Place {
        place("c1", path, Driver::Cgroupfs).unwrap()
    }

    #[test]
    fn paths_are_cleaned_and_stay_below_the_root() {
        assert_eq!(cgroupfs("/kubepods/pod1/c1"), Place::Absolute("kubepods/pod1/c1".into()));
        assert_eq!(cgroupfs("/../../etc//x/./y"), Place::Absolute("etc/x/y".into()));
        assert_eq!(cgroupfs("a/../../b"), Place::Relative("b".into()));
        assert_eq!(cgroupfs(""), Place::Absolute("c1".into()));
        for root in ["/", "..", "/a/..", "."] {
            let error = place("c1", root, Driver::Cgroupfs).unwrap_err().to_string();
            assert!(error.contains("linux.cgroupsPath"), "{error}");
        }
    }

    #[test]
    fn the_systemd_form_means_systemd_whatever_the_driver() {
        let unit = |slice: &str, name: &str| {
            Place::Unit(Unit { slice: slice.to_owned(), name: name.to_owned() })
        };
        for driver in [Driver::Cgroupfs, Driver::Systemd] {
            let place = |path| place("c1", path, driver).unwrap();
            assert_eq!(
                place("kubepods-pod1.slice:cri:c1"),
                unit("kubepods-pod1.slice", "cri-c1.scope")
            );
            assert_eq!(place(":docker:c1"), unit("system.slice", "docker-c1.scope"));
            assert_eq!(place("user.slice::c1"), unit("user.slice", "c1.scope"));
            assert_eq!(place("user.slice:x:user-c1.slice"), unit("user.slice", "user-c1.slice"));
        }
        assert_eq!(
            place("c1", "", Driver::Systemd).unwrap(),
            unit("system.slice", "palisade-c1.scope")
        );
        for bad in ["/kubepods/c1", "a.slice:b", "a:b:c", "a--b.slice:x:y", "a.slice:x:"] {
            assert!(place("c1", bad, Driver::Systemd).is_err(), "{bad}");
        }
    }

    #[test]
    fn slices_are_kept_in_their_parents() {
        assert_eq!(
            expand_slice("a-b-c.slice").unwrap(),
            Path::new("a.slice/a-b.slice/a-b-c.slice")
        );
        assert_eq!(expand_slice("-.slice").unwrap(), Path::new(""));
        assert_eq!(expand_slice("a.scope"), None);
    }
}
