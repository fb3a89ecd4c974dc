//! Reads recorded files of both versions.

use super::*;
use crate::views::recorded::Recorded;

fn host() -> Host {
    Host::new("/proc")
}

fn told(recorded: &Recorded) -> String {
    recorded.sources().cpus(&mut host()).unwrap().told.list()
}

#[test]
fn both_versions_say_the_same() {
    for v2 in [false, true] {
        let sources = Recorded::new(v2).sources();
        let cpus = sources.cpus(&mut host()).unwrap();
        assert_eq!((cpus.told.list(), cpus.by_quota), ("0,7".to_owned(), true));
        let memory = sources.memory().unwrap().unwrap();
        assert_eq!((memory.limit, memory.usage), (1 << 30, 200 << 20));
        assert_eq!((memory.swap_limit, memory.swap_usage), (256 << 20, 16 << 20));
        assert_eq!((memory.stat.file, memory.stat.anon), (Some(100 << 20), Some(50 << 20)));
        let time = sources.cpu_time().unwrap().unwrap();
        assert_eq!(time, CpuTime { user: 10_000_000, nice: 0, system: 5_000_000 });
        let io = DeviceIo { bytes: [1 << 20, 2 << 20, 4096], operations: [10, 20, 1] };
        assert_eq!(sources.io().unwrap(), BTreeMap::from([((254, 0), io)]));
        assert_eq!(sources.pids_limit().unwrap(), 100);
    }
}

#[test]
fn the_tightest_quota_of_all_levels_counts_and_all_are_read_at_each_look() {
    let mut v1 = Recorded::new(false);
    v1.above(CpuQuota, "-1\n");
    v1.above(CpuPeriod, "100000\n");
    v1.above(CpuQuota, "20000\n");
    v1.above(CpuPeriod, "20000\n");
    assert_eq!(told(&v1), "7");
    let mut v2 = Recorded::new(true);
    v2.above(CpuQuota, "max 100000\n");
    assert_eq!(told(&v2), "0,7");
    let sources = v2.sources();
    v2.set(CpuQuota, "500000 100000\n");
    assert_eq!(sources.cpus(&mut host()).unwrap().told.list(), "0-3,7");
    v2.above(CpuQuota, "100000 100000\n");
    assert_eq!(told(&v2), "7");
}

#[test]
fn without_a_quota_the_cpuset_counts_and_without_both_what_is_online() {
    for (v2, none) in [(false, "-1\n"), (true, "max 100000\n")] {
        let mut recorded = Recorded::new(v2);
        recorded.set(CpuQuota, none);
        let cpus = recorded.sources().cpus(&mut host()).unwrap();
        assert_eq!((cpus.told.list(), cpus.by_quota), ("0-7".to_owned(), false));
        // As long as nobody has written the cpuset of version 1.
        recorded.set(Cpus, "\n");
        let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
        assert_eq!(told(&recorded), online.trim());
        recorded.above(Cpus, "3-4\n");
        assert_eq!(told(&recorded.without(Cpus)), "3-4");
    }
}

#[test]
fn quotas_may_not_count_or_only_down_to_a_minimum() {
    let quota = |from_quota, minimum| {
        let sources = Recorded::new(true).sources().counting(from_quota, minimum);
        sources.cpus(&mut host()).unwrap().told.count()
    };
    assert_eq!([quota(true, 1), quota(true, 3), quota(true, 100), quota(false, 1)], [2, 3, 8, 8]);
}

#[test]
fn the_smallest_limit_of_all_levels_counts() {
    let mut v2 = Recorded::new(true);
    v2.above(MemoryLimit, "536870912\n");
    v2.above(MemoryLimit, "max\n");
    v2.above(SwapLimit, "0\n");
    v2.above(PidsLimit, "7\n");
    let sources = v2.sources();
    let memory = sources.memory().unwrap().unwrap();
    assert_eq!((memory.limit, memory.swap_limit), (512 << 20, 0));
    assert_eq!(sources.pids_limit().unwrap(), 7);
}

#[test]
fn no_limit_is_told_in_many_ways() {
    for (v2, limits) in [(true, vec!["max\n", "9223372036854771712\n"]), (false, vec!["x"])] {
        for text in limits {
            let mut recorded = Recorded::new(v2);
            if v2 {
                recorded.set(MemoryLimit, text);
                recorded.set(SwapLimit, text);
            } else {
                recorded.set_stat("hierarchical_memory_limit", 9_223_372_036_854_771_712);
                recorded.set_stat("hierarchical_memsw_limit", 9_223_372_036_854_771_712);
            }
            let memory = recorded.sources().memory().unwrap().unwrap();
            assert_eq!((memory.limit, memory.swap_limit), (u64::MAX, u64::MAX));
        }
    }
    let none = Recorded::new(true).without(PidsLimit).sources();
    assert_eq!(none.pids_limit().unwrap(), u64::MAX);
    assert_eq!(Recorded::new(true).without(MemoryUsage).sources().memory().unwrap(), None);
}

#[test]
fn of_many_threads_some_are_taken_from_all_over() {
    let mut recorded = Recorded::new(true);
    // A kernel's read ends after about 4 KiB, in the middle of a line or not.
    let threads: String = (1..2000).map(|id| format!("{id}\n")).collect();
    recorded.set(Threads, &threads);
    recorded.set(PidsUsage, "1999\n");
    let ThreadsSample { some, all } = recorded.sources().threads(&host()).unwrap().unwrap();
    assert_eq!(all, 1999);
    assert!((128..=SAMPLE).contains(&some.len()), "{}", some.len());
    assert!(some.iter().all(|id| (1..2000).contains(id)));
    assert!(some.last() > Some(&800), "{some:?}");

    recorded.set(Threads, "17\n0\n18\n19");
    recorded.set(PidsUsage, "1\n");
    let ThreadsSample { some, all } = recorded.sources().threads(&host()).unwrap().unwrap();
    assert_eq!((some, all), (vec![17, 18], 2));
}

#[test]
fn nice_time_is_apart_where_the_kernel_counts_it() {
    let mut recorded = Recorded::new(true);
    recorded.set(CpuStat, "usage_usec 9\nuser_usec 7\nsystem_usec 2\nnice_usec 3\n");
    let time = recorded.sources().cpu_time().unwrap().unwrap();
    assert_eq!(time, CpuTime { user: 4, nice: 3, system: 2 });
    assert_eq!(time.sum(), 9);
}

#[test]
fn an_error_names_the_file_and_what_was_expected() {
    let mut recorded = Recorded::new(true);
    recorded.set(CpuQuota, "many 100000\n");
    let error = recorded.sources().cpus(&mut host()).unwrap_err();
    assert!(error.to_string().contains("CpuQuota of a cgroup: expected a quota"), "{error}");
}

#[test]
fn a_large_file_is_read_whole() {
    let mut recorded = Recorded::new(true);
    let lines: String = (0..2000).map(|n| format!("8:{n} rbytes=512 rios=1\n")).collect();
    recorded.set(IoBytes, &lines);
    assert_eq!(recorded.sources().io().unwrap().len(), 2000);
}
