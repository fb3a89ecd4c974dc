//! What reading costs: a thousand reads a second of /proc/meminfo, /proc/stat and /proc/cpuinfo
//! by twenty containers, under each setup.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use integration::container::Container;
use integration::containerd::{Containerd, Version};
use integration::{host, sandbox};

use crate::setups::{Limits, Setup};

const CONTAINERS: u64 = 20;
/// Reads in a second, by all containers together.
const RATE: u64 = 1000;
const SECONDS: u64 = 10;
const LIMITS: Limits = Limits { millicpus: 500, bytes: 64 << 20 };
const FILES: [&str; 3] = ["/proc/meminfo", "/proc/stat", "/proc/cpuinfo"];

/// Measures each setup, and prints a table. Returns whether Palisade costs less than lxcfs.
pub fn measure(lxcfs: PathBuf, lxcfs_pid: i32) -> bool {
    let containerd = Containerd::start(Version::V2_1);
    println!(
        "{CONTAINERS} containers, {RATE} reads a second by all together, for {SECONDS} s; CPU time in each \
         second.\n"
    );
    println!("| | readers and kernel | who serves | together | one read, median | 99 of 100 |");
    println!("|---|---|---|---|---|---|");
    let mut together = Vec::new();
    for setup in Setup::all(&lxcfs) {
        let cost = cost(&containerd, &setup, lxcfs_pid);
        let each_second =
            |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3 / SECONDS as f64);
        println!(
            "| {} | {} | {} | {} | {:.1} µs | {:.1} µs |",
            setup.title(),
            each_second(cost.readers),
            each_second(cost.servers),
            each_second(cost.readers + cost.servers),
            cost.median as f64 / 1e3,
            cost.late as f64 / 1e3,
        );
        together.push(cost.readers + cost.servers);
    }
    together[2] < together[1]
}

struct Cost {
    /// Of the reading processes, in the kernel as well.
    readers: Duration,
    servers: Duration,
    /// The median of the containers' medians, in nanoseconds.
    median: u64,
    /// The same of what 99 of 100 reads take at most.
    late: u64,
}

fn cost(containerd: &Containerd, setup: &Setup, lxcfs_pid: i32) -> Cost {
    let this = std::env::current_exe().expect("the path of this program");
    let this = this.to_str().expect("an ASCII path");
    let containers: Vec<Container<'_>> = (0..CONTAINERS)
        .map(|number| {
            let id = format!("{}-{number}", setup.word());
            let rate = (RATE / CONTAINERS).to_string();
            let args = ["/views", "read", &rate, &SECONDS.to_string()];
            let container = containerd.container(&id, args).bind(this, "/views", &["bind", "ro"]);
            let container = container.spec(|spec| {
                let resources = LIMITS.resources();
                for controller in ["cpu", "memory"] {
                    spec["linux"]["resources"][controller] = resources[controller].clone();
                }
            });
            setup.apply(container).create()
        })
        .collect();
    let servers: Vec<i32> = match setup {
        Setup::Runc => Vec::new(),
        Setup::Lxcfs(_) => vec![lxcfs_pid],
        Setup::Palisade => {
            containers.iter().map(|container| sandbox::boot_of(container.shim()).pid).collect()
        }
    };
    let used = |pids: &[i32]| pids.iter().map(|pid| cpu_time(*pid)).sum::<Duration>();
    for container in &containers {
        container.start().expect("start a container");
    }
    // The starts are not to be counted: each reader waits for a second at first.
    thread::sleep(Duration::from_millis(900));
    let before = used(&servers);
    let outputs: Vec<(u32, String)> = containers.iter().map(Container::finish).collect();
    let servers = used(&servers).saturating_sub(before);
    let mut printed: Vec<[u64; 3]> =
        outputs.iter().map(|(code, output)| numbers(*code, output)).collect();
    let readers = printed.iter().map(|[used, ..]| Duration::from_nanos(*used)).sum();
    let mut middle = |field: usize| {
        printed.sort_by_key(|numbers| numbers[field]);
        printed[printed.len() / 2][field]
    };
    Cost { readers, servers, median: middle(1), late: middle(2) }
}

fn numbers(code: u32, output: &str) -> [u64; 3] {
    let numbers: Vec<u64> = output.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("a reader ended ({code}): {output}"))
}

/// Returns the CPU time of all threads of a process.
fn cpu_time(pid: i32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("read the threads").flatten();
    let threads = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    threads.map(host::cpu_time).sum()
}

/// Reads the files in turn, so many a second. Prints the CPU time of that, and the median of a
/// read's time and what 99 of 100 take at most, in nanoseconds.
pub fn read(rate: u64, seconds: u64) {
    thread::sleep(Duration::from_secs(1));
    let mut times = Vec::with_capacity((rate * seconds) as usize);
    let mut content = Vec::with_capacity(1 << 16);
    let began = Instant::now();
    let used = host::cpu_time(std::process::id().cast_signed());
    for number in 0..rate * seconds {
        let due = began + Duration::from_secs(1) * number as u32 / rate as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        content.clear();
        let from = Instant::now();
        let path = FILES[number as usize % FILES.len()];
        let read = File::open(path).and_then(|mut file| file.read_to_end(&mut content));
        times.push(from.elapsed().as_nanos() as u64);
        assert!(read.is_ok_and(|length| length > 0), "{path} cannot be read");
    }
    let used = host::cpu_time(std::process::id().cast_signed()) - used;
    times.sort_unstable();
    println!("{} {} {}", used.as_nanos(), times[times.len() / 2], times[times.len() * 99 / 100]);
}

/// Keeps a file open, reads it from its start again and again, and prints its first line
/// whenever that has changed.
pub fn keep(path: &Path) -> ! {
    let file = File::open(path).expect("open the file");
    let mut last = String::new();
    let mut content = vec![0; 1 << 16];
    loop {
        let length = file.read_at(&mut content, 0).expect("read the file");
        let text = String::from_utf8_lossy(&content[..length]);
        let first = text.lines().next().unwrap_or_default();
        if first != last {
            println!("{first}");
            first.clone_into(&mut last);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Reads the files in turn, without a pause. Prints `reads` when it has read each once.
pub fn hammer() -> ! {
    let mut content = Vec::with_capacity(1 << 16);
    for round in 0_u64.. {
        for path in FILES {
            content.clear();
            let read = File::open(path).and_then(|mut file| file.read_to_end(&mut content));
            read.unwrap_or_else(|e| panic!("read {path}: {e}"));
        }
        if round == 0 {
            println!("reads");
        }
    }
    unreachable!("no end of numbers")
}
