//! What the texts say, and that they say the same.

use std::fs;

use super::super::*;
use crate::views::files::memory::kib;
use crate::views::files::times::Times;
use crate::views::recorded::Recorded;
use crate::views::sources::CpuTime;

const MIB: u64 = 1024;

fn meminfo(recorded: &Recorded) -> String {
    let machine = fs::read_to_string("/proc/meminfo").unwrap();
    super::super::meminfo::text(&recorded.sources(), &machine).unwrap()
}

#[track_caller]
fn says(meminfo: &str, name: &str, expected: u64) {
    assert_eq!(kib(meminfo, name), Some(expected), "{name} of {meminfo}");
}

#[test]
fn meminfo_says_what_the_limit_leaves() {
    for v2 in [false, true] {
        let text = meminfo(&Recorded::new(v2));
        says(&text, "MemTotal", 1024 * MIB);
        says(&text, "MemFree", 824 * MIB);
        // With 99 MiB of caches, and 6 MiB of the kernel's, which version 1 does not count.
        says(&text, "MemAvailable", (824 + 99 + if v2 { 6 } else { 0 }) * MIB);
        says(&text, "Cached", 100 * MIB);
        says(&text, "Buffers", 0);
        says(&text, "Active", 59 * MIB);
        says(&text, "Inactive", 90 * MIB);
        says(&text, "AnonPages", 50 * MIB);
        says(&text, "AnonHugePages", 4 * MIB);
        says(&text, "Shmem", MIB);
        says(&text, "Dirty", 4);
        says(&text, "Writeback", 8);
        if v2 {
            says(&text, "Slab", 8 * MIB);
            says(&text, "SReclaimable", 6 * MIB);
            says(&text, "KernelStack", 320);
            says(&text, "PageTables", MIB);
            says(&text, "Percpu", 4);
        }
    }
}

#[test]
fn a_machine_without_swap_gives_a_container_none() {
    let machine = fs::read_to_string("/proc/meminfo").unwrap();
    let machine: String = machine
        .split_inclusive('\n')
        .map(|line| match line.split(':').next() {
            Some("SwapTotal") => "SwapTotal:             0 kB\n",
            Some("SwapFree") => "SwapFree:              0 kB\n",
            _ => line,
        })
        .collect();
    for v2 in [false, true] {
        let sources = Recorded::new(v2).sources();
        let text = super::super::meminfo::text(&sources, &machine).unwrap();
        says(&text, "SwapTotal", 0);
        says(&text, "SwapFree", 0);
        let larger = machine
            .replace("SwapTotal:             0", "SwapTotal:       4194304")
            .replace("SwapFree:              0", "SwapFree:        4190000");
        let text = super::super::meminfo::text(&sources, &larger).unwrap();
        says(&text, "SwapTotal", 256 * MIB);
        says(&text, "SwapFree", 240 * MIB);
    }
}

#[test]
fn free_memory_is_never_more_than_available_nor_that_than_all() {
    let machine = fs::read_to_string("/proc/meminfo").unwrap();
    let available = kib(&machine, "MemAvailable").unwrap();
    let total = kib(&machine, "MemTotal").unwrap();
    for limit in [0, 1, 4096, 64 << 20, 200 << 20, 1 << 30, (total - 1) * 1024] {
        for usage in [0, 1, 64 << 20, 1 << 40, u64::MAX] {
            for caches in [0, 64 << 20, 1 << 50, u64::MAX] {
                let mut recorded = Recorded::new(true);
                recorded.set(ViewSource::MemoryLimit, limit.to_string());
                recorded.set(ViewSource::MemoryUsage, usage.to_string());
                recorded.set_stat("inactive_file", caches);
                let text = super::super::meminfo::text(&recorded.sources(), &machine).unwrap();
                let value = |name| kib(&text, name).unwrap();
                let told = [value("MemFree"), value("MemAvailable"), value("MemTotal")];
                assert!(told.is_sorted(), "{limit} {usage} {caches}: {told:?}");
                assert_eq!(told[2], limit / 1024);
                assert!(told[1] <= available, "more than the machine has: {told:?}");
            }
        }
    }
}

