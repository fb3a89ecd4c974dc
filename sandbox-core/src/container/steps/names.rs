//! Sets host name, domain name and sysctls of the namespaces that this process is in.

use std::fs::File;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::unistd::sethostname;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::system::setdomainname;

use crate::container::paths::PROC;
use crate::error::{Context, Result};
use crate::spec::plan::{ContainerPlan, sysctl_file};

/// Opens the directory of the sysctls. It shows those of the namespaces that this process is
/// in now.
pub(crate) fn open_sysctls() -> Result<OwnedFd> {
    let path = format!("{PROC}/sys");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, &path, flags, Mode::empty()).context(|| format!("open {path}"))
}

pub(crate) fn set_names(plan: &ContainerPlan) -> Result<()> {
    if let Some(name) = &plan.hostname {
        sethostname(name).context(|| format!("hostname: set {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        setdomainname(name.as_bytes()).context(|| format!("domainname: set {name:?}"))?;
    }
    Ok(())
}

/// Sets sysctls of the namespaces that this process is in.
pub(crate) fn set_sysctls(sysctls: &[(String, String)], directory: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    for (name, value) in sysctls {
        let what = || format!("linux.sysctl: set {name} to {value:?}");
        let file = openat(directory, sysctl_file(name), flags, Mode::empty()).context(what)?;
        File::from(file).write_all(value.as_bytes()).context(what)?;
    }
    Ok(())
}
