//! Makes a cgroup, all or nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::fs::Mode as Permissions;
use rustix::io::Errno;

use super::hierarchy::Hierarchies;
use super::path::{Driver, Place, place};
use super::planned::{Planned, Way};
use super::resources;
use super::{Cgroup, Dir, file, systemd};
use crate::directories::make_in;
use crate::error::{Context, Error, FailureKind, Result};
use crate::spec::plan::UnitProperty;

/// See [`Cgroup::plan`].
pub(super) fn plan(id: &str, cgroups_path: &str, driver: Driver) -> Result<Planned> {
    let hierarchies = Hierarchies::of_host()?;
    let (cgroup, way) = match place(id, cgroups_path, driver)? {
        Place::Unit(unit) => (systemd::expected(&unit, hierarchies)?, Way::Unit(unit)),
        Place::Absolute(below) => (hierarchies.cgroup(|_| Ok(below.clone()))?, Way::Mkdir),
        Place::Relative(below) => (beside_caller(hierarchies, &below)?, Way::Mkdir),
    };
    Ok(Planned::new(id, cgroup.saved, way))
}

/// Makes a cgroup that was planned, but for its groups of resctrl.
pub(super) fn make_planned(
    planned: &Planned,
    resources: &LinuxResources,
    properties: &[UnitProperty],
) -> Result<Cgroup> {
    let hierarchies = Hierarchies::of_host()?;
    resources::check(hierarchies.mode.is_v2(), resources)?;
    let mut made = Made::default();
    let cgroup = match planned.way() {
        Way::Unit(unit) => {
            let cgroup = systemd::create(planned.id(), unit, hierarchies, resources, properties)?;
            made.unit = cgroup.saved.unit.clone();
            cgroup
        }
        _ => Cgroup::of(planned.without_resctrl()),
    };
    for dir in &cgroup.saved.dirs {
        make(dir, cgroup.saved.v2, &mut made)?;
    }
    if made.unit.is_none() {
        check_unused(&cgroup, &made)?;
    }
    resources::apply(&cgroup, resources)?;
    resources::allow_devices(&cgroup, resources)?;
    made.keep();
    Ok(cgroup)
}

/// Returns a cgroup below the caller's own; on version 2 beside it, because a
/// cgroup with processes cannot have limited children (cgroup-v2.rst, "No
/// Internal Process Constraint").
pub(super) fn beside_caller(hierarchies: &Hierarchies, below: &Path) -> Result<Cgroup> {
    let path = "/proc/self/cgroup";
    let text = fs::read_to_string(path).context(|| format!("read {path}"))?;
    hierarchies.cgroup(|hierarchy| {
        let missing = || {
            let names = hierarchy.controllers.join(",");
            Error::internal(format!("{path}: expected a line for the hierarchy {names:?}"))
        };
        let own = hierarchy.own(&text).ok_or_else(missing)?;
        let parent = match own.parent() {
            Some(parent) if hierarchies.mode.is_v2() => parent.to_owned(),
            _ => own,
        };
        Ok(parent.join(below))
    })
}

/// The directories and the unit made so far, which are removed on drop unless
/// kept.
#[derive(Default)]
pub(super) struct Made {
    dirs: Vec<PathBuf>,
    unit: Option<String>,
}

impl Made {
    /// Takes over what another has made.
    pub(super) fn add(&mut self, mut other: Self) {
        self.dirs.append(&mut other.dirs);
    }

    /// Leaves them.
    pub(super) fn keep(mut self) {
        self.dirs.clear();
        self.unit = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for dir in self.dirs.iter().rev() {
            // Another container may have made a cgroup below a parent
            // meanwhile.
            let _ = rustix::fs::rmdir(dir);
        }
        if let Some(unit) = &self.unit
            && let Err(e) = systemd::stop(unit)
        {
            log::warn!("after a failed create: {e}");
        }
    }
}

/// Makes one directory with its parents and prepares it to take processes.
pub(super) fn make(dir: &Dir, v2: bool, made: &mut Made) -> Result<()> {
    let first = made.dirs.len();
    make_dir(&dir.path, made).context(|| format!("mkdir {}", dir.path.display()))?;
    if v2 {
        enable_controllers(dir)?;
        return check_type(&dir.path);
    }
    if dir.controllers.iter().any(|c| c == "cpuset") {
        let fresh = made.dirs.len() > first;
        seed_cpuset(&dir.path, &dir.mount, fresh)?;
    }
    Ok(())
}

