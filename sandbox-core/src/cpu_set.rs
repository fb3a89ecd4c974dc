//! A set of CPUs, in the two forms in which the kernel writes one.

use std::fmt::Write;

/// A set of CPUs, as a bit map without empty words at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuSet(Vec<u64>);

impl CpuSet {
    /// No CPU has this number or a higher one: far beyond what Linux can be built for.
    pub const END: u32 = 1 << 16;

    /// Parses a list such as `0-2,5` (cpuset(7), "List format"). `None` if it is none, or has a
    /// number of [`CpuSet::END`] or above.
    pub fn parse(list: &str) -> Option<CpuSet> {
        let mut set = CpuSet::default();
        for range in list.trim().split(',').filter(|r| !r.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            if last >= Self::END {
                return None;
            }
            (first..=last).for_each(|cpu| set.insert(cpu));
        }
        Some(set)
    }

    /// Parses a mask such as `00000001,ffffffff` (cpuset(7), "Mask format"): groups of 32 CPUs,
    /// the highest first.
    pub(crate) fn parse_mask(mask: &str) -> Option<CpuSet> {
        let groups = mask.trim().split(',').rev();
        let mut words = Vec::new();
        for (at, group) in groups.enumerate() {
            if at >= Self::END as usize / 32 || group.is_empty() || group.len() > 8 {
                return None;
            }
            let bits = u64::from(u32::from_str_radix(group, 16).ok()?);
            match words.last_mut() {
                Some(word) if at % 2 == 1 => *word |= bits << 32,
                _ => words.push(bits),
            }
        }
        Some(Self::from_words(words))
    }

    /// Returns the set of these CPUs. Those from [`CpuSet::END`] on are not in it.
    pub(crate) fn from_cpus(cpus: impl IntoIterator<Item = u32>) -> CpuSet {
        let mut set = CpuSet::default();
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }

    /// Takes a bit map, in which CPU 0 is the lowest bit of the first word.
    pub(crate) fn from_words(mut words: Vec<u64>) -> CpuSet {
        while words.last() == Some(&0) {
            words.pop();
        }
        CpuSet(words)
    }

    /// Writes it as a list, as the kernel does: `0-2,5`.
    pub(crate) fn list(&self) -> String {
        let mut list = String::new();
        let mut cpus = self.iter().peekable();
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            let comma = if list.is_empty() { "" } else { "," };
            // A String takes all that is written.
            let _ = match last {
                last if last == first => write!(list, "{comma}{first}"),
                last => write!(list, "{comma}{first}-{last}"),
            };
        }
        list
    }

    /// Writes it as a mask, with as many digits as the kernel's mask has. CPUs that do not fit
    /// there are left out.
    pub(crate) fn mask_like(&self, kernels: &str) -> String {
        let groups: Vec<&str> = kernels.trim().split(',').collect();
        let mut mask = String::new();
        for (at, group) in groups.iter().enumerate() {
            let number = groups.len() - 1 - at;
            let word = self.0.get(number / 2).copied().unwrap_or(0);
            let bits = word >> (number % 2 * 32) & 0xffff_ffff;
            let width = group.len().clamp(1, 8);
            let fitting = bits & ((1 << (4 * width)) - 1);
            let comma = if at == 0 { "" } else { "," };
            let _ = write!(mask, "{comma}{fitting:0width$x}");
        }
        mask
    }

    /// Adds a CPU, if it is below [`CpuSet::END`].
    pub(crate) fn insert(&mut self, cpu: u32) {
        if cpu >= Self::END {
            return;
        }
        let at = cpu as usize / 64;
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        if let Some(word) = self.0.get_mut(at) {
            *word |= 1 << (cpu % 64);
        }
    }

    /// Whether it has this CPU.
    pub(crate) fn contains(&self, cpu: u32) -> bool {
        self.0.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    /// Returns its CPUs, the lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.0).flat_map(|(at, word): (u32, &u64)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(at * 64 + bit)
            })
        })
    }

    /// Returns the number of its CPUs.
    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    /// Whether it has no CPU.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns its highest CPU.
    pub(crate) fn highest(&self) -> Option<u32> {
        let (at, word) = (0..).zip(&self.0).last()?;
        Some(at * 64 + word.ilog2())
    }

    /// Returns the CPUs that are in both.
    pub(crate) fn and(&self, other: &CpuSet) -> CpuSet {
        Self::from_words(self.0.iter().zip(&other.0).map(|(a, b)| a & b).collect())
    }

    /// Returns it as a bit map, in which CPU 0 is the lowest bit of the first word.
    pub(crate) fn words(&self) -> &[u64] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_of_cpus_are_read_and_nonsense_is_not() {
        assert_eq!(CpuSet::parse("0-2,64,70-71\n").unwrap().count(), 6);
        assert!(CpuSet::parse("").unwrap().is_empty());
        for wrong in ["a", "1-", "3-x", "0-99999999999", "65536", "-1"] {
            assert_eq!(CpuSet::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn masks_are_read_in_groups_of_32_and_nonsense_is_not() {
        assert_eq!(CpuSet::parse_mask("3\n").unwrap().list(), "0-1");
        assert_eq!(CpuSet::parse_mask("1,80000000,00000001").unwrap().list(), "0,63-64");
        assert!(CpuSet::parse_mask("0").unwrap().is_empty());
        let huge = vec!["ffffffff"; 2049].join(",");
        for wrong in ["", "g", "1,", "123456789", &huge] {
            assert_eq!(CpuSet::parse_mask(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_mask_has_the_width_of_the_kernels() {
        let set = CpuSet::from_cpus([0, 5, 33]);
        assert_eq!(set.mask_like("ff"), "21");
        assert_eq!(set.mask_like("f"), "1");
        assert_eq!(set.mask_like("3,ffffffff"), "2,00000021");
        assert_eq!(set.mask_like("00,00000000,00000000"), "00,00000002,00000021");
    }

    #[test]
    fn the_kernels_own_lists_and_masks_stay_as_they_are() {
        let folder = "/sys/devices/system/node/node0";
        let read = |name| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
        let (list, mask) = (read("cpulist"), read("cpumap"));
        let set = CpuSet::parse(&list).unwrap();
        assert_eq!(set.list(), list.trim());
        assert_eq!(CpuSet::parse_mask(&mask).as_ref(), Some(&set));
        assert_eq!(set.mask_like(&mask), mask.trim());
    }

    proptest! {
        #[test]
        fn both_forms_mean_the_same(cpus in prop::collection::btree_set(0u32..3000, 0..60)) {
            let set = CpuSet::from_cpus(cpus.iter().copied());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), cpus.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.count() as usize, cpus.len());
            prop_assert_eq!(set.highest(), cpus.last().copied());
            prop_assert!((0..3001).all(|cpu| set.contains(cpu) == cpus.contains(&cpu)));
            prop_assert_eq!(set.words().len(), set.highest().map_or(0, |cpu| cpu as usize / 64 + 1));
            prop_assert_eq!(CpuSet::parse(&set.list()), Some(set.clone()));
            let width = vec!["00000000"; 3000 / 32 + 1].join(",");
            prop_assert_eq!(CpuSet::parse_mask(&set.mask_like(&width)), Some(set));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = CpuSet::parse(&text);
            let _ = CpuSet::parse_mask(&text);
            let _ = CpuSet::default().mask_like(&text);
        }
    }
}
