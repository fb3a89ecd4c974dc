//! Slices of the host's user and group IDs, one for each sandbox.
//!
//! ```text
//! start                +65536        +131072       +196608
//!   │ one ID for the     │ containers  │ spare IDs   │ …
//!   │ boot of each slice │ in slice 0  │ in slice 1  │
//! ```
//! A sandbox takes as many slices as its containers have IDs, and one with spare IDs, which
//! stand for those that a spec names beyond.
//!
//! boot has an ID that no container has, so that a container's process never has boot's
//! rights where the kernel compares IDs: setpriority(2), prlimit(2), the owners of files
//! in /proc.
//!
//! A slice is taken by making the symbolic link `ranges/<number>` to its owner.
//! This is one system call that either succeeds or finds the slice taken, so it needs no
//! lock, survives any crash, and shows the owners to an administrator.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::state::PRIVATE;
use crate::directories::make_below;
use crate::error::{Context, Error, Result};
use crate::spec::plan::{IdMapping, Mappings};
use crate::types::{IdPool, Rootless};

/// The IDs of one sandbox. They are not given back on drop: they belong to the sandbox's
/// state on disk, which may outlive this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First host ID of the containers.
    pub start: u32,
    /// The number of IDs of the containers.
    size: u32,
    /// Host ID of boot.
    boot: u32,
    /// The link of the first slice.
    link: PathBuf,
}

impl IdRange {
    /// Takes free slices of the pool for `owner` (`<namespace>/<sandbox>`, whose state
    /// directory exists already): those of the containers, and one with spare IDs.
    ///
    /// # Errors
    /// Fails with a sentence if every slice is taken.
    pub fn allocate(state_root: &Path, pool: IdPool, owner: &str) -> Result<Self> {
        let directory = state_root.join("ranges");
        for attempt in [Attempt::First, Attempt::AfterReclaim] {
            if let Some(range) = Self::probe(&directory, pool, owner)? {
                return Ok(range);
            }
            if matches!(attempt, Attempt::First) && reclaim(state_root, &directory)? == 0 {
                break;
            }
        }
        let (sandboxes, end) = (sandboxes(pool), pool.start.saturating_add(pool.size));
        Err(Error::internal(format!(
            "all {sandboxes} user ID ranges of this node ({} to {end}) are taken by running \
             sandboxes; enlarge id_range_size in Palisade's options or stop some pods",
            pool.start
        )))
    }

    /// Tries the slices in turn, starting with one that the owner's name selects, so that
    /// sandboxes that start at once seldom try the same.
    fn probe(directory: &Path, pool: IdPool, owner: &str) -> Result<Option<Self>> {
        let mut hasher = DefaultHasher::new();
        owner.hash(&mut hasher);
        let (sandboxes, slices) = (sandboxes(pool), slices(pool));
        let first = (hasher.finish() % u64::from(sandboxes.max(1))) as u32;
        for number in (first..sandboxes).chain(0..first) {
            let slice = number * slices;
            if take(directory, slice..slice + slices, owner)? {
                return Ok(Some(Self {
                    start: pool.start + (slice + 1) * IdPool::SLICE,
                    size: pool.per_sandbox,
                    boot: pool.start + slice,
                    link: directory.join(slice.to_string()),
                }));
            }
        }
        Ok(None)
    }

    /// Returns the mappings of the IDs from 0 on.
    pub fn mappings(&self) -> Mappings {
        let line = IdMapping { inside: 0, outside: self.start, size: self.size };
        Mappings { uids: vec![line], gids: vec![line] }
    }

    /// Returns the spare IDs, none of which is used.
    pub fn spares(&self) -> Spares {
        Spares { first: self.start + self.size, used: Vec::new() }
    }

    /// Returns all IDs of the sandbox but boot's, as mappings.
    pub fn all(&self) -> Mappings {
        let line = IdMapping { inside: 0, outside: self.start, size: self.size + IdPool::SLICE };
        Mappings { uids: vec![line], gids: vec![line] }
    }

    /// Returns boot's own ID, unless it is a container's by these mappings. boot then has
    /// the ID of the containers' root.
    pub fn boot_id(&self, mappings: &Mappings) -> Option<u32> {
        let mut lines = mappings.uids.iter().chain(&mappings.gids);
        (!lines.any(|line| line.holds_outside(self.boot))).then_some(self.boot)
    }

