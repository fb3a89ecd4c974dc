//! Gives the texts' makers what no kernel writes: they end with a text or with an error.

use std::fs;

use proptest::prelude::*;

use super::super::*;
use crate::types::ViewSource::{self, *};
use crate::views::recorded::Recorded;

const SOURCES: [ViewSource; 17] = [
    MemoryLimit,
    MemoryUsage,
    SwapLimit,
    SwapUsage,
    MemoryStat,
    CpuQuota,
    CpuPeriod,
    CpuStat,
    Cpus,
    IoBytes,
    IoOperations,
    CpuPressure,
    IoPressure,
    MemoryPressure,
    PidsLimit,
    PidsUsage,
    Threads,
];

const FILES: [File; 17] = [
    File::Cpuinfo,
    File::Diskstats,
    File::Loadavg,
    File::Meminfo,
    File::Stat,
    File::Swaps,
    File::Uptime,
    File::PressureCpu,
    File::PressureIo,
    File::PressureMemory,
    File::ThreadsMax,
    File::CpuOnline,
    File::CpuPresent,
    File::CpuPossible,
    File::NodeCpulist(0),
    File::NodeCpumap(0),
    File::NodeMeminfo(0),
];

const KERNELS: [&str; 7] =
    ["cpuinfo", "diskstats", "loadavg", "meminfo", "stat", "swaps", "sys/kernel/threads-max"];

/// Makes all texts twice, as a look after another goes other ways.
fn look(recorded: &Recorded, host: &mut Host, sysfs: &[u8]) {
    let sources = recorded.sources();
    let mut own = OwnState::default();
    for file in FILES.into_iter().chain(FILES) {
        let made = match file {
            File::CpuPossible
            | File::NodeCpulist(_)
            | File::NodeCpumap(_)
            | File::NodeMeminfo(_) => text_of_kernels(file, sysfs, &sources, host),
            _ => text(file, &sources, host, &mut own),
        };
        if let Ok(text) = made {
            assert!(text.len() <= 4 << 20, "{file:?}: {} bytes", text.len());
        }
    }
    let _ = sysinfo(&sources, host, &mut own);
    let _ = sources.has_memory_limit(host);
}

/// A text that is nearly one of the kernel's: some part of it is another.
fn nearly(text: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let others = prop_oneof![
        Just(Vec::new()),
        Just(b"18446744073709551615".to_vec()),
        Just(b"99999999999999999999999".to_vec()),
        Just(b"-1".to_vec()),
        Just(b"max".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\0\xff\xfe".to_vec()),
        Just(b"0-65535".to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    (any::<prop::sample::Index>(), any::<prop::sample::Index>(), others).prop_map(
        move |(from, to, other)| {
            let (from, to) = (from.index(text.len() + 1), to.index(text.len() + 1));
            let (from, to) = (from.min(to), from.max(to));
            [&text.as_bytes()[..from], &other, &text.as_bytes()[to..]].concat()
        },
    )
}

const CGROUP: &str = "254:0 Read 18446744073709551615\n254:0 rbytes=1 wios=18446744073709551615\n\
    user 18446744073709551615\nsystem 1\nuser_usec 1\nsystem_usec 5\nnice_usec 7\n\
    hierarchical_memory_limit 5\nhierarchical_memsw_limit 1\ntotal_cache 18446744073709551615\n\
    file 1\nswapcached 18446744073709551615\n";

const PROC: &str = "MemTotal: 18446744073709551615 kB\nMemFree: 1 kB\nSwapTotal: 5 kB\n\
    SwapFree: 18446744073709551615 kB\nNode 0 MemTotal: 5 kB\nNode 0 MemFree: 7 kB\n\
    cpu  1 2 3\ncpu0 1 2 3\ncpu65536 1\nprocesses 1\nprocessor\t: 70000\n\n254 0 vda 1 2 3\n\
    4294967295.99 0.00 0.-1 1/18446744073709551615 18446744073709551615\n";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn files_of_a_cgroup(
        v2: bool,
        at in any::<prop::sample::Index>(),
        one in nearly(CGROUP),
        above in nearly("100000 100000\n"),
    ) {
        let mut recorded = Recorded::new(v2);
        let source = SOURCES[at.index(SOURCES.len())];
        recorded.set(source, &one);
        recorded.above(source, &above);
        look(&recorded, &mut Host::new("/proc"), b"0-7\n");
    }

    #[test]
    fn numbers_of_a_cgroup(v2: bool, numbers in prop::collection::vec(any::<u64>(), 17)) {
        let mut recorded = Recorded::new(v2);
        for (source, number) in SOURCES.into_iter().zip(numbers) {
            if ![MemoryStat, Cpus].contains(&source) {
                recorded.set(source, format!("{number}\n"));
            }
        }
        look(&recorded, &mut Host::new("/proc"), b"0-7\n");
    }

    #[test]
    fn files_of_the_machine(v2: bool, text in nearly(PROC), node in nearly(PROC)) {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir_all(proc.path().join("sys/kernel")).unwrap();
        for name in KERNELS {
            fs::write(proc.path().join(name), &text).unwrap();
        }
        look(&Recorded::new(v2), &mut Host::new(proc.path()), &node);
        look(&Recorded::empty(v2), &mut Host::new(proc.path()), &node);
    }
}

#[test]
fn huge_files_are_read_up_to_a_bound() {
    let huge = vec![b'7'; 3 << 20];
    for v2 in [false, true] {
        let mut recorded = Recorded::new(v2);
        SOURCES.into_iter().for_each(|source| recorded.set(source, &huge));
        look(&recorded, &mut Host::new("/proc"), &huge);
    }
    let proc = tempfile::tempdir().unwrap();
    fs::create_dir_all(proc.path().join("sys/kernel")).unwrap();
    for name in KERNELS {
        fs::write(proc.path().join(name), &huge).unwrap();
    }
    look(&Recorded::new(true), &mut Host::new(proc.path()), &huge);
}
