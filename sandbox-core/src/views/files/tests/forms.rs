//! Holds the form of each text to a parser that takes the kernel's own.

use std::fs;

use super::super::*;
use crate::views::recorded::Recorded;

/// What a file consists of: the name of each line, and the number of its values.
type Form = Vec<(String, usize)>;

fn kernels(name: &str) -> String {
    fs::read_to_string(format!("/proc/{name}")).unwrap()
}

/// Makes a text for a container with limits, of this version.
fn ours(file: File, v2: bool) -> String {
    ours_of(file, &Recorded::new(v2))
}

fn ours_of(file: File, recorded: &Recorded) -> String {
    let (mut host, mut own) = (Host::new("/proc"), OwnState::default());
    let text = text(file, &recorded.sources(), &mut host, &mut own).unwrap();
    String::from_utf8(text).unwrap()
}

/// Checks that a text is one of the kernel's to the letter: what `write` makes of each line's
/// values is that line.
fn to_the_letter(text: &str, write: impl Fn(&[&str]) -> String) -> Form {
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        assert_eq!(write(&fields), line);
        (fields[0].to_owned(), fields.len() - 1)
    };
    text.lines().map(line).collect()
}

fn number(field: &str) -> u64 {
    field.parse().unwrap_or_else(|_| panic!("expected a number, found {field:?}"))
}

fn meminfo(text: &str) -> Form {
    to_the_letter(text, |fields| match fields {
        [name, value] => format!("{name:<16}{:>8}", number(value)),
        [name, value, "kB"] => format!("{name:<16}{:>8} kB", number(value)),
        other => panic!("{other:?}"),
    })
}

/// Checks that the lines of one text are all in another, in that order.
fn is_part_of(ours: &Form, kernels: &Form) {
    let mut rest = kernels.iter();
    for line in ours {
        assert!(rest.any(|kernels| kernels == line), "{line:?} is not there, or not in order");
    }
}

#[test]
fn meminfo_has_the_kernels_lines_but_those_that_are_not_known() {
    let theirs = meminfo(&kernels("meminfo"));
    for v2 in [false, true] {
        let ours = meminfo(&ours(File::Meminfo, v2));
        is_part_of(&ours, &theirs);
        let names: Vec<&str> = ours.iter().map(|(name, _)| name.as_str()).collect();
        for known in [
            "MemTotal:",
            "MemFree:",
            "MemAvailable:",
            "Buffers:",
            "Cached:",
            "SwapCached:",
            "Active:",
            "Inactive:",
            "Active(file):",
            "Unevictable:",
            "SwapTotal:",
            "SwapFree:",
            "Dirty:",
            "AnonPages:",
            "Mapped:",
            "Shmem:",
            "VmallocTotal:",
            "AnonHugePages:",
            "HugePages_Total:",
            "Hugepagesize:",
        ] {
            assert!(names.contains(&known), "{known}");
        }
        assert_eq!(names.contains(&"Slab:"), v2);
        assert!(!names.contains(&"Committed_AS:") && !names.contains(&"CommitLimit:"));
    }
}

#[test]
fn stat_has_the_kernels_lines_and_as_many_cpus_as_told() {
    let form = |text: &str| {
        let form = to_the_letter(text, |fields| match fields {
            ["cpu", values @ ..] => format!("cpu  {}", values.join(" ")),
            other => other.join(" "),
        });
        text.split_ascii_whitespace()
            .filter(|field| !field.starts_with(|first: char| first.is_ascii_alphabetic()))
            .for_each(|value| _ = number(value));
        form
    };
    let theirs = form(&kernels("stat"));
    for v2 in [false, true] {
        let ours = form(&ours(File::Stat, v2));
        let cpus = |form: &Form| -> Form {
            form.iter().filter(|(name, _)| name.starts_with("cpu")).cloned().collect()
        };
        let others = |form: &Form| -> Form {
            form.iter().filter(|(name, _)| !name.starts_with("cpu")).cloned().collect()
        };
        assert_eq!(others(&ours), others(&theirs));
        let values = theirs[0].1;
        let expected = ["cpu", "cpu0", "cpu7"].map(|name| (name.to_owned(), values));
        assert_eq!(cpus(&ours), expected);
    }
}

#[test]
fn cpuinfo_is_the_kernels_for_the_cpus_told() {
    let mut recorded = Recorded::new(true);
    recorded.set(ViewSource::Cpus, kernels_online());
    recorded.set(ViewSource::CpuQuota, "max 100000\n");
    let fixed = |text: &str| -> String {
        text.split_inclusive('\n').filter(|line| !line.starts_with("cpu MHz")).collect()
    };
    assert_eq!(fixed(&ours_of(File::Cpuinfo, &recorded)), fixed(&kernels("cpuinfo")));
    recorded.set(ViewSource::Cpus, "0\n");
    let one = ours_of(File::Cpuinfo, &recorded);
    let all = kernels("cpuinfo");
    let first = all.split_inclusive("\n\n").next().unwrap();
    assert_eq!(fixed(&one), fixed(first));
}