    /// Returns the ID that makes the sandbox's user namespaces: boot's own, even if a container
    /// has it too.
    pub fn maker(&self) -> u32 {
        self.boot
    }

    /// Returns the link that marks it as taken.
    pub fn link(&self) -> &Path {
        &self.link
    }
}

/// Returns boot's own ID in a sandbox whose shim is rootless: one that no container has, if
/// there is any. With few IDs beyond the containers', the boots of several sandboxes may have
/// the same.
pub fn rootless_boot_id(rootless: Rootless, mappings: &Mappings, owner: &str) -> Option<u32> {
    let ends = mappings.uids.iter().chain(&mappings.gids);
    let first = ends.map(|line| line.outside.saturating_add(line.size)).max().unwrap_or(0);
    let beyond = rootless.ids.checked_sub(first).filter(|count| *count > 0)?;
    let mut hasher = DefaultHasher::new();
    owner.hash(&mut hasher);
    Some(first + (hasher.finish() % u64::from(beyond)) as u32)
}

/// The most IDs beyond a sandbox's range that its containers may have. A map has 340 lines
/// (user_namespaces(7)).
const MAX_FOREIGN: usize = 339;

/// The spare IDs of a sandbox, and what they stand for: the same in all its containers.
#[derive(Clone, Debug)]
pub struct Spares {
    first: u32,
    used: Vec<u32>,
}

impl Spares {
    /// Returns mappings with a spare ID for each foreign one, as user and as group.
    pub fn add(&mut self, mappings: &Mappings, foreign: &[u32]) -> Result<Mappings> {
        let mut with = mappings.clone();
        for &inside in foreign {
            let index = self.used.iter().position(|id| *id == inside).unwrap_or_else(|| {
                self.used.push(inside);
                self.used.len() - 1
            });
            if index >= MAX_FOREIGN {
                return Err(Error::invalid(format!(
                    "process.user: {inside}: the sandbox has {MAX_FOREIGN} other IDs beyond its range \
                     already, and no more; set the option ids_per_sandbox"
                )));
            }
            let line = IdMapping { inside, outside: self.first + index as u32, size: 1 };
            with.uids.push(line);
            with.gids.push(line);
        }
        Ok(with)
    }
}

/// Returns the number of slices that a sandbox takes.
fn slices(pool: IdPool) -> u32 {
    pool.per_sandbox / IdPool::SLICE + 1
}

/// Returns how many sandboxes the pool is enough for. The first slice belongs to boots.
fn sandboxes(pool: IdPool) -> u32 {
    (pool.size / IdPool::SLICE).saturating_sub(1).min(IdPool::SLICE) / slices(pool)
}

/// Takes all of these slices or none.
fn take(directory: &Path, slices: Range<u32>, owner: &str) -> Result<bool> {
    let link = |slice: u32| directory.join(slice.to_string());
    for slice in slices.clone() {
        let taken = make_below(directory, PRIVATE, || symlink(owner, link(slice)));
        if let Err(error) = taken {
            (slices.start..slice).for_each(|taken| drop(fs::remove_file(link(taken))));
            return match error.kind() {
                ErrorKind::AlreadyExists => Ok(false),
                _ => Err(error).context(|| format!("take ID range {}", link(slice).display())),
            };
        }
    }
    Ok(true)
}

/// Gives slices back: that of this link, and the ones after it that have the same owner.
/// Idempotent: a link that is gone, or of another owner, is left alone.
pub fn release(link: &Path, owner: &str) -> Result<()> {
    let number = link.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let rest = number
        .into_iter()
        .flat_map(|first| first + 1..)
        .map(|n| link.with_file_name(n.to_string()));
    // The last one first, so that a repetition finds the first.
    let owned = |link: &PathBuf| fs::read_link(link).is_ok_and(|to| to == Path::new(owner));
    let all: Vec<_> = [link.to_owned()].into_iter().chain(rest).take_while(owned).collect();
    for link in all.iter().rev() {
        fs::remove_file(link).context(|| format!("give back ID range {}", link.display()))?;
    }
    Ok(())
}

