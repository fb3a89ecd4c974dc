//! Calls what tells of CPUs and memory. Tests bind this program into a container, where boot
//! answers these calls: what it is told, how long that takes, and how boot fares if callers do
//! what they can against it.

use std::hint::black_box;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().expect("a number");
    match args[..] {
        ["told"] => told(),
        ["loop", name, calls] => measure(name, number(calls)),
        ["race", seconds] => race(Duration::from_secs(number(seconds))),
        ["storm", processes, seconds] => storm(number(processes), number(seconds)),
        ["for-ever"] => loop {
            let _ = affinity(0);
            memory();
        },
        _ => panic!("told, loop NAME CALLS, race SECONDS, storm PROCESSES SECONDS, or for-ever"),
    }
    println!("done");
}

/// Returns the CPUs that a thread may run on, and the length of the kernel's mask.
fn affinity(thread: i32) -> Result<(Vec<u32>, usize), i32> {
    let mut mask = [0u64; 128];
    // SAFETY: the mask has the given length and outlives the call.
    let written = unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, thread, size_of_val(&mask), mask.as_mut_ptr())
    };
    let Ok(written) = usize::try_from(written) else {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
    };
    let has = |cpu: &u32| mask[*cpu as usize / 64] >> (cpu % 64) & 1 == 1;
    Ok(((0..128 * 64).filter(has).collect(), written))
}

fn memory() -> u64 {
    // SAFETY: all bytes may be zero.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call.
    assert_eq!(unsafe { libc::sysinfo(&raw mut info) }, 0, "sysinfo");
    info.totalram * u64::from(info.mem_unit)
}

fn own_thread() -> i32 {
    // SAFETY: the call takes no argument.
    unsafe { libc::gettid() }
}

fn told() {
    let (cpus, length) = affinity(0).expect("sched_getaffinity");
    println!("cpus {cpus:?} in {length} bytes");
    let main = own_thread();
    println!("by its number {:?}", affinity(main).expect("sched_getaffinity").0);
    let other = thread::spawn(move || affinity(main).expect("sched_getaffinity").0);
    println!("by another thread {:?}", other.join().expect("a thread"));
    println!("of no thread {:?}", affinity(i32::MAX).map(|_| ()));
    println!("memory {}", memory());
}

/// Prints what a call takes: the fastest of bursts, and the mean.
fn measure(name: &str, calls: u64) {
    let one = || match name {
        "sched_getaffinity" => {
            let mut mask = [0u64; 16];
            // SAFETY: the mask has the given length and outlives the call.
            unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, 128, mask.as_mut_ptr()) };
            black_box(&mask);
        }
        "sysinfo" => {
            black_box(memory());
        }
        // SAFETY: the call takes no argument.
        _ => _ = black_box(unsafe { libc::syscall(libc::SYS_getppid) }),
    };
    let (begun, mut fastest) = (Instant::now(), Duration::MAX);
    let bursts = (calls / 500).max(1);
    for _ in 0..bursts {
        let burst = Instant::now();
        (0..500).for_each(|_| one());
        fastest = fastest.min(burst.elapsed() / 500);
    }
    let mean = begun.elapsed() / u32::try_from(bursts * 500).expect("not that many");
    println!("{name} {} ns, {} ns in the mean", fastest.as_nanos(), mean.as_nanos());
}

/// A page that some threads have written and others map anew.
struct Page(usize);

const SIZE: usize = 4096;

impl Page {
    fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping takes no other's place.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED, "mmap");
        Self(at as usize)
    }

    /// Maps something else there.
    fn change(&self, round: u64, files: &[i32]) {
        let write = libc::PROT_READ | libc::PROT_WRITE;
        let fixed = libc::MAP_PRIVATE | libc::MAP_FIXED;
        let anonymous = fixed | libc::MAP_ANONYMOUS;
        let file = files[round as usize / 4 % files.len()];
        let (access, flags, file) = match round % 4 {
            0 => (write, anonymous, -1),
            1 => (write, fixed, file),
            2 => (libc::PROT_NONE, anonymous, -1),
            _ => (libc::PROT_READ, fixed, file),
        };
        // SAFETY: this page holds nothing of Rust's.
        unsafe { libc::mmap(self.0 as *mut _, SIZE, access, flags, file, 0) };
    }
}

/// Makes calls into memory that other threads map anew all the time: as files of boot's too, as
/// what may not be written, and as nothing.
fn race(time: Duration) {
    let page = Page::new();
    let paths = ["/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu/online", "/calls"];
    let files: Vec<i32> = paths
        .iter()
        .filter_map(|path| {
            let file = std::fs::File::open(path).ok()?;
            Some(std::os::fd::IntoRawFd::into_raw_fd(file))
        })
        .collect();
    let (over, calls, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                page.change(round, &files);
            }
        });
        for number in [libc::SYS_sysinfo, libc::SYS_sched_getaffinity] {
            let (page, over, calls, failed) = (&page, &over, &calls, &failed);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let arguments = match number {
                        libc::SYS_sysinfo => [page.0, 0, 0],
                        _ => [0, 128, page.0],
                    };
                    let [a, b, c] = arguments;
                    // SAFETY: the page holds nothing of Rust's, whatever is mapped there.
                    let answer = unsafe { libc::syscall(number, a, b, c) };
                    calls.fetch_add(1, Ordering::Relaxed);
                    failed.fetch_add(u64::from(answer < 0), Ordering::Relaxed);
                }
            });
        }
        thread::sleep(time);
        over.store(true, Ordering::Relaxed);
    });
    println!("{} calls, {} failed", calls.into_inner(), failed.into_inner());
}

/// Has many processes call all the time, and kills them while they do.
fn storm(processes: u64, seconds: u64) {
    let caller = || Command::new("/proc/self/exe").arg("for-ever").spawn();
    let mut all: Vec<Child> = (0..processes).map(|_| caller().expect("run again")).collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut killed = 0u64;
    while Instant::now() < end {
        let at = killed as usize % all.len();
        let _ = all[at].kill();
        let _ = all[at].wait();
        if let Ok(new) = caller() {
            all[at] = new;
        }
        killed += 1;
        thread::sleep(Duration::from_millis(2));
    }
    for mut child in all {
        let _ = child.kill();
        let _ = child.wait();
    }
    println!("{killed} killed");
}
