//! `linux.resources.pids`, `hugepageLimits`, `network`, `rdma`, `unified`.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::net_cls::NetClsController;
use cgroups_rs::fs::net_prio::NetPrioController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::rdma::RdmaController;
use oci_spec::runtime::{LinuxHugepageLimit, LinuxNetwork, LinuxPids, LinuxRdma};

use super::{Steps, dir_for, put, unsupported};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};

/// Applies the limit. Zero means "not set" and a negative number "no limit", as
/// with runc up to 1.3. runc 1.4 takes a zero that is present for a limit of
/// one, but here it looks the same as an absent one.
pub(super) fn pids(cg: &Cgroup, pids: &LinuxPids) -> Result<()> {
    let max = match pids.limit() {
        0 => return Ok(()),
        limit if limit < 0 => MaxValue::Max,
        limit => MaxValue::Value(limit),
    };
    let dir = dir_for(cg, "pids", "pids.limit")?;
    let set = PidController::new(dir.to_owned(), PathBuf::new(), cg.saved.v2);
    let mut steps = Steps::default();
    steps.library("pids.limit", || set.set_pid_max(max));
    steps.settle()
}

/// Checks the page sizes, which become part of a file's name.
pub(super) fn check_hugepages(limits: &[LinuxHugepageLimit]) -> Result<()> {
    for limit in limits {
        let size = limit.page_size();
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Error::invalid(format!(
                "linux.resources.hugepageLimits: pageSize {size:?}, expected one such as \"2MB\""
            )));
        }
    }
    Ok(())
}

/// Writes the limits without the library, which lists the host's page sizes
/// again for each container and does not know reservations.
pub(super) fn hugepages(cg: &Cgroup, limits: &[LinuxHugepageLimit]) -> Result<()> {
    if limits.is_empty() {
        return Ok(());
    }
    let field = "hugepageLimits";
    let dir = dir_for(cg, "hugetlb", field)?;
    let (max, reserved) = match cg.saved.v2 {
        true => ("max", "rsvd.max"),
        false => ("limit_in_bytes", "rsvd.limit_in_bytes"),
    };
    for limit in limits {
        let size = limit.page_size();
        let value = limit.limit().to_string();
        put(&dir.join(format!("hugetlb.{size}.{max}")), &value).map_err(|e| e.of(field))?;
        // Linux 5.7 and later count reservations separately.
        let path = dir.join(format!("hugetlb.{size}.{reserved}"));
        match put(&path, &value) {
            Err(e) if e.errno == Some(rustix::io::Errno::NOENT) => {}
            result => result.map_err(|e| e.of(field))?,
        }
    }
    Ok(())
}

/// Refuses network classes and priorities on version 2, which has neither.
pub(super) fn check_network(v2: bool, network: &LinuxNetwork) -> Result<()> {
    let priorities = network.priorities().as_deref().unwrap_or_default();
    let class = network.class_id().filter(|c| *c != 0);
    if v2 && (class.is_some() || !priorities.is_empty()) {
        return Err(unsupported("network", "cgroup version 2 has neither net_cls nor net_prio"));
    }
    Ok(())
}

/// net_cls.rst, net_prio.rst
pub(super) fn network(cg: &Cgroup, network: &LinuxNetwork) -> Result<()> {
    let priorities = network.priorities().as_deref().unwrap_or_default();
    let class = network.class_id().filter(|c| *c != 0);
    if let Some(class) = class {
        let dir = dir_for(cg, "net_cls", "network.classID")?;
        let set = NetClsController::new(dir.to_owned(), PathBuf::new());
        let mut steps = Steps::default();
        steps.library("network.classID", || set.set_class(class.into()));
        steps.settle()?;
    }
    if !priorities.is_empty() {
        let dir = dir_for(cg, "net_prio", "network.priorities")?;
        let set = &NetPrioController::new(dir.to_owned(), PathBuf::new());
        let mut steps = Steps::default();
        for one in priorities {
            steps.library("network.priorities", move || {
                set.set_if_prio(one.name(), one.priority().into())
            });
        }
        steps.settle()?;
    }
    Ok(())
}

/// rdma.rst
pub(super) fn rdma(cg: &Cgroup, limits: &HashMap<String, LinuxRdma>) -> Result<()> {
    if limits.is_empty() {
        return Ok(());
    }
    let dir = dir_for(cg, "rdma", "rdma")?;
    let set = &RdmaController::new(dir.to_owned(), PathBuf::new());
    let mut steps = Steps::default();
    for (device, limit) in limits {
        let mut line = device.clone();
        if let Some(handles) = limit.hca_handles() {
            line.push_str(&format!(" hca_handle={handles}"));
        }
        if let Some(objects) = limit.hca_objects() {
            line.push_str(&format!(" hca_object={objects}"));
        }
        steps.library("rdma", move || set.set_max(&line));
    }
    steps.settle()
}

/// Limits that belong to no controller.
const LIMITS: [&str; 2] = ["cgroup.max.depth", "cgroup.max.descendants"];

/// Checks that the names are files of version 2 and limits.
pub(super) fn check_unified(v2: bool, unified: &HashMap<String, String>) -> Result<()> {
    for name in unified.keys() {
        if !v2 {
            return Err(unsupported(&format!("unified.{name}"), "this host has cgroup version 1"));
        }
        if name.contains('/') || !name.contains('.') || name.starts_with('.') {
            return Err(Error::invalid(format!(
                "linux.resources.unified: {name:?}, expected a file name such as \"memory.high\""
            )));
        }
        if name.starts_with("cgroup.") && !LIMITS.contains(&name.as_str()) {
            return Err(Error::invalid(format!(
                "linux.resources.unified: {name:?} is no limit, expected a controller's file"
            )));
        }
    }
    Ok(())
}

/// Writes the files with the content that the user gave, in the order of their
/// names: `cpu.idle` comes before the weight that only a cgroup that is not
/// idle can have.
pub(super) fn unified(cg: &Cgroup, unified: &HashMap<String, String>, idle: bool) -> Result<()> {
    let dir = &cg.saved.dirs[0].path;
    let unified: BTreeMap<&String, &String> = unified.iter().collect();
    for (name, value) in unified {
        if idle && name == "cpu.weight" {
            log::debug!(
                "linux.resources.unified.cpu.weight is ignored: an idle cgroup has no weight"
            );
            continue;
        }
        // One file may take several lines, each in a write of its own.
        for line in value.lines() {
            put(&dir.join(name), line).map_err(|e| e.of(&format!("unified.{name}")))?;
        }
    }
    Ok(())
}
