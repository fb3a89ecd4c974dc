//! What the sampler has found: a file of fixed size that the process that is looked at maps, and the
//! shim reads. It is made when somebody looks, and gone afterwards.
//!
//! The file of a sandbox process is written by what may be hostile. The shim reads it by pread(2)
//! and within [`SIZE`], and copies words; [`parse`] takes each of them for anything.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The most allocations that are kept. Each takes a page, once it is used.
pub const RECORDS: usize = 2048;
/// The words of a record.
const RECORD: usize = 512;
/// Those before the words of the stack: [`ADDRESS`] and so on.
const HEAD: usize = 7;
/// The most words of a stack.
pub const MOST_WORDS: usize = RECORD - HEAD;
/// Lists of records, by address.
const BUCKETS: usize = 1024;
/// The words before the records: counters, lists.
const FIRST: usize = RECORD + BUCKETS;
const WORDS: usize = FIRST + RECORDS * RECORD;
/// The size of a table in bytes.
pub const SIZE: usize = WORDS * size_of::<u64>();

// Counters.
const ALLOCATED: usize = 0;
const ALLOCATIONS: usize = 1;
const FREED: usize = 2;
const FREES: usize = 3;
const LOST: usize = 4;
/// The records that were ever used.
const USED: usize = 5;
/// The first free one of those, plus 1.
const FREE: usize = 6;
const COUNTERS: usize = 7;

// Of a record.
const ADDRESS: usize = 0;
const LENGTH: usize = 1;
const IP: usize = 2;
const SP: usize = 3;
const BP: usize = 4;
const COUNT: usize = 5;
/// The next record of its list, plus 1.
const NEXT: usize = 6;

/// The distance of a word from the top of the stack stands above so many bits, its value below.
const SHIFT: u32 = 48;
/// How many words from the top of a stack on are looked at.
pub const REACH: usize = 1 << (64 - SHIFT - 1);

/// A table that is being filled. One thread does so at a time.
pub(super) struct Table<'a>(&'a [AtomicU64]);

/// What one allocation is found to be.
pub(super) struct Record<'a>(&'a [AtomicU64]);

impl<'a> Table<'a> {
    /// Takes the words of a table. `None` if they are not so many.
    pub(super) fn new(words: &'a [AtomicU64]) -> Option<Self> {
        (words.len() == WORDS).then_some(Self(words))
    }

    /// Counts an allocation.
    pub(super) fn count_allocated(&self, size: usize) {
        self.add(ALLOCATED, size as u64);
        self.add(ALLOCATIONS, 1);
    }

    /// Counts an allocation that was given back.
    pub(super) fn count_freed(&self, size: usize) {
        self.add(FREED, size as u64);
        self.add(FREES, 1);
    }

    /// Counts samples for which there was no room, or of which the end was not seen.
    pub(super) fn count_lost(&self, samples: u64) {
        self.add(LOST, samples);
    }

    /// Returns a record for an allocation, if there is room.
    pub(super) fn insert(&self, address: u64, size: usize) -> Option<Record<'a>> {
        let free = self.load(FREE);
        let (index, record) = match free.checked_sub(1) {
            Some(index) => {
                let record = self.record(index)?;
                self.store(FREE, record.load(NEXT));
                (index, record)
            }
            None => {
                let index = self.load(USED);
                let record = self.record(index)?;
                self.store(USED, index + 1);
                (index, record)
            }
        };
        let list = Self::list(address);
        record.store(NEXT, self.load(list));
        record.store(COUNT, 0);
        record.store(LENGTH, size as u64);
        record.store(ADDRESS, address);
        self.store(list, index + 1);
        Some(record)
    }

    /// Removes the record of an allocation, if it has one.
    pub(super) fn remove(&self, address: u64) {
        let list = Self::list(address);
        let mut before: Option<Record<'_>> = None;
        let mut at = self.load(list);
        // No list is longer than all records.
        for _ in 0..RECORDS {
            let Some(record) = at.checked_sub(1).and_then(|index| self.record(index)) else {
                return;
            };
            let next = record.load(NEXT);
            if record.load(ADDRESS) == address {
                match before {
                    Some(before) => before.store(NEXT, next),
                    None => self.store(list, next),
                }
                record.store(ADDRESS, 0);
                record.store(NEXT, self.load(FREE));
                self.store(FREE, at);
                return;
            }
            (before, at) = (Some(record), next);
        }
    }

    fn list(address: u64) -> usize {
        let mixed = address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        RECORD + usize::try_from(mixed).unwrap_or_default() % BUCKETS
    }

    fn record(&self, index: u64) -> Option<Record<'a>> {
        let index = usize::try_from(index).ok().filter(|index| *index < RECORDS)?;
        let at = FIRST + index * RECORD;
        self.0.get(at..at + RECORD).map(Record)
    }

    fn load(&self, at: usize) -> u64 {
        self.0[at].load(Relaxed)
    }

    fn store(&self, at: usize, value: u64) {
        self.0[at].store(value, Relaxed);
    }

    fn add(&self, at: usize, value: u64) {
        self.store(at, self.load(at).wrapping_add(value));
    }
}

