//! Slices of the host's user and group IDs, one a sandbox.
//!
//! A slice is taken by making the symbolic link `ranges/<number>` that points
//! to its owner: one system call that either succeeds or finds it taken, so it
//! needs no lock, survives any crash, and shows an administrator who has what.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::spec::plan::{IdMapping, Mappings};

/// IDs a sandbox gets: what a 16-bit ID can name, as subuid(5) tools give.
pub const IDS_PER_SANDBOX: u32 = 65536;

/// One allocated slice. Not given back on drop: it belongs to the sandbox on
/// disk, which may outlive this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First host ID.
    pub start: u32,
    link: PathBuf,
}

impl IdRange {
    /// Takes a free slice of `size` IDs from `start` for `owner`
    /// (`<namespace>/<sandbox>`, whose state directory exists already).
    ///
    /// # Errors
    /// A sentence when every slice is taken.
    pub fn allocate(state_root: &Path, start: u32, size: u32, owner: &str) -> Result<Self> {
        let slices = size / IDS_PER_SANDBOX;
        let directory = state_root.join("ranges");
        for attempt in [Attempt::First, Attempt::AfterReclaim] {
            if let Some(range) = Self::probe(&directory, start, slices, owner)? {
                return Ok(range);
            }
            if matches!(attempt, Attempt::First) && reclaim(state_root, &directory)? == 0 {
                break;
            }
        }
        Err(Error::internal(format!(
            "all {slices} user ID ranges of this node ({start} to {}) are taken by running sandboxes; \
             enlarge id_range_size in Palisade's options or stop some pods",
            start.saturating_add(size)
        )))
    }

    /// Tries the slices in turn, from one that the owner's name picks, so that
    /// sandboxes starting at once seldom meet.
    fn probe(directory: &Path, start: u32, slices: u32, owner: &str) -> Result<Option<Self>> {
        let mut hasher = DefaultHasher::new();
        owner.hash(&mut hasher);
        let first = (hasher.finish() % u64::from(slices.max(1))) as u32;
        for slice in (first..slices).chain(0..first) {
            let range = Self {
                start: start + slice * IDS_PER_SANDBOX,
                link: directory.join(slice.to_string()),
            };
            match symlink(owner, &range.link) {
                Ok(()) => return Ok(Some(range)),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    super::state::make_private_directory(directory)?;
                    symlink(owner, &range.link)
                        .context(|| format!("take ID range {}", range.link.display()))?;
                    return Ok(Some(range));
                }
                Err(e) => {
                    return Err(e).context(|| format!("take ID range {}", range.link.display()));
                }
            }
        }
        Ok(None)
    }

    /// The slice as a user namespace's mappings: 0 to 65535 inside.
    pub fn mappings(&self) -> Mappings {
        let line = IdMapping { inside: 0, outside: self.start, size: IDS_PER_SANDBOX };
        Mappings { uids: vec![line], gids: vec![line] }
    }

    /// The link that marks it taken.
    pub fn link(&self) -> &Path {
        &self.link
    }
}

/// Gives a slice back. Idempotent: a link that is gone or someone else's is
/// left alone.
pub fn release(link: &Path, owner: &str) -> Result<()> {
    match fs::read_link(link) {
        Ok(target) if target == Path::new(owner) => {
            fs::remove_file(link).context(|| format!("give back ID range {}", link.display()))
        }
        _ => Ok(()),
    }
}

enum Attempt {
    First,
    AfterReclaim,
}

/// Gives back the slices whose owner has no state on disk any more; tells how
/// many. Only walked when all are taken.
fn reclaim(state_root: &Path, directory: &Path) -> Result<usize> {
    let mut freed = 0;
    for entry in
        fs::read_dir(directory).context(|| format!("read {}", directory.display()))?.flatten()
    {
        let Ok(owner) = fs::read_link(entry.path()) else {
            continue;
        };
        if !state_root.join(&owner).exists() && fs::remove_file(entry.path()).is_ok() {
            freed += 1;
        }
    }
    Ok(freed)
}

/// Looks an ID up in a map: where `inside` is outside.
pub fn map_out(map: &[IdMapping], inside: u32) -> Option<u32> {
    map.iter()
        .find(|m| inside >= m.inside && inside - m.inside < m.size)
        .map(|m| m.outside + (inside - m.inside))
}

/// The text of a uid_map or gid_map file, user_namespaces(7).
pub fn map_text(map: &[IdMapping]) -> String {
    map.iter().map(|m| format!("{} {} {}\n", m.inside, m.outside, m.size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u32 = 1 << 20;

    fn allocate(root: &Path, slices: u32, owner: &str) -> Result<IdRange> {
        fs::create_dir_all(root.join(owner)).unwrap();
        IdRange::allocate(root, START, slices * IDS_PER_SANDBOX, owner)
    }

    #[test]
    fn two_sandboxes_never_share_an_id() {
        let root = tempfile::tempdir().unwrap();
        let mut starts: Vec<u32> =
            (0..64).map(|n| allocate(root.path(), 64, &format!("ns/{n}")).unwrap().start).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), 64);
        assert!(starts.iter().all(|s| (s - START).is_multiple_of(IDS_PER_SANDBOX)));
    }

    #[test]
    fn exhaustion_is_told_in_a_sentence_and_ends_when_one_is_given_back() {
        let root = tempfile::tempdir().unwrap();
        let first = allocate(root.path(), 1, "ns/a").unwrap();
        let error = allocate(root.path(), 1, "ns/b").unwrap_err().to_string();
        assert!(error.contains("all 1 user ID ranges"), "{error}");
        release(first.link(), "ns/a").unwrap();
        assert_eq!(allocate(root.path(), 1, "ns/b").unwrap().start, first.start);
    }

    #[test]
    fn what_a_vanished_sandbox_held_is_taken_over() {
        let root = tempfile::tempdir().unwrap();
        allocate(root.path(), 1, "ns/a").unwrap();
        fs::remove_dir_all(root.path().join("ns/a")).unwrap();
        allocate(root.path(), 1, "ns/b").unwrap();
    }

    #[test]
    fn nobody_gives_back_what_belongs_to_another() {
        let root = tempfile::tempdir().unwrap();
        let range = allocate(root.path(), 1, "ns/a").unwrap();
        release(range.link(), "ns/b").unwrap();
        assert!(range.link().is_symlink());
    }
}
