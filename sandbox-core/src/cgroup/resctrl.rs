//! Groups of the resctrl file system (`linux.intelRdt`): shares of the last cache and of the
//! memory's bandwidth. They are made, joined and removed with the container's cgroup.
//!
//! Several shims can make the same class at once, as can the administrator's tools: whoever makes or
//! looks at one holds the lock of the file system's root meanwhile. So nobody sees a class without
//! its schemata, or joins one that its maker takes away again.
//!
//! Documentation/filesystems/resctrl.rst

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::file;
use crate::error::{Context, Error, Result};
use crate::spec::plan::IntelRdt;

/// The time that others may take to make a class, and how often it is looked whether they have.
const LOCKED: Duration = Duration::from_secs(2);
const TURN: Duration = Duration::from_millis(1);

/// A container's groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Groups {
    /// The groups that its processes join, in this order.
    joined: Vec<PathBuf>,
    /// Those of them that are the container's alone, in the order of their removal.
    made: Vec<PathBuf>,
}

/// Finds the file system.
pub(super) fn root_of_host() -> Result<PathBuf> {
    /// `RDTGROUP_SUPER_MAGIC` of `linux/magic.h`.
    const MAGIC: u64 = 0x0765_5821;
    const USUAL: &str = "/sys/fs/resctrl";
    if rustix::fs::statfs(USUAL).is_ok_and(|found| found.f_type as u64 == MAGIC) {
        return Ok(USUAL.into());
    }
    let mounts = fs::read("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo")?;
    let mounts = String::from_utf8_lossy(&mounts);
    elsewhere(&mounts).ok_or_else(|| {
        Error::invalid(
            "linux.intelRdt: no resctrl file system is mounted: mount one at /sys/fs/resctrl, if \
             the machine has such features (resctrl(5)), or leave the field out",
        )
    })
}

/// Finds it among the lines of mountinfo, proc_pid_mountinfo(5).
fn elsewhere(mounts: &str) -> Option<PathBuf> {
    let place = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let is_it = file_system.split(' ').next() == Some("resctrl");
        is_it.then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
    };
    mounts.lines().find_map(place)
}

/// Returns the groups that [`make`] makes or finds.
pub(super) fn plan(root: &Path, id: &str, wanted: &IntelRdt) -> Groups {
    let class = class(root, id, wanted);
    let mut groups = Groups::default();
    if wanted.class.is_none() && !class.is_dir() {
        groups.made.push(class.clone());
    }
    groups.joined.push(class.clone());
    if wanted.monitoring {
        groups.add_monitor(class.join("mon_groups").join(id));
    }
    groups
}

/// Returns the directory of the class that is wanted.
fn class(root: &Path, id: &str, wanted: &IntelRdt) -> PathBuf {
    match wanted.class.as_deref() {
        Some("/") => root.to_owned(),
        Some(name) => root.join(name),
        None => root.join(id),
    }
}

/// Makes or finds the groups of container `id` below `root`, and writes the schemata. An
/// error leaves nothing behind.
pub(super) fn make(root: &Path, id: &str, wanted: &IntelRdt) -> Result<Groups> {
    let _locked = lock(root)?;
    let mut groups = Groups::default();
    match make_all(root, id, wanted, &mut groups) {
        Ok(()) => Ok(groups),
        Err(error) => {
            if let Err(left) = groups.remove() {
                log::warn!("after a failed create: {left}");
            }
            let status = fs::read_to_string(root.join("info/last_cmd_status")).unwrap_or_default();
            Err(match status.trim() {
                "" | "ok" => error,
                status => Error::new(error.kind, format!("{error} ({status})")),
            })
        }
    }
}

/// Takes the lock that resctrl.rst recommends to all who change classes, "Resctrl file locking", until
/// the file is closed. It is not waited for in the kernel, where nothing would end that.
fn lock(root: &Path) -> Result<File> {
    let what = || format!("linux.intelRdt: flock {}", root.display());
    let file = File::open(root).context(what)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCKED => std::thread::sleep(TURN),
            Err(TryLockError::WouldBlock) => {
                let why = "another program holds it, and changes classes";
                return Err(Error::internal(format!("{} within {LOCKED:?}: {why}", what())));
            }
            Err(TryLockError::Error(e)) => return Err(e).context(what),
        }
    }
}

fn make_all(root: &Path, id: &str, wanted: &IntelRdt, groups: &mut Groups) -> Result<()> {
    let named = wanted.class.as_deref();
    let class = class(root, id, wanted);
    // Who names a class makes it and takes it away, unless the spec says what is in it.
    if named.is_some() && wanted.schemata.is_empty() && !class.is_dir() {
        return Err(Error::invalid(format!(
            "linux.intelRdt.closID: there is no {}; expected one, or schemata to make it with",
            class.display()
        )));
    }
    let made = make_directory(&class)?;
    if made && named.is_none() {
        groups.made.push(class.clone());
    }
    groups.joined.push(class.clone());
    if named.is_some() && !made {
        check_schemata(&class, &wanted.schemata)?;
    } else if let Err(error) = write_schemata(&class, &wanted.schemata) {
        if made && named.is_some() {
            let _ = rustix::fs::rmdir(&class);
        }
        return Err(error);
    }
    if wanted.monitoring {
        let monitor = class.join("mon_groups").join(id);
        make_directory(&monitor)?;
        groups.add_monitor(monitor);
    }
    Ok(())
}