/// Makes a directory with its parents. If another process removes a parent
/// meanwhile, the parent is made again.
pub(super) fn make_dir(dir: &Path, made: &mut Made) -> io::Result<()> {
    let make = || match rustix::fs::mkdir(dir, Permissions::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // The parent is being removed.
        Err(Errno::NODEV) => Err(Errno::NOENT.into()),
        Err(e) => Err(e.into()),
    };
    let is_new = match dir.parent() {
        Some(parent) => make_in(parent, make, || make_dir(parent, made))?,
        None => make()?,
    };
    if is_new {
        made.dirs.push(dir.to_owned());
    }
    Ok(())
}

/// Copies the parent's CPUs and memory nodes, from the top down: a new cpuset
/// of version 1 has none and refuses processes (cpusets.rst).
fn seed_cpuset(dir: &Path, mount: &Path, fresh: bool) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if fresh || file::read(&dir.join(name))?.trim().is_empty() {
            let value = inherited(dir, mount, name)?;
            file::write(&dir.join(name), &value)?;
        }
    }
    Ok(())
}

fn inherited(dir: &Path, mount: &Path, name: &str) -> Result<String> {
    let parent = dir.parent().unwrap_or(mount);
    let value = file::read(&parent.join(name))?;
    if !value.trim().is_empty() || parent == mount || !parent.starts_with(mount) {
        return Ok(value.trim().to_owned());
    }
    let value = inherited(parent, mount, name)?;
    file::write(&parent.join(name), &value)?;
    Ok(value)
}

/// Enables the root's controllers for the cgroup, from the top down (version
/// 2). If one cannot be enabled, that is an error only for a limit that needs
/// it, whose file is then missing.
fn enable_controllers(dir: &Dir) -> Result<()> {
    let available = file::read(&dir.mount.join("cgroup.controllers"))?;
    let parents: Vec<&Path> =
        dir.path.ancestors().skip(1).take_while(|p| p.starts_with(&dir.mount)).collect();
    for parent in parents.into_iter().rev() {
        let control = parent.join("cgroup.subtree_control");
        let enabled = file::read(&control)?;
        let wanted = |c: &&str| !enabled.split_whitespace().any(|e| e == *c);
        let missing: Vec<String> =
            available.split_whitespace().filter(wanted).map(|c| format!("+{c}")).collect();
        if missing.is_empty() || file::write_io(&control, &missing.join(" ")).is_ok() {
            continue;
        }
        for controller in missing {
            if let Err(e) = file::write_io(&control, &controller) {
                log::debug!("write {controller} to {}: {e}", control.display());
            }
        }
    }
    Ok(())
}

/// Checks the cgroup's type: processes can only join a domain (cgroup-v2.rst,
/// "Threads").
fn check_type(dir: &Path) -> Result<()> {
    let kind = file::read(&dir.join("cgroup.type"))?;
    match kind.trim() {
        "domain" => Ok(()),
        other => Err(Error::invalid(format!(
            "linux.cgroupsPath: {} is {other:?}, expected a cgroup of type \"domain\": a parent is threaded",
            dir.display()
        ))),
    }
}

/// Checks that a cgroup that existed before is empty and not frozen. Otherwise
/// two containers would share limits and be killed together.
pub(super) fn check_unused(cgroup: &Cgroup, made: &Made) -> Result<()> {
    if cgroup.paths().all(|p| made.dirs.iter().any(|m| m == p)) {
        return Ok(());
    }
    let refuse = |why: String| Err(Error::new(FailureKind::Exists, why));
    let count = cgroup.pids()?.len();
    if count > 0 {
        return refuse(format!(
            "{} exists and has {count} processes, expected it to be empty",
            cgroup.name()
        ));
    }
    if cgroup.is_frozen()? {
        return refuse(format!("{} exists and is frozen, expected it to be thawed", cgroup.name()));
    }
    Ok(())
}
