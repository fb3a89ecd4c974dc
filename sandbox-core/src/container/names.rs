//! Host name, domain name and sysctls.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::sethostname;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::system::setdomainname;

use super::own_id::OwnId;
use super::paths::PROC;
use crate::error::{Context, Result};
use crate::spec::plan::{ContainerPlan, sysctl_file};

/// boot: what a container sets in namespaces that it shares with the sandbox,
/// where its own root has no say.
pub(crate) fn set_shared(plan: &ContainerPlan, own_id: OwnId) -> Result<()> {
    if !plan.namespaces.uts {
        set_names(plan)?;
    }
    if plan.namespaces.ipc || plan.sysctls.is_empty() {
        return Ok(());
    }
    let directory = open_sysctls()?;
    if !plan.user_namespace {
        return set_sysctls(plan, directory.as_fd());
    }
    // The kernel looks at who is root here, not at capabilities.
    own_id.leave()?;
    let set = set_sysctls(plan, directory.as_fd());
    own_id.restore()?;
    set
}

/// Container, still in the sandbox's root: where it will find the sysctls of an
/// IPC namespace of its own. Its own `/proc/sys` is read-only by then, if there
/// is one at all.
pub(super) fn own_sysctls(plan: &ContainerPlan) -> Result<Option<OwnedFd>> {
    let wanted = plan.namespaces.ipc && !plan.sysctls.is_empty();
    wanted.then(open_sysctls).transpose()
}

/// Container: what it sets in namespaces of its own.
pub(super) fn set_own(plan: &ContainerPlan, sysctls: Option<OwnedFd>) -> Result<()> {
    if plan.namespaces.uts {
        set_names(plan)?;
    }
    sysctls.map_or(Ok(()), |directory| set_sysctls(plan, directory.as_fd()))
}

/// The directory of the sysctls. What is in it is that of the namespaces that
/// one is in when one opens it.
fn open_sysctls() -> Result<OwnedFd> {
    let path = format!("{PROC}/sys");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, &path, flags, Mode::empty()).context(|| format!("open {path}"))
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

fn set_sysctls(plan: &ContainerPlan, directory: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    for (name, value) in &plan.sysctls {
        let what = || format!("linux.sysctl: set {name} to {value:?}");
        let file = openat(directory, sysctl_file(name), flags, Mode::empty()).context(what)?;
        File::from(file).write_all(value.as_bytes()).context(what)?;
    }
    Ok(())
}