impl Record<'_> {
    /// Sets the registers at which the stack begins.
    pub(super) fn begin(&self, ip: u64, sp: u64, bp: u64) {
        self.store(IP, ip);
        self.store(SP, sp);
        self.store(BP, bp);
    }

    /// Adds a word of the stack, by its distance from the top in words. Returns whether there is
    /// room for more.
    pub(super) fn push(&self, distance: usize, word: u64) -> bool {
        let count = usize::try_from(self.load(COUNT)).unwrap_or(MOST_WORDS);
        if count < MOST_WORDS {
            self.store(HEAD + count, (distance as u64) << SHIFT | word & ((1 << SHIFT) - 1));
            self.store(COUNT, count as u64 + 1);
        }
        count + 1 < MOST_WORDS
    }

    fn load(&self, at: usize) -> u64 {
        self.0[at].load(Relaxed)
    }

    fn store(&self, at: usize, value: u64) {
        self.0[at].store(value, Relaxed);
    }
}

/// What was counted while the sampler was on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes that were allocated.
    pub allocated: u64,
    /// How many times.
    pub allocations: u64,
    /// Bytes that were given back, of what was allocated before as well.
    pub freed: u64,
    /// How many times.
    pub frees: u64,
    /// Samples for which there was no room.
    pub lost: u64,
}

/// Reads the counters of a table.
///
/// # Errors
/// Those of pread(2).
pub fn totals(table: &File) -> io::Result<Totals> {
    let [allocated, allocations, freed, frees, lost, ..] = counters(table)?;
    Ok(Totals { allocated, allocations, freed, frees, lost })
}

fn counters(table: &File) -> io::Result<[u64; COUNTERS]> {
    let mut bytes = [0; COUNTERS * 8];
    table.read_exact_at(&mut bytes, 0)?;
    let mut words = words(&bytes);
    Ok(std::array::from_fn(|_| words.next().unwrap_or_default()))
}

/// The allocations in a table that are still held, in parts.
pub struct Parts<'a> {
    table: &'a File,
    next: usize,
    used: usize,
    size: usize,
}

/// Returns the allocations that a table holds, in parts of about `size` bytes for [`parse`].
///
/// # Errors
/// Those of pread(2).
pub fn parts(table: &File, size: usize) -> io::Result<Parts<'_>> {
    let used = counters(table)?[USED];
    let used = usize::try_from(used).unwrap_or(RECORDS).min(RECORDS);
    Ok(Parts { table, next: 0, used, size })
}

impl Iterator for Parts<'_> {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut part = Vec::new();
        while self.next < self.used && part.len() < self.size {
            let mut record = [0; RECORD * 8];
            let at = (FIRST + self.next * RECORD) * 8;
            if let Err(error) = self.table.read_exact_at(&mut record, at as u64) {
                self.next = self.used;
                return Some(Err(error));
            }
            self.next += 1;
            let word = |at: usize| words(&record[at * 8..]).next().unwrap_or_default();
            if word(ADDRESS) != 0 {
                let count = usize::try_from(word(COUNT)).unwrap_or(MOST_WORDS).min(MOST_WORDS);
                part.extend_from_slice(&record[..COUNT * 8]);
                part.extend_from_slice(&(count as u64).to_ne_bytes());
                part.extend_from_slice(&record[HEAD * 8..(HEAD + count) * 8]);
            }
        }
        (!part.is_empty()).then_some(Ok(part))
    }
}