/// Makes a directory. Returns whether it is new.
fn make_directory(path: &Path) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e).context(|| format!("linux.intelRdt: mkdir {}", path.display())),
    }
}

fn write_schemata(class: &Path, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let path = class.join("schemata");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .context(|| format!("linux.intelRdt: write {text:?} to {}", path.display()))
}

/// Checks that a class that exists is the one that the spec describes: it may have other
/// containers.
fn check_schemata(class: &Path, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let path = class.join("schemata");
    let found = file::read(&path)?;
    let agrees = |wanted: &String| found.lines().any(|line| has(line, wanted));
    match lines.iter().find(|line| !agrees(line)) {
        None => Ok(()),
        Some(line) => Err(Error::invalid(format!(
            "linux.intelRdt.closID: {} exists, and its schemata are not {line:?}",
            class.display()
        ))),
    }
}

/// Whether a line such as `L3:0=fff;1=ff` has all values of another.
fn has(line: &str, wanted: &str) -> bool {
    let parts = |line: &str| -> Option<(String, Vec<(String, String)>)> {
        let (resource, values) = line.trim().split_once(':')?;
        let value = |pair: &str| {
            let (domain, value) = pair.split_once('=')?;
            let digits = value.trim().trim_start_matches("0x").trim_start_matches('0');
            Some((domain.trim().to_owned(), digits.to_lowercase()))
        };
        let values = values.split(';').filter(|pair| !pair.trim().is_empty());
        Some((resource.trim().to_owned(), values.map(value).collect::<Option<_>>()?))
    };
    match (parts(line), parts(wanted)) {
        (Some((resource, values)), Some((of, wanted))) => {
            resource == of && wanted.iter().all(|pair| values.contains(pair))
        }
        _ => false,
    }
}

impl Groups {
    /// Adds the container's own group within its class, which is removed first.
    fn add_monitor(&mut self, monitor: PathBuf) {
        self.made.insert(0, monitor.clone());
        self.joined.push(monitor);
    }

    /// Opens the files by which a process joins: it writes "0" into each.
    pub(super) fn tasks(&self) -> Result<Vec<OwnedFd>> {
        let open = |group: &PathBuf| {
            let path = group.join("tasks");
            file::open(&path, OFlags::WRONLY).context(|| format!("open {}", path.display()))
        };
        self.joined.iter().map(open).collect()
    }

    /// Removes those that are the container's alone. Idempotent.
    pub(super) fn remove(&self) -> Result<()> {
        for group in &self.made {
            match rustix::fs::rmdir(group) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e).context(|| format!("rmdir {}", group.display())),
            }
        }
        Ok(())
    }

    /// Whether all paths are ones that [`make`] could have made.
    pub(super) fn are_plain(&self) -> bool {
        let plain = |path: &PathBuf| {
            let up = |part: std::path::Component<'_>| part == std::path::Component::ParentDir;
            path.is_absolute() && !path.components().any(up)
        };
        self.joined.iter().chain(&self.made).all(plain)
    }
}

