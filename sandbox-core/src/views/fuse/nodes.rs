//! The numbers of nodes.
//!
//! ```text
//!   1                              the root, with a directory for each container
//!   serial << 8 | place            what each container has: the number says all
//!   1 << 63 | count                what is passed through from the host's sysfs: in a table
//! ```
//! No number is ever used for another node, so a number that the kernel still holds when its
//! container has gone leads nowhere.

use std::collections::HashMap;

use super::places::Place;
use super::protocol::ROOT;

/// How many nodes of sysfs a container can have at a time.
const MAX_PER_CONTAINER: usize = 4096;

/// How many all containers of the pod can have.
const MAX: usize = 16384;

const PASSED: u64 = 1 << 63;

/// A node, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Root,
    /// A place in the directory of the container with this serial number.
    Place(u32, Place),
    /// Something of sysfs, in the table.
    Passed(u64),
}

impl Node {
    /// Reads a number. `None` if no node has it.
    pub(super) fn numbered(number: u64) -> Option<Self> {
        if number == ROOT {
            return Some(Self::Root);
        }
        if number & PASSED != 0 {
            return Some(Self::Passed(number));
        }
        let serial = u32::try_from(number >> 8).ok().filter(|serial| *serial > 0)?;
        Place::numbered(number & 0xff).map(|place| Self::Place(serial, place))
    }

    pub(super) fn number(self) -> u64 {
        match self {
            Self::Root => ROOT,
            Self::Place(serial, place) => u64::from(serial) << 8 | place.number(),
            Self::Passed(number) => number,
        }
    }
}

/// Which directory of the host's sysfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Tree {
    /// `/sys/devices/system/cpu`
    Cpu,
    /// `/sys/devices/system/node`
    Node,
}

/// Something of the host's sysfs, as one container sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Passed {
    pub(super) serial: u32,
    pub(super) tree: Tree,
    /// Its path below the tree's root: names that exist there, joined by `/`. Empty for the
    /// root itself, which has no place in the table.
    pub(super) path: String,
}

/// The table of those that the kernel was told of.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    known: HashMap<u64, Known>,
    numbers: HashMap<Passed, u64>,
    /// How many each container has.
    counts: HashMap<u32, usize>,
    /// How many lookups there were.
    clock: u64,
}

#[derive(Debug)]
struct Known {
    passed: Passed,
    /// How many lookups the kernel was told of, less those that it forgot.
    lookups: u64,
    /// When it was looked up last.
    used: u64,
}

impl Nodes {
    /// Returns the node with a number.
    pub(super) fn get(&self, number: u64) -> Option<&Passed> {
        self.known.get(&number).map(|known| &known.passed)
    }

    /// Returns how many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    /// Counts a lookup of which the kernel will be told, and returns the number.
    pub(super) fn look_up(&mut self, passed: Passed) -> u64 {
        self.clock += 1;
        if let Some(number) = self.numbers.get(&passed)
            && let Some(known) = self.known.get_mut(number)
        {
            known.lookups += 1;
            known.used = self.clock;
            return *number;
        }
        self.make_room(passed.serial);
        let number = PASSED | self.clock;
        *self.counts.entry(passed.serial).or_default() += 1;
        self.numbers.insert(passed.clone(), number);
        self.known.insert(number, Known { passed, lookups: 1, used: self.clock });
        number
    }

    /// Takes back so many lookups; the node goes with the last.
    pub(super) fn forget(&mut self, number: u64, lookups: u64) {
        if let Some(known) = self.known.get_mut(&number) {
            known.lookups = known.lookups.saturating_sub(lookups);
            if known.lookups == 0 {
                self.drop(number);
            }
        }
    }

    /// Drops all of a container's.
    pub(super) fn remove_container(&mut self, serial: u32) {
        let own = self.known.iter().filter(|(_, known)| known.passed.serial == serial);
        let own: Vec<u64> = own.map(|(number, _)| *number).collect();
        own.into_iter().for_each(|number| self.drop(number));
        // What many nodes took is given back.
        self.known.shrink_to_fit();
        self.numbers.shrink_to_fit();
    }