/// An allocation that was sampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its size.
    pub size: u64,
    /// `rip`, `rsp` and `rbp` at which its stack begins.
    pub registers: [u64; 3],
    /// The words of its stack, by their address: those that may be addresses of code or of the
    /// stack. All others are left out.
    pub stack: Vec<(u64, u64)>,
}

/// Reads allocations from a part of a table.
///
/// # Errors
/// `InvalidData` if that is none.
pub fn parse(part: &[u8]) -> io::Result<Vec<Sample>> {
    let broken = || io::Error::new(ErrorKind::InvalidData, "no part of a table of allocations");
    if !part.len().is_multiple_of(8) {
        return Err(broken());
    }
    let mut words = words(part);
    let mut all = Vec::new();
    while let Some(_address) = words.next() {
        let mut next = || words.next().ok_or_else(broken);
        let (size, ip, sp, bp, count) = (next()?, next()?, next()?, next()?, next()?);
        if count > MOST_WORDS as u64 {
            return Err(broken());
        }
        let mut stack = Vec::new();
        for _ in 0..count {
            let entry = next()?;
            let at = sp.wrapping_add((entry >> SHIFT) * 8);
            stack.push((at, entry & ((1 << SHIFT) - 1)));
        }
        all.push(Sample { size, registers: [ip, sp, bp], stack });
    }
    Ok(all)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| u64::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_of_a_table() -> Vec<AtomicU64> {
        (0..WORDS).map(|_| AtomicU64::new(0)).collect()
    }

    fn file_of(words: &[AtomicU64]) -> File {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.load(Relaxed).to_ne_bytes()).collect();
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    fn samples(file: &File) -> Vec<Sample> {
        parts(file, 4096).unwrap().flat_map(|part| parse(&part.unwrap()).unwrap()).collect()
    }

    #[test]
    fn what_is_held_comes_back_with_its_stack() {
        let words = words_of_a_table();
        let table = Table::new(&words).unwrap();
        for address in 1..=RECORDS as u64 {
            let record = table.insert(address * 16, 100).expect("room");
            record.begin(7, 0x1000, 9);
            assert!(record.push(3, 0x5000 + address));
            table.count_allocated(100);
        }
        assert!(table.insert(8, 1).is_none(), "it is full");
        for address in 3..=RECORDS as u64 {
            table.remove(address * 16);
            table.remove(address * 16);
            table.count_freed(100);
        }
        let record = table.insert(5, 50).expect("room again");
        record.begin(1, 2, 3);
        while record.push(1, 1) {}
        assert!(!record.push(1, 1));
        let file = file_of(&words);
        let mut held = samples(&file);
        held.sort_by_key(|sample| (sample.size, sample.stack[0]));
        assert_eq!((held.len(), held[0].stack.len()), (3, MOST_WORDS));
        let one = Sample { size: 100, registers: [7, 0x1000, 9], stack: vec![(0x1018, 0x5001)] };
        assert_eq!(held[1], one);
        let totals = totals(&file).unwrap();
        assert_eq!((totals.allocations, totals.frees), (RECORDS as u64, RECORDS as u64 - 2));
        assert_eq!((totals.allocated, totals.lost), (RECORDS as u64 * 100, 0));
    }

    #[test]
    fn a_table_of_anything_is_read_within_its_bounds() {
        let mut state = 7_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let words = words_of_a_table();
        for round in 0..3 {
            for word in &words {
                word.store(if round == 0 { u64::MAX } else { random() }, Relaxed);
            }
            let file = file_of(&words);
            assert_eq!(samples(&file).len(), RECORDS);
            // Its own process does not leave it either, nor goes round in it for ever.
            let table = Table::new(&words).unwrap();
            for _ in 0..1000 {
                table.remove(random());
                table.insert(random(), 1);
            }
            let part: Vec<u8> = (0..512).flat_map(|_| random().to_ne_bytes()).collect();
            let _ = parse(&part);
            assert!(parse(&part[..9]).is_err());
        }
        let short = tempfile::tempfile().unwrap();
        assert!(totals(&short).is_err() && parts(&short, 1).is_err());
    }
}