fn kernels_online() -> String {
    fs::read_to_string("/sys/devices/system/cpu/online").unwrap()
}

#[test]
fn uptime_has_two_times_in_hundredths() {
    let form = |text: &str| {
        to_the_letter(text, |fields| {
            for field in fields {
                let (whole, part) = field.split_once('.').unwrap();
                assert_eq!(part.len(), 2);
                number(part);
                assert_eq!(number(whole).to_string(), whole);
            }
            fields.join(" ")
        })
        .iter()
        .map(|(_, values)| *values)
        .collect::<Vec<_>>()
    };
    assert_eq!(form(&ours(File::Uptime, true)), form(&kernels("uptime")));
}

#[test]
fn loadavg_has_averages_threads_and_the_last_process() {
    let form = |text: &str| {
        let lines = to_the_letter(text, |fields| {
            let [one, five, fifteen, threads, last] = fields else { panic!("{fields:?}") };
            for average in [one, five, fifteen] {
                assert_eq!(average.split_once('.').unwrap().1.len(), 2);
            }
            let (running, all) = threads.split_once('/').unwrap();
            assert!(number(running) <= number(all));
            number(last);
            fields.join(" ")
        });
        assert_eq!(lines.len(), 1);
    };
    form(&kernels("loadavg"));
    let mut recorded = Recorded::new(true);
    recorded.set(ViewSource::Threads, format!("{}\n", std::process::id()));
    form(&ours_of(File::Loadavg, &recorded));
}

#[test]
fn diskstats_has_lines_as_wide_as_the_kernels() {
    let form = |text: &str| {
        to_the_letter(text, |fields| {
            let (numbers, values) = (&fields[..2], &fields[2..]);
            format!("{:>4} {:>7} {}", numbers[0], numbers[1], values.join(" "))
        })
    };
    let theirs = kernels("diskstats");
    let widths = form(&theirs);
    let disk = theirs.lines().last().unwrap().split_ascii_whitespace().take(2).collect::<Vec<_>>();
    let disk = disk.join(":");
    let mut recorded = Recorded::new(true);
    recorded
        .set(ViewSource::IoBytes, format!("999:9 rbytes=1\n{disk} rbytes=1024 rios=2 wios=0\n"));
    let text = ours_of(File::Diskstats, &recorded);
    let ours = form(&text);
    assert_eq!(ours, widths[widths.len() - 1..]);
    let values: Vec<&str> = text.split_ascii_whitespace().skip(3).take(4).collect();
    assert_eq!(values, ["2", "0", "2", "0"]);
}

#[test]
fn pressure_has_the_kernels_lines() {
    let form = |text: &str| {
        to_the_letter(text, |fields| {
            let keys: Vec<&str> = fields.iter().map(|f| f.split('=').next().unwrap()).collect();
            assert_eq!(keys[1..], ["avg10", "avg60", "avg300", "total"]);
            fields.join(" ")
        })
    };
    let theirs = form(&kernels("pressure/cpu"));
    let own = ours(File::PressureCpu, true);
    assert_eq!(form(&own), theirs);
    assert!(own.contains("some avg10=1.25 "), "{own}");
    // Version 1 has none: the machine's.
    for file in [File::PressureCpu, File::PressureIo, File::PressureMemory] {
        assert_eq!(form(&ours(file, false)), theirs);
    }
}

#[test]
fn swaps_has_the_kernels_columns() {
    // What Linux writes for a partition and for a file.
    let theirs = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
        /dev/dm-1                               partition\t8388604\t\t1024\t\t-2\n\
        /swapfile                               file\t\t20971516\t0\t\t-3\n";
    let columns = |line: &str| -> Vec<usize> {
        let mut at = 0;
        let mut begins = Vec::new();
        let mut before = b' ';
        for letter in line.bytes() {
            let blank = matches!(letter, b' ' | b'\t');
            if !blank && matches!(before, b' ' | b'\t') {
                begins.push(at);
            }
            at = if letter == b'\t' { at / 8 * 8 + 8 } else { at + 1 };
            before = letter;
        }
        begins
    };
    let expected = columns(theirs.lines().nth(1).unwrap());
    let proc = recorded_proc(theirs);
    let mut host = Host::new(proc.path());
    let text = swaps::text(&Recorded::new(true).sources(), &mut host).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], theirs.lines().next().unwrap());
    assert_eq!(lines.len(), 2);
    assert_eq!(columns(lines[1]), expected);
    let values: Vec<&str> = lines[1].split_ascii_whitespace().collect();
    assert_eq!(values, ["none", "virtual", "262144", "16384", "0"]);
    let mut none = Recorded::new(true);
    none.set(ViewSource::SwapLimit, "0\n");
    assert_eq!(swaps::text(&none.sources(), &mut host).unwrap().lines().count(), 1);
}

