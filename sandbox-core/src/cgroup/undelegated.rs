//! Cgroups of a shim that is not root of the host. It makes them where they were delegated to
//! its user (cgroup-v2.rst, "Delegation"). Elsewhere the container stays in containerd's, and
//! each limit that is lost is told.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde_json::{Value, json};

use super::create::{Made, beside_caller, check_unused, make, make_dir};
use super::hierarchy::Hierarchies;
use super::path::{Driver, Place, place};
use super::planned::{Planned, Way};
use super::{Cgroup, SavedCgroup, file, resources};
use crate::error::{Context, Result};
use crate::spec::plan::Powerless;

/// What to do about it.
const DELEGATE: &str = "delegate a cgroup of version 2 to containerd's user (systemd's \
     Delegate=yes), and name one in there by linux.cgroupsPath, or leave that out";

/// See [`Cgroup::plan_where_delegated`].
pub(super) fn plan(id: &str, cgroups_path: &str, driver: Driver) -> Result<Planned> {
    let place = place(id, cgroups_path, driver)?;
    let none = |why: String| Planned::new(id, absent().saved, Way::WhereDelegated(Some(why)));
    let hierarchies = match Hierarchies::of_host() {
        Ok(hierarchies) => hierarchies,
        Err(error) => return Ok(none(error.to_string())),
    };
    let cgroup = match place {
        Place::Unit(_) => {
            let why = "a unit of systemd, and the host's systemd serves its root alone";
            return Ok(none(format!("{cgroups_path:?} names {why}")));
        }
        // Without a path, it is below the cgroup that was delegated.
        Place::Absolute(below) if cgroups_path.is_empty() => beside_caller(hierarchies, &below)?,
        Place::Absolute(below) => hierarchies.cgroup(|_| Ok(below.clone()))?,
        Place::Relative(below) => beside_caller(hierarchies, &below)?,
    };
    Ok(Planned::new(id, cgroup.saved, Way::WhereDelegated(None)))
}

/// Makes a cgroup that was planned, where that is delegated; `why` says why it is planned
/// nowhere.
pub(super) fn make_planned(
    planned: SavedCgroup,
    why: Option<String>,
    wanted: &LinuxResources,
) -> Result<Cgroup> {
    let mut made = Made::default();
    let (mut cgroup, refused) = make_some(planned, &mut made)?;
    let why = why.or(refused);
    if !cgroup.is_absent() {
        check_unused(&cgroup, &made)?;
    }
    let (given, mut lacking) = split(&cgroup, wanted, why.as_deref())?;
    resources::check(cgroup.saved.v2, &given)?;
    resources::apply(&cgroup, &given)?;
    if let (true, Some(why)) = (cgroup.is_absent(), &why) {
        lacking.push(Powerless {
            field: "linux.cgroupsPath".into(),
            lost: format!("the container stays in containerd's cgroup ({why})"),
            instead: DELEGATE.into(),
            // Engines set one for each container.
            by_default: true,
        });
    }
    made.keep();
    cgroup.lacking = lacking;
    Ok(cgroup)
}

/// Makes the directories that may be made. Also returns why another could not.
fn make_some(planned: SavedCgroup, made: &mut Made) -> Result<(Cgroup, Option<String>)> {
    let mut cgroup = Cgroup::of(planned);
    let (v2, mut why) = (cgroup.saved.v2, None);
    let mut dirs = Vec::new();
    for dir in std::mem::take(&mut cgroup.saved.dirs) {
        // Dropped, and with it what it made, where it may not be joined.
        let mut new = Made::default();
        let joinable = match make_dir(&dir.path, &mut new) {
            Ok(()) => may_join(&dir.path, &dir.mount, v2),
            Err(error) => Err(format!("mkdir {}: {error}", dir.path.display())),
        };
        match joinable {
            Ok(()) => {
                made.add(new);
                make(&dir, v2, made)?;
                dirs.push(dir);
            }
            Err(refused) => why = why.or(Some(refused)),
        }
    }
    cgroup.saved.dirs = dirs;
    Ok((if cgroup.is_absent() { absent() } else { cgroup }, why))
}

/// Returns a cgroup that is none: the container stays in that of its parent.
fn absent() -> Cgroup {
    Cgroup::of(SavedCgroup { v2: false, dirs: Vec::new(), unit: None, resctrl: None })
}

/// Checks that this process may move others there: it must be able to write the list of
/// processes, and on version 2 that of the cgroup above both as well.
fn may_join(dir: &Path, mount: &Path, v2: bool) -> std::result::Result<(), String> {
    writable(&dir.join("cgroup.procs"))?;
    if !v2 {
        return writable(&dir.join("tasks"));
    }
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    writable(&above_both(&mount.join(own), dir).join("cgroup.procs"))
}

