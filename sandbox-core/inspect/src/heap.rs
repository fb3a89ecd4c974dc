//! What Palisade's own processes hold of what they have allocated since their sampler was switched on
//! (`sandbox_core::sys::heap`), by call site. The samples of a sandbox process are what it says.

use std::collections::HashMap;
use std::fs::File;

use anyhow::Result;
use object::read::{Object, ReadCache};
use sandbox_core::sys::heap::table::{self, REACH};

use crate::perf::Outcome;
use crate::profile::{Gathered, Profile, Weight, Who};
use crate::unwind::{Memory, Registers};

/// The parts of names that the sampler and the language's allocator have. Frames up to the last one
/// are left out: they are those of all allocations.
const OF_THE_ALLOCATOR: [&str; 4] = ["sys::heap::", "__rust_alloc", "__rust_realloc", "__rdl_"];

/// How deep those lie.
const DEEPEST: usize = 16;

/// The beginnings of names of functions that allocate for others: the language's library, and maps.
const FOR_OTHERS: [&str; 4] = ["alloc::", "core::", "std::", "hashbrown::"];

/// Returns the build ID of a process's program, by which its symbols are found.
pub fn build_id(pid: i32) -> Option<String> {
    let cache = ReadCache::new(File::open(format!("/proc/{pid}/exe")).ok()?);
    let program = object::File::parse(&cache).ok()?;
    let id = program.build_id().ok().flatten()?;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Gathers samples.
#[derive(Default)]
pub struct Heap {
    gathered: Gathered,
    /// The number of samples.
    pub samples: u64,
}

impl Heap {
    /// Learns what processes have mapped, before they end.
    pub fn of(pids: impl IntoIterator<Item = i32>) -> Self {
        let mut heap = Self::default();
        pids.into_iter().for_each(|pid| heap.gathered.learn(pid));
        heap
    }

    /// Adds the samples of a process, of which there is one for each `every` bytes.
    ///
    /// # Errors
    /// Fails if these are none.
    pub fn add(&mut self, index: usize, pid: i32, every: u32, samples: &[u8]) -> Result<()> {
        for sample in table::parse(samples)? {
            let [ip, sp, bp] = sample.registers;
            let mut copy = Copy { sp, words: sample.stack.into_iter().collect() };
            let stack = self.gathered.copied(pid, Registers { ip, sp, bp: Some(bp) }, &mut copy);
            let who = Who { container: index, pid, tid: pid };
            self.gathered.add(who, stack, None, weight(sample.size, every));
            self.samples += 1;
        }
        Ok(())
    }

    /// Gives the functions their names.
    pub fn finish(self, outcome: Outcome) -> Profile {
        let mut profile = self.gathered.finish(outcome);
        for line in &mut profile.lines {
            let top = &line.stack[..line.stack.len().min(DEEPEST)];
            let is_its = |name: &str| OF_THE_ALLOCATOR.iter().any(|part| name.contains(part));
            let last = top.iter().rposition(|function| is_its(&function.name));
            line.stack.drain(..last.map_or(0, |last| last + 1));
        }
        profile
    }
}

/// Returns the index of the function that an allocation is made for, in a stack.
pub fn call_site(stack: &[crate::symbols::Function]) -> Option<usize> {
    let for_others = |function: &crate::symbols::Function| {
        // As in `<alloc::vec::Vec<u8> as core::clone::Clone>::clone`. One that was put into others
        // has a short name, and its source says whose it is.
        let name = function.name.trim_start_matches(['<', '&']);
        FOR_OTHERS.iter().any(|beginning| name.starts_with(beginning))
            || function.line.as_ref().is_some_and(|(file, _)| file.starts_with("/rustc/"))
    };
    stack.iter().position(|function| !for_others(function))
}

/// The largest allocation: no process has more memory, and sums stay numbers.
const LARGEST: u64 = 1 << 47;

/// Returns what one sample stands for: an allocation of few bytes is sampled rarely.
fn weight(size: u64, every: u32) -> Weight {
    let size = size.min(LARGEST);
    if every <= 1 {
        return Weight { count: 1, time: size };
    }
    let chance = -(-(size as f64) / f64::from(every)).exp_m1();
    if chance <= 0.0 {
        return Weight::default();
    }
    Weight { count: (1.0 / chance).round() as u64, time: (size as f64 / chance).round() as u64 }
}

/// What was copied of a stack.
struct Copy {
    sp: u64,
    words: HashMap<u64, u64>,
}

impl Memory for Copy {
    /// A word that was left out is neither an address of code nor one of the stack. Where a
    /// register was saved that is no frame pointer, any number does.
    fn word(&mut self, address: u64) -> Option<u64> {
        let reach = address.checked_sub(self.sp)? < 8 * REACH as u64;
        reach.then(|| self.words.get(&address).copied().unwrap_or_default())
    }

    fn has_call_before(&mut self, _: u64) -> bool {
        // The frame pointer is known, so nothing is guessed.
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::Function;

    #[test]
    fn small_allocations_count_for_those_that_were_not_sampled() {
        assert_eq!(weight(100, 1), Weight { count: 1, time: 100 });
        assert_eq!(weight(1 << 30, 4096), Weight { count: 1, time: 1 << 30 });
        let small = weight(16, 4096);
        assert!((256..=257).contains(&small.count), "{small:?}");
        assert!((4096..=4112).contains(&small.time), "{small:?}");
        // A sandbox process can say anything.
        assert_eq!(weight(0, 4096), Weight::default());
        assert_eq!(weight(u64::MAX, 4096), Weight { count: 1, time: LARGEST });
    }

    #[test]
    fn the_call_site_is_beyond_the_library() {
        let names = ["<alloc::vec::Vec<u8>>::with_capacity", "std::fs::read", "shim::f", "main"];
        let function =
            |name: &&str| Function { name: (*name).into(), file: "f".into(), line: None };
        let stack: Vec<_> = names.iter().map(function).collect();
        assert_eq!(call_site(&stack), Some(2));
        assert_eq!(call_site(&stack[..2]), None);
    }

    #[test]
    fn samples_of_anything_are_read() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut heap = Heap::of([pid]);
        let words: [u64; 10] = [1, u64::MAX, u64::MAX, u64::MAX - 4, 7, 3, 1 << 63, u64::MAX, 5, 9];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert!(heap.add(0, pid, 4096, &bytes).is_err(), "there is a beginning of one more");
        heap.add(0, pid, 4096, &bytes[..72]).unwrap();
        assert_eq!(heap.samples, 1);
    }
}
