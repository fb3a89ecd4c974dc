//! AppArmor profiles and SELinux labels. They are applied if the kernel has the
//! module and refused if it has not: if a label were silently dropped, the
//! administrator would rely on protection that is not there.

use std::path::Path;

use super::check::{refuse, without_nul};
use crate::error::Result;

/// Returns the AppArmor profile. `None` if it is empty or `unconfined`.
pub(super) fn apparmor(profile: Option<&str>) -> Result<Option<String>> {
    let Some(profile) = profile.filter(|&name| !name.is_empty() && name != "unconfined") else {
        return Ok(None);
    };
    let field = "process.apparmorProfile";
    without_nul(|| field.into(), profile)?;
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|answer| answer.starts_with(b"Y")) {
        return refuse(
            field,
            format!("{profile:?} cannot be applied: AppArmor is not enabled in this kernel"),
        );
    }
    // The list holds no namespaces of policies and no stacks of profiles.
    let loaded = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles");
    let listed = |all: &str| {
        all.lines().any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile))
    };
    if !profile.starts_with(':')
        && !profile.contains("//&")
        && loaded.is_ok_and(|all| !listed(&all))
    {
        return refuse(field, format!("{profile:?} is not loaded; load it with apparmor_parser"));
    }
    Ok(Some(profile.into()))
}

/// Returns the SELinux label of a process or of mounts. `None` if it is empty.
pub(super) fn selinux(field: &str, label: Option<&str>) -> Result<Option<String>> {
    let Some(label) = label.filter(|label| !label.is_empty()) else {
        return Ok(None);
    };
    without_nul(|| field.into(), label)?;
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        return refuse(
            field,
            format!("{label:?} cannot be applied: SELinux is not enabled in this kernel"),
        );
    }
    Ok(Some(label.into()))
}
