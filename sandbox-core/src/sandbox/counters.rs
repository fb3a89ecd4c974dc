//! What a shim counts of its own work: a page of numbers in the file `counters` of the sandbox's
//! state directory, which the shim and whoever wants to know map.
//!
//! To count is one addition to memory: no lock, no system call. To read asks nobody and disturbs
//! nobody. Who has mapped the page can read the last numbers of a sandbox that is gone.
//!
//! ```text
//! word    0      the layout's version
//!         8 …    four histograms of 16 words: 15 buckets, and the sum in nanoseconds
//!       128 …    errors, by operation
//!       192 …    refusals, by rule: unknown, profile, strict list, and from 208 the baseline's parts
//!       256 …    refusals, by the number of the capability that was lacking
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::spec::refused::Rule;
use crate::sys::shared_page::{Access, SIZE, SharedPage};
use crate::types::Allowed;

/// The layout's version, with a mark that no other file begins with.
const VERSION: u64 = u64::from_le_bytes(*b"palcnt\0\x01");

/// The upper bounds of all buckets but the last, which has none, in milliseconds.
pub const BOUNDS: [u64; 14] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

const HISTOGRAMS: usize = 8;
const WORDS_OF_HISTOGRAM: usize = 16;
const SUM: usize = 15;
const ERRORS: usize = 128;
const REFUSALS: usize = 192;
const REFUSALS_BY_PART: usize = 208;
const REFUSALS_BY_CAPABILITY: usize = 256;

/// The capabilities that the page has room for.
const CAPABILITIES: u8 = 64;

/// What takes time, and can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The first container's Create, or StartSandbox: a sandbox is made.
    CreatePod,
    /// The Create of another container.
    Create,
    /// The Start of a container.
    Start,
    /// The Start of an exec'd process.
    Exec,
    /// A Delete.
    Delete,
    /// An Update.
    Update,
    /// A Pause or a Resume.
    Pause,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::CreatePod,
        Self::Create,
        Self::Start,
        Self::Exec,
        Self::Delete,
        Self::Update,
        Self::Pause,
    ];

    /// Those whose time is counted.
    pub const TIMED: [Self; 4] = [Self::CreatePod, Self::Create, Self::Start, Self::Exec];

    /// Returns its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::CreatePod => "create_pod",
            Self::Create => "create",
            Self::Start => "start",
            Self::Exec => "exec",
            Self::Delete => "delete",
            Self::Update => "update",
            Self::Pause => "pause",
        }
    }
}

/// The counters of one sandbox.
#[derive(Debug)]
pub struct Counters(SharedPage);

/// The times of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How often it took no longer than each of [`BOUNDS`], and longer than the one before; last,
    /// how often it took longer than all.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// All times together, in nanoseconds.
    pub sum: u64,
}

impl Histogram {
    /// Returns how often the operation was counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Counters {
    /// Makes the file of a new sandbox, with all counters at zero.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let what = || format!("make {}", path.display());
        let mut new = OpenOptions::new();
        let file = new.read(true).write(true).create_new(true).mode(0o600).open(path);
        let mut file = file.context(what)?;
        // Written, so that it has its room: to count where the file system has none left would end
        // the shim by SIGBUS.
        let mut page = [0; SIZE];
        page[..8].copy_from_slice(&VERSION.to_ne_bytes());
        file.write_all(&page).context(what)?;
        Ok(Self(SharedPage::map(&file, Access::Add).context(what)?))
    }

    /// Opens the counters of a sandbox to read them.
    ///
    /// # Errors
    /// The error says that there are none, or that another version of Palisade wrote them.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let what = || format!("read {}", path.display());
        let file = File::open(path).context(what)?;
        let counters = Self(SharedPage::map(&file, Access::Read).context(what)?);
        match counters.load(0) {
            VERSION => Ok(counters),
            _ => Err(Error::internal(format!(
                "{} is of another layout than this program reads; another version of Palisade \
                 wrote it",
                path.display()
            ))),
        }
    }

    /// Counts an operation that took so long.
    pub fn done(&self, operation: Operation, time: Duration) {
        let Some(histogram) = histogram(operation) else { return };
        let millis = u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < millis);
        self.add(histogram + bucket, 1);
        self.add(histogram + SUM, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts an operation that failed.
    pub fn failed(&self, operation: Operation) {
        self.add(ERRORS + operation as usize, 1);
    }

    /// Counts system calls that a rule refused; `None` if the rule is not known.
    pub fn refused(&self, rule: Option<Rule>, times: u64) {
        self.add(word_of(rule), times);
    }

    /// Returns the times of an operation.
    pub fn times(&self, operation: Operation) -> Histogram {
        let Some(at) = histogram(operation) else { return Histogram::default() };
        let buckets = std::array::from_fn(|bucket| self.load(at + bucket));
        Histogram { buckets, sum: self.load(at + SUM) }
    }

    /// Returns how often an operation failed.
    pub fn errors(&self, operation: Operation) -> u64 {
        self.load(ERRORS + operation as usize)
    }

    /// Returns how many system calls each rule has refused, without those that refused none.
    pub fn refusals(&self) -> impl Iterator<Item = (Option<Rule>, u64)> {
        rules().map(|rule| (rule, self.load(word_of(rule)))).filter(|(_, times)| *times > 0)
    }

    fn add(&self, word: usize, number: u64) {
        self.0.words()[word].fetch_add(number, Relaxed);
    }

    fn load(&self, word: usize) -> u64 {
        self.0.words()[word].load(Relaxed)
    }
}

