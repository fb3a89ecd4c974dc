//! Writing the ID maps of a user namespace from outside.

use std::fs;

use super::users::map_text;
use crate::error::{Context, Result};
use crate::spec::plan::{IdMapping, Mappings};
use crate::types::HostPid;

/// Gives the user namespace of a process that waits for it its IDs. Safe to do
/// as root: the IDs are ones that the range or the spec grants, and the process
/// has run nothing but our own code.
///
/// `own` is boot's line beside those of the containers.
pub(super) fn write(pid: HostPid, mappings: &Mappings, own: Option<IdMapping>) -> Result<()> {
    for (file, map) in [("uid_map", &mappings.uids), ("gid_map", &mappings.gids)] {
        let path = format!("/proc/{}/{file}", pid.0);
        let text = map_text(map.iter().chain(&own));
        fs::write(&path, &text).context(|| format!("write {text:?} to {path}"))?;
    }
    Ok(())
}
