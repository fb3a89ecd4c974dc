//! Cgroups of Palisade's that no state names, by their names: the cgroup `palisade` that boot has
//! below a pod's on version 2, and scopes `palisade-ID.scope`, which the driver systemd makes where
//! no path is asked for. Others have the names that containerd or an administrator chose.
//!
//! A shim makes a cgroup a moment before it records it. So one counts only if it is old, has no
//! process, and no shim lives that has recorded itself nowhere; and the kernel removes none that
//! has a process.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use sandbox_core::cgroup::Cgroup;
use sandbox_core::sandbox::state::sandboxes;

/// Where the hierarchies are: one of version 2, or a directory for each of version 1.
const MOUNT: &str = "/sys/fs/cgroup";

/// boot's cgroup below that of a pod.
const BOOT: &str = "palisade";

/// A cgroup is left alone for this long after it was made or changed.
const YOUNG: Duration = Duration::from_secs(60);

/// The levels below a hierarchy's root that are looked at: a pod's of Kubernetes is the fourth.
const DEPTH: usize = 8;

/// Finds them.
///
/// # Errors
/// Fails if a state cannot be read: then it is not known what it names.
pub(super) fn find(state_root: &Path) -> Result<Vec<PathBuf>> {
    find_below(Path::new(MOUNT), &named(state_root)?)
}

fn find_below(mount: &Path, named: &BTreeSet<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for directory in children(mount) {
        go(&directory, named, DEPTH, &mut found);
    }
    found.retain(|path| is_old(path) && is_empty(path));
    Ok(found)
}

/// Removes one with those below it, children first, unless a process has come.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    for child in children(path) {
        remove(&child)?;
    }
    fs::remove_dir(path)
}

/// Returns the cgroups that states name.
fn named(state_root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut named = BTreeSet::new();
    for (_, directory) in sandboxes(state_root)? {
        for id in directory.container_ids()? {
            if let Some(container) = directory.container(&id)? {
                let cgroup = Cgroup::open(container.cgroup)?;
                named.extend(cgroup.paths().map(Path::to_owned));
            }
        }
    }
    Ok(named)
}

/// Looks at a cgroup and those below. What is below one that a state names is its container's,
/// which may give it any name.
fn go(path: &Path, named: &BTreeSet<PathBuf>, depth: usize, found: &mut Vec<PathBuf>) {
    if depth == 0 || named.contains(path) {
        return;
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let children = children(path);
    let is_ours = name.starts_with("palisade-") && name.ends_with(".scope")
        || children
            .iter()
            .any(|child| child.ends_with(BOOT) && child.join("cgroup.events").exists());
    match is_ours {
        true => found.push(path.to_owned()),
        false => children.iter().for_each(|child| go(child, named, depth - 1, found)),
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let mut all: Vec<PathBuf> = entries.filter(is_directory).map(|entry| entry.path()).collect();
    all.sort();
    all
}

fn is_old(path: &Path) -> bool {
    let changed = fs::metadata(path).and_then(|metadata| metadata.modified());
    changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= YOUNG))
}

/// Whether neither it nor one below has a process. Version 2 says so of all at once.
fn is_empty(path: &Path) -> bool {
    if let Ok(events) = fs::read_to_string(path.join("cgroup.events")) {
        return events.lines().any(|line| line == "populated 0");
    }
    let none = fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|pids| pids.is_empty());
    none && children(path).iter().all(|child| is_empty(child))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a cgroup, as far as its files say something, that is old.
    fn make(root: &Path, name: &str, populated: u8) -> PathBuf {
        let path = root.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("cgroup.events"), format!("populated {populated}\nfrozen 0\n"))
            .unwrap();
        path
    }

    fn age(path: &Path) {
        let past = std::time::SystemTime::now() - 2 * YOUNG;
        fs::File::open(path).unwrap().set_modified(past).unwrap();
    }

    #[test]
    fn only_what_is_ours_by_name_old_empty_and_of_no_state_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let mut all = Vec::new();
        for (pod, populated) in [("left", 0), ("lives", 1), ("named", 0), ("young", 0)] {
            let path = make(root, &format!("kubepods/{pod}"), populated);
            make(root, &format!("kubepods/{pod}/palisade"), populated);
            all.push(path);
        }
        let scope = make(root, "system.slice/palisade-x.scope", 0);
        // Not ours: another runtime's, and one that a container has made.
        let other = make(root, "kubepods/runc", 0);
        let inside = make(root, "kubepods/named/palisade-y.scope", 0);
        for path in [&all[0], &all[1], &all[2], &scope, &other, &inside] {
            age(path);
        }
        let named = BTreeSet::from([all[2].clone()]);
        let mut found = find_below(root, &named).unwrap();
        found.sort();
        assert_eq!(found, [all[0].clone(), scope]);
    }
}