/// Gives back all slices of an owner of whom nothing else is known, since its shim ended before
/// it had recorded them. Goes through the links of all sandboxes.
pub(super) fn release_all(state_root: &Path, owner: &str) -> Result<()> {
    let directory = state_root.join("ranges");
    let entries = match fs::read_dir(&directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.context(|| format!("read {}", directory.display()))?,
    };
    for link in entries.flatten().map(|entry| entry.path()) {
        if fs::read_link(&link).is_ok_and(|to| to == Path::new(owner)) {
            fs::remove_file(&link).context(|| format!("give back ID range {}", link.display()))?;
        }
    }
    Ok(())
}

enum Attempt {
    First,
    AfterReclaim,
}

/// Gives back the slices whose owner has no state on disk any more. Returns their number.
/// Only called when all are taken.
fn reclaim(state_root: &Path, directory: &Path) -> Result<usize> {
    let _alone = lock(directory)?;
    let entries = fs::read_dir(directory).context(|| format!("read {}", directory.display()))?;
    let given_back = entries.flatten().filter(|entry| {
        let owner = fs::read_link(entry.path());
        owner.is_ok_and(|owner| give_back(state_root, &entry.path(), &owner).unwrap_or(false))
    });
    Ok(given_back.count())
}

/// Gives a slice back, if it still belongs to an owner that has no state on disk. The caller holds
/// the lock of the ranges. Returns whether it is given back.
fn give_back(state_root: &Path, link: &Path, owner: &Path) -> io::Result<bool> {
    // Looked at again after the state: an owner that lives gives its slice back before its state
    // goes, and then another may take it. What has no owner is given back under the lock only.
    let is_ownerless =
        !state_root.join(owner).exists() && fs::read_link(link).is_ok_and(|still| still == owner);
    if is_ownerless {
        fs::remove_file(link)?;
    }
    Ok(is_ownerless)
}

/// Takes the lock of those who give back what has no owner. Waits two seconds at most.
fn lock(directory: &Path) -> Result<fs::File> {
    let what = || format!("lock {}", directory.display());
    let lock = fs::File::open(directory).context(what)?;
    for _ in 0..100 {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(20)),
            other => return other.map(|()| lock).context(what),
        }
    }
    Err(Error::internal(format!("{}: another process gives ranges back there", what())))
}

/// What is taken of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// The number of sandboxes that the pool is enough for.
    pub sandboxes: u32,
    /// The number of sandboxes that still get a range.
    pub free: u32,
    /// The slices that are taken, in their order.
    pub taken: Vec<u32>,
    /// The links whose owner has no state on disk, with those owners.
    pub ownerless: Vec<(PathBuf, String)>,
}

impl Ranges {
    /// Reads the links below a state root.
    pub fn read(state_root: &Path, pool: IdPool) -> Result<Self> {
        let directory = state_root.join("ranges");
        let mut found = Self { sandboxes: sandboxes(pool), ..Self::default() };
        let entries = match fs::read_dir(&directory) {
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            other => Some(other.context(|| format!("read {}", directory.display()))?),
        };
        for entry in entries.into_iter().flatten().flatten() {
            let Ok(owner) = fs::read_link(entry.path()) else { continue };
            found.taken.extend(entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()));
            if !state_root.join(&owner).exists() {
                found.ownerless.push((entry.path(), owner.display().to_string()));
            }
        }
        found.taken.sort_unstable();
        let slices = slices(pool);
        let used: HashSet<u32> = found.taken.iter().map(|slice| slice / slices).collect();
        found.free = (0..found.sandboxes).filter(|number| !used.contains(number)).count() as u32;
        Ok(found)
    }
}

