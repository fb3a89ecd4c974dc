//! Host name, domain name and sysctls.

use std::fs;
use std::path::Path;

use nix::unistd::{seteuid, sethostname};
use rustix::system::setdomainname;

use crate::boot::{OwnId, restore_own_id};
use crate::error::{Context, Result};
use crate::spec::plan::ContainerPlan;
use crate::spec::sysctl_file;

/// boot: what a container sets in namespaces that it shares with the sandbox,
/// where its own root has no say.
pub(crate) fn set_shared(plan: &ContainerPlan, own_id: OwnId) -> Result<()> {
    if !plan.namespaces.uts {
        set_names(plan)?;
    }
    if plan.namespaces.ipc || plan.sysctls.is_empty() {
        return Ok(());
    }
    if !plan.user_namespace {
        return set_sysctls(plan);
    }
    // The kernel looks at who is root here, not at capabilities.
    seteuid(0.into()).context(|| "seteuid 0")?;
    let set = set_sysctls(plan);
    restore_own_id(own_id)?;
    set
}

/// Container: what it sets in namespaces of its own.
pub(super) fn set_own(plan: &ContainerPlan) -> Result<()> {
    if plan.namespaces.uts {
        set_names(plan)?;
    }
    if plan.namespaces.ipc {
        set_sysctls(plan)?;
    }
    Ok(())
}

fn set_names(plan: &ContainerPlan) -> Result<()> {
    if let Some(name) = &plan.hostname {
        sethostname(name).context(|| format!("hostname: set {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        setdomainname(name.as_bytes()).context(|| format!("domainname: set {name:?}"))?;
    }
    Ok(())
}

fn set_sysctls(plan: &ContainerPlan) -> Result<()> {
    for (name, value) in &plan.sysctls {
        let path = Path::new("/proc/sys").join(sysctl_file(name));
        fs::write(&path, value).context(|| format!("linux.sysctl: set {name} to {value:?}"))?;
    }
    Ok(())
}
