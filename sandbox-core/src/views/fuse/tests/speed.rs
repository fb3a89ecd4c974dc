//! What a look costs.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::mount::OpenTreeFlags;

use super::served::Mounted;
use crate::views::File;

/// What a newborn binds.
const NAMES: [&str; 11] = [
    "cpu",
    "node",
    "pressure",
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "threads-max",
];

/// Returns the median time of a call.
fn median(mut call: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..2000)
        .map(|_| {
            let begin = Instant::now();
            call();
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn look(path: &Path) {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    black_box(rustix::io::read(&file, &mut [0; 8192]).unwrap());
}

/// Prints figures: they are the machine's, so no bound is asserted.
#[test]
#[ignore = "measures: cargo nextest run --lib --run-ignored only --no-capture -E 'test(costs)'"]
fn what_looks_cost() {
    let mounted = Mounted::new();
    let text = std::fs::read("/proc/meminfo").unwrap();
    mounted.tell(move |_, texts| texts.say(1, File::Meminfo, text));
    for path in [mounted.path("1/meminfo").as_path(), Path::new("/proc/meminfo")] {
        println!("{}", path.display());
        println!("  open, read, close: {:?}", median(|| look(path)));
        let file = rustix::fs::open(path, OFlags::RDONLY, Mode::empty()).unwrap();
        let read = || _ = black_box(rustix::io::pread(&file, &mut [0; 8192], 0).unwrap());
        println!("  pread: {:?}", median(read));
        println!("  stat: {:?}", median(|| _ = rustix::fs::stat(path).unwrap()));
    }
    for path in ["cpu/online", "cpu/cpu0/topology/core_id", "node/node0/vmstat"] {
        println!("{path}");
        println!("  ours: {:?}", median(|| look(&mounted.path("1").join(path))));
        println!(
            "  the kernel's: {:?}",
            median(|| look(&Path::new("/sys/devices/system").join(path)))
        );
    }
    println!("what a newborn asks for");
    mounted.tell(|server, _| (1000..3000).for_each(|serial| server.add_container(serial)));
    let (mut serial, mut opened, mut listed, mut bound) = (1000, vec![], vec![], vec![]);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let whole = median(|| {
        let begin = Instant::now();
        let path = mounted.path(&serial.to_string());
        let container = rustix::fs::open(path, flags, Mode::empty()).unwrap();
        opened.push(begin.elapsed());
        let begin = Instant::now();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        RawDir::new(&container, &mut buffer).next().unwrap().unwrap();
        listed.push(begin.elapsed());
        let begin = Instant::now();
        for name in NAMES {
            let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC;
            rustix::mount::open_tree(&container, name, flags).unwrap();
        }
        bound.push(begin.elapsed());
        serial += 1;
    });
    println!("  all: {whole:?}");
    for (what, mut times) in [("open", opened), ("list", listed), ("11 open_tree", bound)] {
        times.sort_unstable();
        println!("  {what}: {:?}", times[times.len() / 2]);
    }
}