/// Returns the first word of an operation's histogram.
fn histogram(operation: Operation) -> Option<usize> {
    let index = Operation::TIMED.iter().position(|timed| *timed == operation)?;
    Some(HISTOGRAMS + index * WORDS_OF_HISTOGRAM)
}

/// Returns the word that counts what a rule refuses.
fn word_of(rule: Option<Rule>) -> usize {
    match rule {
        None => REFUSALS,
        Some(Rule::Profile) => REFUSALS + 1,
        Some(Rule::Baseline(None)) => REFUSALS + 2,
        Some(Rule::Baseline(Some(part))) => {
            let number = Allowed::NAMES.iter().position(|(name, _)| *name == part);
            number.map_or(REFUSALS, |number| REFUSALS_BY_PART + number)
        }
        Some(Rule::Capability(number)) if number < CAPABILITIES => {
            REFUSALS_BY_CAPABILITY + usize::from(number)
        }
        Some(Rule::Capability(_)) => REFUSALS,
    }
}

fn rules() -> impl Iterator<Item = Option<Rule>> {
    let parts = Allowed::NAMES.iter().map(|(name, _)| Rule::Baseline(Some(name)));
    let capabilities = (0..CAPABILITIES).map(Rule::Capability);
    let all = [Rule::Profile, Rule::Baseline(None)].into_iter().chain(parts).chain(capabilities);
    std::iter::once(None).chain(all.map(Some))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::sys::shared_page::WORDS;

    #[test]
    fn a_reader_sees_what_the_shim_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("counters");
        let shim = Counters::create(&path).unwrap();
        assert!(Counters::create(&path).is_err());
        let reader = Counters::open(&path).unwrap();
        for millis in [0, 1, 3, 10_000] {
            shim.done(Operation::Exec, Duration::from_millis(millis));
        }
        shim.failed(Operation::Start);
        shim.refused(Some(Rule::Baseline(Some("bpf"))), 2);
        shim.refused(Some(Rule::Capability(200)), 1);
        std::fs::remove_file(&path).unwrap();
        drop(shim);
        let times = reader.times(Operation::Exec);
        assert_eq!((times.count(), times.sum), (4, 10_004_000_000));
        assert_eq!((times.buckets[0], times.buckets[2], times.buckets[14]), (2, 1, 1));
        assert_eq!(reader.times(Operation::Start).count(), 0);
        assert_eq!((reader.errors(Operation::Start), reader.errors(Operation::Exec)), (1, 0));
        let refusals: Vec<_> = reader.refusals().collect();
        assert_eq!(refusals, [(None, 1), (Some(Rule::Baseline(Some("bpf"))), 2)]);
    }

    /// A time that is a bound belongs below it, a longer one above.
    #[test]
    fn each_time_has_its_bucket() {
        let folder = tempfile::tempdir().unwrap();
        let counters = Counters::create(&folder.path().join("counters")).unwrap();
        for (number, bound) in BOUNDS.into_iter().enumerate() {
            counters.done(Operation::Create, Duration::from_millis(bound));
            let longer = Duration::from_millis(bound) + Duration::from_nanos(1);
            counters.done(Operation::Create, longer);
            let buckets = counters.times(Operation::Create).buckets;
            let expected = if number == 0 { 1 } else { 2 };
            assert_eq!((buckets[number], buckets[number + 1]), (expected, 1), "{bound}");
        }
    }

    #[test]
    fn each_number_has_a_place_of_its_own() {
        let words: Vec<_> = rules().map(word_of).collect();
        let apart: HashSet<_> = words.iter().copied().collect();
        assert_eq!(apart.len(), words.len());
        assert!(words.iter().all(|word| (REFUSALS..WORDS).contains(word)));
        const { assert!(HISTOGRAMS + Operation::TIMED.len() * WORDS_OF_HISTOGRAM <= ERRORS) };
        const { assert!(BOUNDS.len() < SUM && ERRORS + Operation::ALL.len() <= REFUSALS) };
        const { assert!(REFUSALS_BY_PART + Allowed::NAMES.len() <= REFUSALS_BY_CAPABILITY) };
    }

    #[test]
    fn another_layout_is_a_clear_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("counters");
        assert!(Counters::open(&path).is_err());
        std::fs::write(&path, [7; SIZE]).unwrap();
        let error = Counters::open(&path).unwrap_err().to_string();
        assert!(error.contains("another layout"), "{error}");
        std::fs::write(&path, "short").unwrap();
        assert!(Counters::open(&path).unwrap_err().to_string().contains("5 bytes"));
    }
}