    fn drop(&mut self, number: u64) {
        let Some(known) = self.known.remove(&number) else {
            return;
        };
        self.numbers.remove(&known.passed);
        if let Some(count) = self.counts.get_mut(&known.passed.serial) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&known.passed.serial);
            }
        }
    }

    /// Drops the older half of a container's nodes when it has its share, or of the one with
    /// most when the table is full. The kernel is answered ESTALE for one of them, and then
    /// looks its path up again: only what is held open or is a working directory is lost.
    fn make_room(&mut self, serial: u32) {
        if self.counts.get(&serial).is_some_and(|count| *count >= MAX_PER_CONTAINER) {
            self.drop_older_half(serial);
        } else if self.known.len() >= MAX
            && let Some((most, _)) = self.counts.iter().max_by_key(|(_, count)| **count)
        {
            self.drop_older_half(*most);
        }
    }

    fn drop_older_half(&mut self, serial: u32) {
        let own = self.known.iter().filter(|(_, known)| known.passed.serial == serial);
        let mut ages: Vec<(u64, u64)> = own.map(|(number, known)| (known.used, *number)).collect();
        ages.sort_unstable();
        ages.truncate(ages.len().div_ceil(2));
        ages.into_iter().for_each(|(_, number)| self.drop(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(serial: u32, path: impl ToString) -> Passed {
        Passed { serial, tree: Tree::Cpu, path: path.to_string() }
    }

    #[test]
    fn a_number_leads_back_to_its_node() {
        for serial in [1, 2, 255, 256, u32::MAX] {
            for place in (0..256).filter_map(Place::numbered) {
                let node = Node::Place(serial, place);
                assert_eq!(Node::numbered(node.number()), Some(node));
                assert_ne!(node.number(), ROOT);
            }
        }
        assert_eq!(Node::numbered(ROOT), Some(Node::Root));
        assert_eq!(Node::numbered(PASSED | 5), Some(Node::Passed(PASSED | 5)));
        for nothing in [0, 2, 255, 256, 257 + 255, 1 << 62, (1 << 40) | 257] {
            assert_eq!(Node::numbered(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_node_goes_with_the_last_lookup_that_the_kernel_forgets() {
        let mut nodes = Nodes::default();
        let number = nodes.look_up(passed(1, "cpu0"));
        assert_eq!(nodes.look_up(passed(1, "cpu0")), number);
        nodes.forget(number, 1);
        assert_eq!(nodes.get(number), Some(&passed(1, "cpu0")));
        nodes.forget(number, 1);
        assert_eq!(nodes.get(number), None);
        // More than there were, and of what never was, do no harm.
        nodes.forget(number, u64::MAX);
        let again = nodes.look_up(passed(1, "cpu0"));
        assert_ne!(again, number);
        nodes.forget(again, u64::MAX);
        assert!(nodes.known.is_empty() && nodes.numbers.is_empty() && nodes.counts.is_empty());
    }

    #[test]
    fn a_container_keeps_what_it_uses_and_takes_nothing_from_others() {
        let mut nodes = Nodes::default();
        let other = nodes.look_up(passed(2, "cpu0"));
        let used = nodes.look_up(passed(1, "cpu0"));
        for count in 0..20_000 {
            nodes.look_up(passed(1, count));
            assert_eq!(nodes.look_up(passed(1, "cpu0")), used);
            assert!(nodes.known.len() <= MAX_PER_CONTAINER + 1);
        }
        assert_eq!(nodes.get(other), Some(&passed(2, "cpu0")));
        nodes.remove_container(1);
        assert_eq!((nodes.known.len(), nodes.numbers.len(), nodes.counts.len()), (1, 1, 1));
    }

    #[test]
    fn all_containers_together_stay_within_the_bound() {
        let mut nodes = Nodes::default();
        for serial in 1..=10 {
            (0..4000).for_each(|count| _ = nodes.look_up(passed(serial, count)));
            assert!(nodes.known.len() <= MAX && nodes.numbers.len() == nodes.known.len());
        }
        assert!((1..=10).all(|serial| nodes.counts[&serial] > 500));
    }
}
