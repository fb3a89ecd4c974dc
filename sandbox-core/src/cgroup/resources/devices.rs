//! `linux.resources.devices`: the devices that a container may open or make.
//! Version 1 takes the policy's list of exceptions, version 2 a program made of it.

use oci_spec::runtime::LinuxDeviceCgroup;
use rustix::fs::OFlags;

use super::device_policy::Policy;
use super::{bpf, dir_for};
use crate::cgroup::{Cgroup, file};
use crate::error::{Context, Error, Result};

/// Refuses rules that no cgroup can express.
pub(super) fn check(rules: &[LinuxDeviceCgroup]) -> Result<()> {
    Policy::from_spec(rules).map(drop)
}

pub(super) fn apply(cg: &Cgroup, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    let policy = Policy::from_spec(rules)?;
    if cg.saved.v2 {
        return bpf::attach(&cg.saved.dirs[0].path, &policy);
    }
    version_1(cg, &policy)
}

/// devices.rst. One open file serves all lines of a kind, since they are most
/// of what is written for a container.
fn version_1(cg: &Cgroup, policy: &Policy) -> Result<()> {
    let dir = dir_for(cg, "devices", "devices")?;
    let (open, shut) = (dir.join("devices.allow"), dir.join("devices.deny"));
    let (base, exceptions) = if policy.allow { (open, shut) } else { (shut, open) };
    let all = file::read(&dir.join("devices.list"))?.trim() == "a *:* rwm";
    if !policy.allow || !all {
        file::write(&base, "a").context_field()?;
    }
    if policy.exceptions.is_empty() {
        return Ok(());
    }
    let fd = file::open(&exceptions, OFlags::WRONLY)
        .context(|| format!("linux.resources.devices: open {}", exceptions.display()))?;
    for exception in &policy.exceptions {
        let line = exception.line();
        rustix::io::retry_on_intr(|| rustix::io::write(&fd, line.as_bytes())).context(|| {
            format!("linux.resources.devices: write {line:?} to {}", exceptions.display())
        })?;
    }
    Ok(())
}

trait ContextField {
    fn context_field(self) -> Result<()>;
}

impl ContextField for Result<()> {
    fn context_field(self) -> Result<()> {
        self.map_err(|e| Error::new(e.kind, format!("linux.resources.devices: {e}")))
    }
}
