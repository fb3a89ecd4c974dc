//! Which CPUs a container is told it has.
//!
//! A cpuset names CPUs, and the kernel itself tells a container's programs of it. A quota only
//! says how many CPUs' time there is. Then the container is told of as many CPUs as its quota
//! fills, out of those that it runs on, by their own numbers:
//!
//! - All of them can be given to sched_setaffinity(2).
//! - The highest is among them, so that a table with a place for each number up to the highest
//!   one has a place for each that getcpu(2) can return.

use crate::cpu_set::CpuSet;

/// Returns the CPUs that a container is told it has, of those it may run on, with a quota in
/// whole CPUs, rounded up.
pub(crate) fn told(effective: &CpuSet, quota: Option<u32>) -> CpuSet {
    let count = effective.count();
    let told = quota.map_or(count, |quota| quota.max(1).min(count));
    if told == count {
        return effective.clone();
    }
    let lowest = effective.iter().take(told.saturating_sub(1) as usize);
    CpuSet::from_cpus(lowest.chain(effective.highest()))
}

/// Returns what the container is told of `/sys/devices/system/cpu/possible`.
///
/// Programs size tables by its highest number and then use what getcpu(2) returns, and a cpuset
/// may be moved at run time. So the highest number is the kernel's, and their count that of the
/// CPUs told.
pub(crate) fn possible(told: &CpuSet, kernel: &CpuSet) -> CpuSet {
    let Some(highest) = kernel.highest().max(told.highest()) else {
        return CpuSet::default();
    };
    let others = told.count().saturating_sub(1) as usize;
    CpuSet::from_cpus(told.iter().take(others).chain([highest]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told_of(effective: &str, quota: Option<u32>) -> String {
        told(&CpuSet::parse(effective).unwrap(), quota).list()
    }

    #[test]
    fn a_cpuset_alone_is_told_as_it_is() {
        assert_eq!(told_of("2,5-7", None), "2,5-7");
        assert_eq!(told_of("2,5-7", Some(4)), "2,5-7");
        assert_eq!(told_of("2,5-7", Some(100)), "2,5-7");
    }

    #[test]
    fn a_quota_keeps_the_lowest_cpus_and_the_highest() {
        assert_eq!(told_of("0-7", Some(3)), "0-1,7");
        assert_eq!(told_of("0-7", Some(2)), "0,7");
        assert_eq!(told_of("0-7", Some(1)), "7");
        assert_eq!(told_of("0-7", Some(0)), "7");
        assert_eq!(told_of("2,5-7,64", Some(3)), "2,5,64");
        assert_eq!(told_of("", Some(3)), "");
    }

    #[test]
    fn possible_has_the_kernels_highest_and_the_count_of_those_told() {
        let of = |told, kernel| {
            possible(&CpuSet::parse(told).unwrap(), &CpuSet::parse(kernel).unwrap()).list()
        };
        assert_eq!(of("0-1", "0-1"), "0-1");
        assert_eq!(of("0-1,7", "0-127"), "0-1,127");
        assert_eq!(of("7", "0-127"), "127");
        assert_eq!(of("2-3", ""), "2-3");
    }
}