/// Gives back the slices whose owner has no state on disk. Returns their links.
///
/// If all slices are taken, nothing is done: a shim that needs one then does this by itself, and
/// so may one of a version before, which takes no lock.
pub fn give_back_ownerless(state_root: &Path, pool: IdPool) -> Result<Vec<PathBuf>> {
    let directory = state_root.join("ranges");
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let _alone = lock(&directory)?;
    let ranges = Ranges::read(state_root, pool)?;
    if ranges.free == 0 {
        return Ok(Vec::new());
    }
    let mut given_back = Vec::new();
    for (link, owner) in ranges.ownerless {
        let gone = give_back(state_root, &link, Path::new(&owner));
        if gone.context(|| format!("give back {}", link.display()))? {
            given_back.push(link);
        }
    }
    Ok(given_back)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u32 = 1 << 20;
    const SLICE: u32 = IdPool::SLICE;

    /// Returns a pool for this many sandboxes.
    fn pool(sandboxes: u32) -> IdPool {
        IdPool { start: START, size: (2 * sandboxes + 1) * SLICE, ..IdPool::default() }
    }

    fn allocate(root: &Path, sandboxes: u32, owner: &str) -> Result<IdRange> {
        fs::create_dir_all(root.join(owner)).unwrap();
        IdRange::allocate(root, pool(sandboxes), owner)
    }

    #[test]
    fn what_has_no_owner_is_given_back_unless_all_is_taken() {
        let root = tempfile::tempdir().unwrap();
        assert!(give_back_ownerless(root.path(), pool(3)).unwrap().is_empty());
        allocate(root.path(), 3, "ns/a").unwrap();
        let dead = allocate(root.path(), 3, "ns/dead").unwrap();
        fs::remove_dir(root.path().join("ns/dead")).unwrap();
        let ranges = Ranges::read(root.path(), pool(3)).unwrap();
        assert_eq!((ranges.sandboxes, ranges.free), (3, 1));
        assert_eq!((ranges.taken.len(), ranges.ownerless.len()), (4, 2));
        let last = allocate(root.path(), 3, "ns/last").unwrap();
        assert!(give_back_ownerless(root.path(), pool(3)).unwrap().is_empty());
        release(&last.link, "ns/last").unwrap();
        let given_back = give_back_ownerless(root.path(), pool(3)).unwrap();
        assert_eq!(given_back.len(), 2);
        assert!(given_back.contains(&dead.link));
        assert_eq!(Ranges::read(root.path(), pool(3)).unwrap().free, 2);
        assert!(give_back_ownerless(root.path(), pool(3)).unwrap().is_empty());
    }

    #[test]
    fn two_sandboxes_never_share_an_id() {
        let root = tempfile::tempdir().unwrap();
        let ids = |n: u32| allocate(root.path(), 64, &format!("ns/{n}")).unwrap().all().uids[0];
        let mut lines: Vec<_> = (0..64).map(ids).collect();
        lines.sort_unstable_by_key(|line| line.outside);
        for pair in lines.windows(2) {
            assert!(pair[0].outside + pair[0].size <= pair[1].outside, "{pair:?}");
        }
        assert!(lines[0].outside >= START + SLICE, "boots have those IDs");
        assert!(lines[63].outside + lines[63].size <= START + pool(64).size);
    }

    fn line(inside: u32, outside: u32, size: u32) -> Mappings {
        let line = IdMapping { inside, outside, size };
        Mappings { uids: vec![line], gids: vec![line] }
    }

    #[test]
    fn boot_has_an_id_that_no_container_has() {
        let root = tempfile::tempdir().unwrap();
        let range = allocate(root.path(), 2, "ns/a").unwrap();
        let own = range.boot_id(&range.all()).unwrap();
        assert!((START..START + SLICE).contains(&own));
        // Also with the mappings of a spec, unless these take it.
        assert_eq!(range.boot_id(&line(0, 5, 100_000)), Some(own));
        assert_eq!(range.boot_id(&line(0, 0, u32::MAX)), None);
        assert_eq!(range.boot_id(&line(0, START, SLICE)), None);
    }

    #[test]
    fn an_id_beyond_the_range_has_one_spare_in_all_containers() {
        let root = tempfile::tempdir().unwrap();
        let range = allocate(root.path(), 2, "ns/a").unwrap();
        let mut spares = range.spares();
        let plain = range.mappings();
        let one = spares.add(&plain, &[70_000, 1_000_680_000]).unwrap();
        let other = spares.add(&plain, &[1_000_680_000, 80_000]).unwrap();
        let spare = range.start + SLICE;
        assert_eq!(one.uid_outside(1_000_680_000), Some(spare + 1));
        assert_eq!(other.gid_outside(1_000_680_000), Some(spare + 1));
        assert_eq!(other.uid_outside(80_000), Some(spare + 2));
        assert_eq!(other.uid_outside(70_000), None);
        assert_eq!(other.uid_outside(65_535), Some(range.start + 65_535));
        assert!(range.all().uids[0].holds_outside(spare + SLICE - 1));
        // The map has room for no more lines than the kernel allows.
        let many: Vec<u32> = (100_000..100_400).collect();
        let error = spares.add(&plain, &many).unwrap_err().to_string();
        assert!(error.contains("ids_per_sandbox"), "{error}");
    }

    #[test]
    fn a_larger_range_takes_more_slices() {
        let root = tempfile::tempdir().unwrap();
        let pool =
            IdPool { start: START, size: 5 * SLICE, per_sandbox: 2 * SLICE, ..IdPool::default() };
        fs::create_dir_all(root.path().join("ns/a")).unwrap();
        let range = IdRange::allocate(root.path(), pool, "ns/a").unwrap();
        assert_eq!(range.mappings().uids[0].size, 2 * SLICE);
        assert!(IdRange::allocate(root.path(), pool, "ns/b").is_err());
        release(range.link(), "ns/a").unwrap();
        assert_eq!(fs::read_dir(root.path().join("ranges")).unwrap().count(), 0);
    }

    #[test]
    fn a_rootless_boot_has_an_id_beyond_the_containers() {
        let own = |ids, mappings: &Mappings| {
            rootless_boot_id(Rootless { ids, lines: &[] }, mappings, "ns/a")
        };
        assert_eq!(own(65537, &line(0, 0, 65536)), Some(65536));
        let many = own(300_000, &line(0, 0, 65536)).unwrap();
        assert!((65536..300_000).contains(&many));
        assert_eq!(own(65536, &line(0, 0, 65536)), None);
        assert_eq!(own(10, &line(0, 5, u32::MAX)), None);
        assert_eq!(Rootless { ids: 65537, lines: &[] }.of_containers(SLICE), SLICE);
        assert_eq!(Rootless { ids: 1000, lines: &[] }.of_containers(SLICE), 999);
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

    /// It was seen as that of a dead sandbox, and another has taken it since.
    #[test]
    fn a_slice_that_another_has_taken_meanwhile_is_not_given_back() {
        let root = tempfile::tempdir().unwrap();
        let range = allocate(root.path(), 1, "ns/new").unwrap();
        assert!(!give_back(root.path(), range.link(), Path::new("ns/dead")).unwrap());
        assert!(range.link().is_symlink());
        fs::remove_dir(root.path().join("ns/new")).unwrap();
        assert!(give_back(root.path(), range.link(), Path::new("ns/new")).unwrap());
    }

    /// As in `state.rs`.
    #[test]
    fn the_directory_of_ranges_may_be_taken_away() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("ranges");
        std::thread::scope(|scope| {
            let takes = scope.spawn(|| {
                for _ in 0..300 {
                    let range = allocate(root.path(), 1, "ns/a").unwrap();
                    release(range.link(), "ns/a").unwrap();
                }
            });
            while !takes.is_finished() {
                let _ = fs::remove_dir(&directory);
            }
        });
    }

    #[test]
    fn a_sandbox_gives_back_only_its_own_range() {
        let root = tempfile::tempdir().unwrap();
        let range = allocate(root.path(), 1, "ns/a").unwrap();
        release(range.link(), "ns/b").unwrap();
        assert!(range.link().is_symlink());
    }

    #[test]
    fn all_that_an_owner_has_is_given_back_whatever_it_had_recorded() {
        let root = tempfile::tempdir().unwrap();
        release_all(root.path(), "ns/a").unwrap();
        allocate(root.path(), 3, "ns/a").unwrap();
        allocate(root.path(), 3, "ns/b").unwrap();
        // It was killed between two of its links.
        let torn = root.path().join("ranges/1000");
        symlink("ns/a", torn).unwrap();
        release_all(root.path(), "ns/a").unwrap();
        let owners = fs::read_dir(root.path().join("ranges")).unwrap().flatten();
        let owners: Vec<_> = owners.map(|link| fs::read_link(link.path()).unwrap()).collect();
        assert_eq!(owners, [Path::new("ns/b"); 2]);
    }

    /// A slice in the middle that is taken leaves none of the others taken.
    #[test]
    fn slices_are_taken_together_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("ns/old")).unwrap();
        let directory = root.path().join("ranges");
        fs::create_dir_all(&directory).unwrap();
        symlink("ns/old", directory.join("1")).unwrap();
        let error = allocate(root.path(), 1, "ns/a").unwrap_err().to_string();
        assert!(error.contains("are taken"), "{error}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }
}
