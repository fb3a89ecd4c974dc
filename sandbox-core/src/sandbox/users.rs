//! Slices of the host's user and group IDs, one for each sandbox.
//!
//! ```text
//! start                +65536        +131072       +196608
//!   │ one ID for the     │ containers  │ containers  │ …
//!   │ boot of each slice │ of slice 0  │ of slice 1  │
//! ```
//! boot has an ID that no container has, so that a container's process never has boot's
//! rights where the kernel compares IDs: setpriority(2), prlimit(2), the owners of files
//! in /proc.
//!
//! A sandbox takes a slice by making the symbolic link `ranges/<number>` to its owner.
//! This is one system call that either succeeds or finds the slice taken, so it needs no
//! lock, survives any crash, and shows the owners to an administrator.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::spec::plan::{IdMapping, Mappings};

/// Number of IDs of a sandbox's containers: all 16-bit IDs, as subuid(5) tools assign. The
/// same number, at the start of the node's range, is reserved for boots.
pub const IDS_PER_SANDBOX: u32 = 65536;

/// One allocated slice. It is not given back on drop: it belongs to the sandbox's state on
/// disk, which may outlive this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First host ID of the containers.
    pub start: u32,
    /// Host ID of boot.
    boot: u32,
    link: PathBuf,
}

impl IdRange {
    /// Takes a free slice of the `size` IDs from `start` on for `owner`
    /// (`<namespace>/<sandbox>`, whose state directory exists already).
    ///
    /// # Errors
    /// Fails with a sentence if every slice is taken.
    pub fn allocate(state_root: &Path, start: u32, size: u32, owner: &str) -> Result<Self> {
        let slices = (size / IDS_PER_SANDBOX).saturating_sub(1).min(IDS_PER_SANDBOX);
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

    /// Tries the slices in turn, starting with one that the owner's name selects, so that
    /// sandboxes that start at once seldom try the same.
    fn probe(directory: &Path, start: u32, slices: u32, owner: &str) -> Result<Option<Self>> {
        let mut hasher = DefaultHasher::new();
        owner.hash(&mut hasher);
        let first = (hasher.finish() % u64::from(slices.max(1))) as u32;
        for slice in (first..slices).chain(0..first) {
            let range = Self {
                start: start + (slice + 1) * IDS_PER_SANDBOX,
                boot: start + slice,
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

    /// Returns the slice as a user namespace's mappings: 0 to 65535 inside.
    pub fn mappings(&self) -> Mappings {
        let line = IdMapping { inside: 0, outside: self.start, size: IDS_PER_SANDBOX };
        Mappings { uids: vec![line], gids: vec![line] }
    }

    /// Returns boot's own ID, unless it is a container's by these mappings. boot then has
    /// the ID of the containers' root.
    pub fn boot_id(&self, mappings: &Mappings) -> Option<u32> {
        let mut lines = mappings.uids.iter().chain(&mappings.gids);
        (!lines.any(|line| line.holds_outside(self.boot))).then_some(self.boot)
    }

    /// Returns the link that marks it as taken.
    pub fn link(&self) -> &Path {
        &self.link
    }
}

/// Gives a slice back. Idempotent: a link that is gone, or of another owner, is left alone.
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

/// Gives back the slices whose owner has no state on disk any more. Returns their number.
/// Only called when all are taken.
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

#[cfg(test)]
mod tests {
    use super::*;

    const START: u32 = 1 << 20;

    fn allocate(root: &Path, slices: u32, owner: &str) -> Result<IdRange> {
        fs::create_dir_all(root.join(owner)).unwrap();
        IdRange::allocate(root, START, (slices + 1) * IDS_PER_SANDBOX, owner)
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
        assert!(starts.iter().all(|s| s - START >= IDS_PER_SANDBOX), "boots have those IDs");
    }

    fn line(inside: u32, outside: u32, size: u32) -> Mappings {
        let line = IdMapping { inside, outside, size };
        Mappings { uids: vec![line], gids: vec![line] }
    }

    #[test]
    fn boot_has_an_id_that_no_container_has() {
        let root = tempfile::tempdir().unwrap();
        let range = allocate(root.path(), 2, "ns/a").unwrap();
        let own = range.boot_id(&range.mappings()).unwrap();
        assert!((START..START + IDS_PER_SANDBOX).contains(&own));
        // Also with the mappings of a spec, unless these take it.
        assert_eq!(range.boot_id(&line(0, 5, 100_000)), Some(own));
        assert_eq!(range.boot_id(&line(0, 0, u32::MAX)), None);
        assert_eq!(range.boot_id(&line(0, START, IDS_PER_SANDBOX)), None);
    }

    #[test]
    fn exhaustion_is_reported_in_a_sentence_and_ends_when_a_range_is_given_back() {
        let root = tempfile::tempdir().unwrap();
        let first = allocate(root.path(), 1, "ns/a").unwrap();
        let error = allocate(root.path(), 1, "ns/b").unwrap_err().to_string();
        assert!(error.contains("all 1 user ID ranges"), "{error}");
        release(first.link(), "ns/a").unwrap();
        assert_eq!(allocate(root.path(), 1, "ns/b").unwrap().start, first.start);
    }

    #[test]
    fn the_range_of_a_vanished_sandbox_is_reused() {
        let root = tempfile::tempdir().unwrap();
        allocate(root.path(), 1, "ns/a").unwrap();
        fs::remove_dir_all(root.path().join("ns/a")).unwrap();
        allocate(root.path(), 1, "ns/b").unwrap();
    }

    #[test]
    fn a_sandbox_gives_back_only_its_own_range() {
        let root = tempfile::tempdir().unwrap();
        let range = allocate(root.path(), 1, "ns/a").unwrap();
        release(range.link(), "ns/b").unwrap();
        assert!(range.link().is_symlink());
    }
}