#[test]
fn the_next_text_says_what_was_changed() {
    let mut recorded = Recorded::new(true);
    let sources = recorded.sources();
    let mut host = Host::new("/proc");
    let mut own = OwnState::default();
    let mut total = || {
        let text = text(File::Meminfo, &sources, &mut host, &mut own).unwrap();
        kib(str::from_utf8(&text).unwrap(), "MemTotal").unwrap()
    };
    assert_eq!(total(), 1024 * MIB);
    recorded.set(ViewSource::MemoryLimit, "67108864\n");
    assert_eq!(total(), 64 * MIB);
}

#[test]
fn sysinfo_says_what_the_files_say() {
    let mut recorded = Recorded::new(true);
    recorded.set(ViewSource::Threads, format!("{}\n", std::process::id()));
    let sources = recorded.sources();
    let (mut host, mut own) = (Host::new("/proc"), OwnState::default());
    let SystemInfo { uptime, loads, totalram, freeram, sharedram, procs, mem_unit, .. } =
        sysinfo(&sources, &mut host, &mut own).unwrap();
    assert_eq!([totalram, freeram, sharedram], [1024, 824, 1].map(|mib| mib << 20));
    assert_eq!((procs, mem_unit, loads), (3, 1, [0; 3]));
    let kernels = rustix::system::sysinfo();
    assert!(uptime.abs_diff(u64::try_from(kernels.uptime).unwrap()) <= 1);
    assert!(sources.has_memory_limit(&mut host).unwrap());

    // Without a cgroup: the machine's.
    let none = Recorded::empty(true).sources();
    assert!(!none.has_memory_limit(&mut host).unwrap());
    let info = sysinfo(&none, &mut host, &mut OwnState::default()).unwrap();
    assert_eq!(info.totalram, kernels.totalram * u64::from(kernels.mem_unit));
    let load = |fixed: u64| fixed as f64 / 65536.0;
    for (ours, kernels) in info.loads.iter().zip(kernels.loads) {
        assert!((load(*ours) - load(kernels)).abs() < 0.5, "{ours}, the kernel {kernels}");
    }
}

fn used(user: u64, system: u64) -> CpuTime {
    CpuTime { user, nice: 0, system }
}

/// Sums the time of each CPU up.
fn sum(times: &Times) -> [u64; 4] {
    (0..64).map(|cpu| times.of(cpu)).fold([0; 4], |sum, spent| {
        let new = [spent.user, spent.nice, spent.system, spent.idle];
        std::array::from_fn(|at| sum[at] + new[at])
    })
}

#[test]
fn what_all_cpus_spend_is_what_each_spends_and_nothing_is_lost() {
    let mut times = Times::default();
    let three = CpuSet::from_cpus([0, 1, 7]);
    times.look(&three, used(1_000_001, 500_000), Duration::from_secs(10));
    let all = times.all;
    assert_eq!((all.user, all.system, all.idle), (1_000_001, 500_000, 28_499_999));
    assert_eq!(sum(&times), [all.user, all.nice, all.system, all.idle]);
    let each = [0, 1, 7].map(|cpu| times.of(cpu).user);
    assert_eq!(each, [333_333, 333_334, 333_334]);
}

#[test]
fn no_time_becomes_less_whatever_changes() {
    let mut times = Times::default();
    let sets = ["0-7", "3", "0-1,7", "4-5", "0-7"].map(|list| CpuSet::parse(list).unwrap());
    let mut before = (Times::default().all, [Times::default().all; 8]);
    // At one look the cgroup says less than before, and at one the clock.
    let looks = [(100, 10), (400, 11), (300, 12), (9_000, 11), (9_001, 20)];
    for (set, (millis, seconds)) in sets.iter().zip(looks) {
        times.look(set, used(millis * 1000, millis * 500), Duration::from_secs(seconds));
        let now = (times.all, std::array::from_fn(|cpu| times.of(u32::try_from(cpu).unwrap())));
        for (old, new) in
            [&before.0].into_iter().chain(&before.1).zip([&now.0].into_iter().chain(&now.1))
        {
            assert!(new.user >= old.user && new.system >= old.system && new.idle >= old.idle);
        }
        assert_eq!(sum(&times), [now.0.user, now.0.nice, now.0.system, now.0.idle]);
        before = now;
    }
}