fn writable(path: &Path) -> std::result::Result<(), String> {
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)
        .map_err(|error| format!("{}: {}", path.display(), io::Error::from(error)))
}

fn above_both(one: &Path, other: &Path) -> PathBuf {
    let same = one.components().zip(other.components()).take_while(|(a, b)| a == b);
    same.map(|(component, _)| component).collect()
}

/// Splits resources into those that the cgroup has a controller for, and the names of those
/// that it has not. Devices are of the latter: only root of the host limits them.
fn split(
    cgroup: &Cgroup,
    wanted: &LinuxResources,
    why: Option<&str>,
) -> Result<(LinuxResources, Vec<Powerless>)> {
    let v2 = cgroup.saved.v2;
    let enabled = match cgroup.saved.dirs.first().filter(|_| v2) {
        Some(dir) => file::read(&dir.path.join("cgroup.controllers"))?,
        None => String::new(),
    };
    let has = |controller: &str| match v2 {
        true => controller == "cgroup" || enabled.split_whitespace().any(|c| c == controller),
        false => cgroup.dir(controller).is_some(),
    };
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    let lost = |field: String, controller: &str, by_default: bool| Powerless {
        field: format!("linux.resources.{field}"),
        lost: format!("the container has no cgroup with the controller {controller}{why}"),
        instead: DELEGATE.into(),
        by_default,
    };
    let mut all = serde_json::to_value(wanted).context(|| "write limits down")?;
    let mut lacking = Vec::new();
    for (section, value) in all.as_object_mut().into_iter().flatten() {
        if section == "devices" {
            if asked(section, value) {
                lacking.push(lost(section.clone(), "devices", true));
            }
            *value = Value::Null;
        } else if let Value::Object(fields) = value {
            fields.retain(|field, value| {
                let controller = controller(v2, section, field);
                let has = has(controller);
                if !has && asked(field, value) {
                    lacking.push(lost(format!("{section}.{field}"), controller, false));
                }
                has
            });
            if fields.is_empty() {
                *value = Value::Null;
            }
        } else {
            let controller = controller(v2, section, "");
            if !has(controller) {
                if asked(section, value) {
                    lacking.push(lost(section.clone(), controller, false));
                }
                *value = Value::Null;
            }
        }
    }
    let given = serde_json::from_value(all).context(|| "read limits")?;
    Ok((given, lacking))
}

/// Returns the controller of a field of `linux.resources`.
fn controller<'a>(v2: bool, section: &'a str, field: &'a str) -> &'a str {
    match (section, field) {
        ("cpu", "cpus" | "mems") => "cpuset",
        ("blockIO", _) if v2 => "io",
        ("blockIO", _) => "blkio",
        ("hugepageLimits", _) => "hugetlb",
        ("network", "classID") => "net_cls",
        ("network", _) => "net_prio",
        ("unified", file) => file.split('.').next().unwrap_or(file),
        (section, _) => section,
    }
}

/// Whether a value limits anything: not if it is what a cgroup has anyway.
fn asked(field: &str, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Number(_) if field == "shares" && *value == json!(1024) => false,
        Value::Number(_) if field == "period" => false,
        Value::Number(number) => number.as_f64().is_some_and(|number| number > 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_cgroup_each_limit_is_told_and_none_is_left() {
        let wanted = serde_json::from_value(json!({
            "devices": [{ "allow": false, "access": "rwm" }],
            "cpu": { "shares": 1024, "quota": 5000, "period": 100_000, "cpus": "0" },
            "memory": { "limit": 1 << 20, "swap": -1 },
            "pids": { "limit": 10 },
            "blockIO": { "weight": 300 },
            "network": { "classID": 5 },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
            "unified": { "memory.high": "1" },
        }));
        let (given, lacking) = split(&absent(), &wanted.unwrap(), Some("for a reason")).unwrap();
        let mut told: Vec<_> = lacking.iter().map(|one| one.field.as_str()).collect();
        told.sort_unstable();
        let expected = [
            "blockIO.weight",
            "cpu.cpus",
            "cpu.quota",
            "devices",
            "hugepageLimits",
            "memory.limit",
            "network.classID",
            "pids.limit",
            "unified.memory.high",
        ];
        assert_eq!(told, expected.map(|field| format!("linux.resources.{field}")));
        assert!(lacking[0].lost.contains("for a reason"), "{}", lacking[0]);
        assert_eq!(given, LinuxResources::default());
    }

    #[test]
    fn the_cgroup_above_two_others_is_found() {
        let above = |a: &str, b: &str| above_both(Path::new(a), Path::new(b));
        assert_eq!(above("/c/user/a", "/c/user/b"), Path::new("/c/user"));
        assert_eq!(above("/c/user", "/c/user/b"), Path::new("/c/user"));
        assert_eq!(above("/c/x", "/c/user/b"), Path::new("/c"));
    }
}