/// Makes a proc of a machine with 4 GiB of swap.
fn recorded_proc(swaps: &str) -> tempfile::TempDir {
    let proc = tempfile::tempdir().unwrap();
    let meminfo = kernels("meminfo")
        .replace("SwapTotal:             0 kB", "SwapTotal:       4194304 kB")
        .replace("SwapFree:              0 kB", "SwapFree:        4190000 kB");
    fs::write(proc.path().join("meminfo"), meminfo).unwrap();
    fs::write(proc.path().join("swaps"), swaps).unwrap();
    proc
}

#[test]
fn a_container_without_limits_has_the_kernels_memory_and_swap() {
    let mut recorded = Recorded::new(true);
    recorded.set(ViewSource::MemoryLimit, "max\n");
    recorded.set(ViewSource::SwapLimit, "max\n");
    assert_eq!(ours_of(File::Swaps, &recorded), kernels("swaps"));
    let (ours, theirs) = (ours_of(File::Meminfo, &recorded), kernels("meminfo"));
    assert_eq!(meminfo(&ours), meminfo(&theirs));
    assert_eq!(ours.lines().next(), theirs.lines().next());
    let sources = recorded.sources();
    assert!(!sources.has_memory_limit(&mut Host::new("/proc")).unwrap());
}

#[test]
fn numbers_and_lists_are_one_line() {
    assert_eq!(ours(File::ThreadsMax, true), "100\n");
    let free = Recorded::new(true).without(ViewSource::PidsLimit);
    assert_eq!(ours_of(File::ThreadsMax, &free), kernels("sys/kernel/threads-max"));
    assert_eq!(ours(File::CpuOnline, false), "0,7\n");
    assert_eq!(ours(File::CpuPresent, true), "0,7\n");
}

#[test]
fn a_node_has_the_cpus_told_and_no_more_memory_than_the_container() {
    let sources = Recorded::new(true).sources();
    let mut host = Host::new("/proc");
    let mut of = |file, kernels: &str| {
        let text = text_of_kernels(file, kernels.as_bytes(), &sources, &mut host).unwrap();
        String::from_utf8(text).unwrap()
    };
    assert_eq!(of(File::NodeCpulist(0), "0-3\n"), "0\n");
    assert_eq!(of(File::NodeCpulist(1), "4-7\n"), "7\n");
    assert_eq!(of(File::NodeCpumap(1), "f0\n"), "80\n");
    assert_eq!(of(File::NodeCpumap(0), "0000000f\n"), "00000001\n");
    assert_eq!(of(File::CpuPossible, "0-127\n"), "0,127\n");
    let theirs = fs::read_to_string("/sys/devices/system/node/node0/meminfo").unwrap();
    let form = |text: &str| {
        to_the_letter(text, |fields| match fields {
            [node, id, name, value] => format!("{node} {id} {name:<17}{:>5}", number(value)),
            [node, id, name, value, "kB"] => {
                format!("{node} {id} {name:<16}{:>8} kB", number(value))
            }
            other => panic!("{other:?}"),
        });
        text.lines().map(|line| (line.split(':').next().unwrap().to_owned(), 0)).collect::<Form>()
    };
    let ours = of(File::NodeMeminfo(0), &theirs);
    is_part_of(&form(&ours), &form(&theirs));
    assert!(ours.starts_with("Node 0 MemTotal:        1048576 kB\n"), "{ours}");
}

#[test]
fn a_container_that_has_all_cpus_is_told_of_those_that_are_possible_as_the_kernel_does() {
    let mut all = Recorded::new(true);
    all.set(ViewSource::Cpus, kernels_online());
    all.set(ViewSource::CpuQuota, "max 100000\n");
    let mut host = Host::new("/proc");
    let text = text_of_kernels(File::CpuPossible, b"0-127\n", &all.sources(), &mut host).unwrap();
    assert_eq!(text, b"0-127\n");
}

#[test]
fn a_file_of_sysfs_is_not_made_of_nothing() {
    let (sources, mut host) = (Recorded::new(true).sources(), Host::new("/proc"));
    let mut own = OwnState::default();
    let error = text(File::NodeCpulist(0), &sources, &mut host, &mut own).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let error = text_of_kernels(File::Meminfo, b"", &sources, &mut host).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}