#[test]
fn time_used_ahead_of_the_clock_is_taken_from_later_idle_time() {
    let mut times = Times::default();
    let one = CpuSet::from_cpus([0]);
    times.look(&one, used(0, 0), Duration::from_secs(1));
    // A tick of 10 ms shows after 1 ms, and nothing more in the 99 ms that follow.
    times.look(&one, used(10_000, 0), Duration::from_millis(1001));
    assert_eq!(times.all.idle, 1_000_000);
    times.look(&one, used(10_000, 0), Duration::from_millis(1100));
    assert_eq!(times.all.idle, 1_090_000);
}

#[test]
fn stat_uptime_and_their_cpus_agree() {
    let mut recorded = Recorded::new(true);
    recorded.set(ViewSource::Threads, format!("{}\n", std::process::id()));
    let sources = recorded.sources();
    let (mut host, mut own) = (Host::new("/proc"), OwnState::default());
    let mut of =
        |file| String::from_utf8(text(file, &sources, &mut host, &mut own).unwrap()).unwrap();
    let (stat, uptime) = (of(File::Stat), of(File::Uptime));
    let ticks = |name: &str| -> Vec<u64> {
        let line = stat.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        line.split_ascii_whitespace().skip(1).map(|field| field.parse().unwrap()).collect()
    };
    let (all, first, last) = (ticks("cpu"), ticks("cpu0"), ticks("cpu7"));
    assert_eq!((all[0], all[2]), (1000, 500));
    for (at, all) in all.iter().enumerate() {
        // Each is rounded by itself.
        assert!((first[at] + last[at]).abs_diff(*all) <= 1, "{stat}");
    }
    let hundredths: Vec<u64> =
        uptime.split_ascii_whitespace().map(|f| f.replace('.', "").parse().unwrap()).collect();
    // Both CPUs' time, less the 15 s that the container used.
    assert!((hundredths[0] * 2 - 1500).abs_diff(hundredths[1]) <= 2, "{uptime}");
    assert!(hundredths[1] - all[3] < 500, "{uptime}{stat}");

    let kernels = fs::read_to_string("/proc/stat").unwrap();
    let line = |text: &str, name: &str| -> Option<String> {
        text.lines().find(|line| line.starts_with(name)).map(str::to_owned)
    };
    assert_eq!(line(&stat, "btime "), line(&kernels, "btime "));
    let last_pid = fs::read_to_string("/proc/loadavg").unwrap();
    let last_pid: u64 = last_pid.split_ascii_whitespace().last().unwrap().parse().unwrap();
    assert!(ticks("processes")[0].abs_diff(last_pid) < 5000, "{stat}");
}

#[test]
fn forks_count_on_when_process_ids_begin_again() {
    let mut forks = stat::Forks::default();
    assert_eq!([30, 100, 40, 41].map(|last| forks.look(last)), [30, 100, 140, 141]);
}

#[test]
fn threads_that_run_are_seen_and_scaled_to_all() {
    // Of two threads one runs, of those below the cgroup nothing is known.
    let mut child =
        std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let mut sleeps = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let mut recorded = Recorded::new(true);
    recorded.set(ViewSource::Threads, format!("{}\n{}\n", child.id(), sleeps.id()));
    recorded.set(ViewSource::PidsUsage, "20\n");
    let (sources, mut host) = (recorded.sources(), Host::new("/proc"));
    let loadavg = loop {
        let mut own = OwnState::default();
        let text = text(File::Loadavg, &sources, &mut host, &mut own).unwrap();
        let text = String::from_utf8(text).unwrap();
        // As long as the second has not fallen asleep, it runs, too.
        if !text.contains(" 20/20 ") {
            break text;
        }
    };
    child.kill().unwrap();
    sleeps.kill().unwrap();
    let _ = (child.wait(), sleeps.wait());
    // Ten times the one that runs, and the reader.
    assert!(loadavg.starts_with("0.00 0.00 0.00 11/20 "), "{loadavg}");
}
