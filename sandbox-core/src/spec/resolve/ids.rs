//! ID mappings, and the IDs that exist in a container.

use oci_spec::runtime::LinuxIdMapping;

use super::check::refuse;
use crate::error::Result;
use crate::spec::plan::{IdMapping, Mappings};

/// The most lines of a mapping (`UID_GID_MAP_MAX_EXTENTS` of the kernel).
const MAX_LINES: usize = 340;

/// The user and group IDs that exist in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    /// All of the host's, since there is no user namespace.
    Host,
    /// Those of an allocated range.
    Range(Range),
    /// The IDs of these mappings.
    Mapped(Mappings),
}

/// The IDs of a sandbox with an allocated range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The number of IDs from 0 on.
    pub size: u32,
    /// The IDs beyond those that the container has as well. `None` if any that is named
    /// will exist.
    pub foreign: Option<Vec<u32>>,
}

impl Ids {
    /// Returns the IDs of a container, from two fields of its plan.
    pub fn of(user_namespace: bool, mappings: Option<&Mappings>, range: Range) -> Self {
        match mappings {
            Some(mappings) if user_namespace => Self::Mapped(mappings.clone()),
            _ if user_namespace => Self::Range(range),
            _ => Self::Host,
        }
    }

    pub(super) fn check_uid(&self, field: &str, uid: u32) -> Result<()> {
        self.check(field, uid, |mappings| &mappings.uids)
    }

    pub(super) fn check_gid(&self, field: &str, gid: u32) -> Result<()> {
        self.check(field, gid, |mappings| &mappings.gids)
    }

    fn check(
        &self,
        field: &str,
        id: u32,
        lines: impl Fn(&Mappings) -> &Vec<IdMapping>,
    ) -> Result<()> {
        match self {
            // u32::MAX means "no change" to the kernel.
            _ if id == u32::MAX => refuse(field, format!("{id} is not a valid ID")),
            Self::Range(range) if !range.has(id) => refuse(
                field,
                format!(
                    "{id} does not exist in the container, which has the IDs 0 to {} and those that \
                     its own spec names; name it there, or set the option ids_per_sandbox",
                    range.size - 1
                ),
            ),
            Self::Mapped(mappings) if !covered(lines(mappings), id) => refuse(
                field,
                format!(
                    "{id} is not mapped by the container's user namespace, {}; expected an ID of the spec's linux.uidMappings and gidMappings, or of the user namespace that containerd runs in",
                    described(lines(mappings))
                ),
            ),
            _ => Ok(()),
        }
    }
}

/// Describes the IDs of a map: a part of a sentence.
fn described(lines: &[IdMapping]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for line in lines {
        let last = line.inside + (line.size - 1);
        match ranges.last_mut() {
            Some(range) if range.1.checked_add(1) == Some(line.inside) => range.1 = last,
            _ => ranges.push((line.inside, last)),
        }
    }
    let ranges: Vec<_> = ranges.iter().map(|(first, last)| format!("{first} to {last}")).collect();
    format!("which has the IDs {}", ranges.join(", "))
}

impl Range {
    fn has(&self, id: u32) -> bool {
        let named = |foreign: &Vec<u32>| foreign.contains(&id);
        id < self.size || self.foreign.as_ref().is_none_or(named)
    }
}

pub(super) fn covered(lines: &[IdMapping], id: u32) -> bool {
    lines.iter().any(|line| id.checked_sub(line.inside).is_some_and(|offset| offset < line.size))
}

/// Returns the `uidMappings` and `gidMappings` of `field`, or `None` if neither
/// is given.
pub(super) fn mappings(
    field: &str,
    uids: Option<&[LinuxIdMapping]>,
    gids: Option<&[LinuxIdMapping]>,
) -> Result<Option<Mappings>> {
    let (uids, gids) = (uids.unwrap_or_default(), gids.unwrap_or_default());
    match (uids.is_empty(), gids.is_empty()) {
        (true, true) => Ok(None),
        (true, false) => refuse(format!("{field}.uidMappings"), "expected beside gidMappings"),
        (false, true) => refuse(format!("{field}.gidMappings"), "expected beside uidMappings"),
        (false, false) => Ok(Some(Mappings {
            uids: lines(&format!("{field}.uidMappings"), uids)?,
            gids: lines(&format!("{field}.gidMappings"), gids)?,
        })),
    }
}

/// Refuses lines that the kernel would refuse with EINVAL when they are written
/// to uid_map.
fn lines(field: &str, given: &[LinuxIdMapping]) -> Result<Vec<IdMapping>> {
    if given.len() > MAX_LINES {
        return refuse(field, format!("has {} lines; expected at most {MAX_LINES}", given.len()));
    }
    let mut lines: Vec<IdMapping> = Vec::with_capacity(given.len());
    for (i, line) in given.iter().enumerate() {
        let (inside, outside, size) = (line.container_id(), line.host_id(), line.size());
        let fits = |start: u32| start.checked_add(size).is_some();
        if size == 0 || !fits(inside) || !fits(outside) {
            return refuse(
                format!("{field}[{i}]"),
                format!("{size} IDs from {inside} inside and {outside} outside are no valid range"),
            );
        }
        let new = IdMapping { inside, outside, size };
        if lines.iter().any(|old| overlaps(*old, new)) {
            return refuse(format!("{field}[{i}]"), "overlaps another line");
        }
        lines.push(new);
    }
    Ok(lines)
}

fn overlaps(a: IdMapping, b: IdMapping) -> bool {
    let cross =
        |a_start: u32, b_start: u32| a_start < b_start + b.size && b_start < a_start + a.size;
    cross(a.inside, b.inside) || cross(a.outside, b.outside)
}
