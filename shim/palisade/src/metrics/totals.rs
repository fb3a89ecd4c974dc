//! What the shims of a node have counted, also those that are gone.

use std::collections::BTreeMap;

use sandbox_core::sandbox::counters::{Counters, Histogram, Operation};
use sandbox_core::spec::refused::Rule;

/// The sum of several shims' counters.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    /// In the order of [`Operation::TIMED`].
    pub(super) times: [Histogram; Operation::TIMED.len()],
    /// In the order of [`Operation::ALL`].
    pub(super) errors: [u64; Operation::ALL.len()],
    /// By the kind and the name of the rule.
    pub(super) refusals: BTreeMap<(&'static str, String), u64>,
}

impl Totals {
    /// Adds what one shim has counted.
    pub(super) fn add(&mut self, counters: &Counters) {
        for (all, operation) in self.times.iter_mut().zip(Operation::TIMED) {
            let one = counters.times(operation);
            all.sum += one.sum;
            all.buckets.iter_mut().zip(one.buckets).for_each(|(all, one)| *all += one);
        }
        for (all, operation) in self.errors.iter_mut().zip(Operation::ALL) {
            *all += counters.errors(operation);
        }
        for (rule, times) in counters.refusals() {
            let key =
                rule.map_or(("unknown", String::new()), |rule: Rule| (rule.kind(), rule.name()));
            *self.refusals.entry(key).or_default() += times;
        }
    }
}