/// No machine of our tests has such features, so plain directories stand for the file system.
#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with a class that the administrator made.
    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in [".", "gold", "gold/mon_groups", "mon_groups"] {
            let directory = root.path().join(directory);
            let _ = fs::create_dir(&directory);
            fs::write(directory.join("tasks"), "").unwrap();
            fs::write(directory.join("schemata"), "    MB:0=100\n    L3:0=00f;1=fff\n").unwrap();
        }
        root
    }

    fn wanted(class: Option<&str>, schemata: &[&str], monitoring: bool) -> IntelRdt {
        let schemata = schemata.iter().map(|line| (*line).to_owned()).collect();
        IntelRdt { class: class.map(str::to_owned), schemata, monitoring }
    }

    #[test]
    fn a_class_of_the_administrator_s_is_joined_and_stays() {
        let root = root();
        let groups = make(root.path(), "c1", &wanted(Some("gold"), &[], false)).unwrap();
        assert_eq!(groups.joined, [root.path().join("gold")]);
        let joined = groups.tasks().unwrap();
        rustix::io::write(&joined[0], b"0").unwrap();
        assert_eq!(fs::read(root.path().join("gold/tasks")).unwrap(), b"0");
        groups.remove().unwrap();
        assert!(root.path().join("gold").exists());
        let default = make(root.path(), "c1", &wanted(Some("/"), &[], false)).unwrap();
        assert_eq!(default.joined, [root.path().to_owned()]);
    }

    #[test]
    fn a_class_must_exist_or_be_described_as_it_is() {
        let root = root();
        let refused = |class: &str, schemata: &[&str]| {
            let made = make(root.path(), "c1", &wanted(Some(class), schemata, false));
            made.unwrap_err().to_string()
        };
        assert!(refused("silver", &[]).contains("linux.intelRdt.closID: there is no "));
        for wrong in ["L3:0=f;1=f", "L2:0=f", "MB:0=10", "L3:2=f", "nonsense"] {
            assert!(refused("gold", &["MB:0=100", wrong]).contains(wrong), "{wrong}");
        }
        let same = wanted(Some("gold"), &["L3:0=0xF;1=FFF", "MB: 0 = 100"], false);
        make(root.path(), "c1", &same).unwrap();
    }

    /// The kernel makes the files of a new group, and removes them with it; here nothing does,
    /// so the write fails.
    #[test]
    fn a_failure_leaves_no_group_behind() {
        let root = root();
        fs::create_dir(root.path().join("info")).unwrap();
        fs::write(root.path().join("info/last_cmd_status"), "no more classes\n").unwrap();
        for class in [None, Some("silver")] {
            let error = make(root.path(), "c1", &wanted(class, &["MB:0=10"], false)).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("write \"MB:0=10\\n\" to"), "{error}");
            assert!(error.ends_with("(no more classes)"), "{error}");
        }
        assert!(!root.path().join("c1").exists() && !root.path().join("silver").exists());
    }

    #[test]
    fn a_container_s_own_groups_go_with_it() {
        let root = root();
        let own = make(root.path(), "c1", &wanted(None, &[], false)).unwrap();
        assert_eq!(own.made, [root.path().join("c1")]);
        own.remove().unwrap();
        own.remove().unwrap();
        assert!(!root.path().join("c1").exists());
        let monitored = make(root.path(), "c1", &wanted(Some("gold"), &[], true)).unwrap();
        let monitor = root.path().join("gold/mon_groups/c1");
        assert_eq!(monitored.joined, [root.path().join("gold"), monitor.clone()]);
        monitored.remove().unwrap();
        assert!(!monitor.exists() && root.path().join("gold").exists());
        assert!(monitored.are_plain());
    }

    #[test]
    fn what_is_planned_is_what_is_made() {
        let root = root();
        fs::create_dir(root.path().join("there")).unwrap();
        for (id, class, monitoring) in [
            ("c1", None, false),
            ("there", None, false),
            ("c2", Some("gold"), true),
            ("c3", Some("/"), false),
            ("c4", Some("/"), true),
        ] {
            let wanted = wanted(class, &[], monitoring);
            let planned = plan(root.path(), id, &wanted);
            assert_eq!(planned, make(root.path(), id, &wanted).unwrap(), "{id}");
        }
    }

    /// Another shim is half-way with the same class.
    #[test]
    fn a_class_that_another_makes_is_seen_once_it_is_made() {
        let root = root();
        let others = lock(root.path()).unwrap();
        let silver = root.path().join("silver");
        fs::create_dir(&silver).unwrap();
        let wanted = wanted(Some("silver"), &["MB:0=10"], false);
        let (sender, made) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(make(root.path(), "c1", &wanted)));
            let early = made.recv_timeout(Duration::from_millis(100));
            assert!(early.is_err(), "it did not wait: {early:?}");
            fs::write(silver.join("schemata"), "MB:0=10\n").unwrap();
            drop(others);
            assert_eq!(made.recv().unwrap().unwrap().joined, [silver]);
        });
    }

    #[test]
    fn a_lock_that_another_keeps_is_named() {
        let root = root();
        let _others = lock(root.path()).unwrap();
        let error = make(root.path(), "c1", &wanted(None, &[], false)).unwrap_err().to_string();
        assert!(error.contains("flock ") && error.contains("another program holds it"), "{error}");
        assert!(!root.path().join("c1").exists());
    }

    #[test]
    fn new_schemata_are_written_in_their_order() {
        let root = root();
        // Someone else's leftover: it is used, and stays.
        fs::create_dir(root.path().join("c1")).unwrap();
        fs::write(root.path().join("c1/schemata"), "").unwrap();
        let groups = make(root.path(), "c1", &wanted(None, &["L3:0=f", "MB:0=10"], false)).unwrap();
        let written = fs::read_to_string(root.path().join("c1/schemata")).unwrap();
        assert_eq!(written, "L3:0=f\nMB:0=10\n");
        assert!(groups.made.is_empty());
    }

    #[test]
    fn the_file_system_may_be_mounted_elsewhere() {
        let mounts = "22 27 0:21 / /sys rw - sysfs sysfs rw\n\
                      90 22 0:77 / /mnt/rdt rw,relatime shared:9 - resctrl resctrl rw\n";
        assert_eq!(elsewhere(mounts), Some("/mnt/rdt".into()));
        assert_eq!(elsewhere("22 27 0:21 / /sys rw - sysfs resctrl rw\n"), None);
    }
}
