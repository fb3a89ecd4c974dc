//! Spends its time where it says. Tests bind this program into a container, and profile it.

use std::hint::black_box;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use rustix::event::epoll;

fn main() {
    match env::args().nth(1).as_deref() {
        Some("spin") => loop {
            hot_function();
        },
        Some("lock") => contend(),
        Some("sleep") => loop {
            sleepy_function();
        },
        Some("hang") => hang(),
        Some("crowd") => crowd(),
        Some("jit") => jit(),
        _ => panic!("spin, lock, sleep, hang, crowd or jit"),
    }
}

#[inline(never)]
fn hot_function() {
    let begun = Instant::now();
    let mut sum = 0_u64;
    while begun.elapsed() < Duration::from_millis(100) {
        for number in 0..10_000_u64 {
            sum = sum.wrapping_mul(31).wrapping_add(black_box(number));
        }
    }
    black_box(sum);
}

#[inline(never)]
fn sleepy_function() {
    thread::sleep(Duration::from_millis(20));
    black_box(());
}

/// One thread holds a lock most of the time, and another wants it.
fn contend() {
    let lock = Arc::new(Mutex::new(0));
    let holder = Arc::clone(&lock);
    thread::spawn(move || {
        loop {
            holds_the_lock(&holder);
            thread::sleep(Duration::from_millis(1));
        }
    });
    loop {
        wants_the_lock(&lock);
    }
}

#[inline(never)]
fn holds_the_lock(lock: &Mutex<u64>) {
    let mut held = lock.lock().expect("the lock");
    thread::sleep(Duration::from_millis(30));
    *held += 1;
}

#[inline(never)]
fn wants_the_lock(lock: &Mutex<u64>) {
    *lock.lock().expect("the lock") += 1;
    black_box(());
}

/// One thread has a lock and waits for what never comes, another waits for the lock, and one for files.
fn hang() {
    let lock = Arc::new(Mutex::new(0));
    let holder = Arc::clone(&lock);
    let (has, had) = std::sync::mpsc::channel();
    named("holder", move || {
        let mut held = holder.lock().expect("the lock");
        has.send(()).expect("main waits");
        *held += reads_a_pipe();
    });
    had.recv().expect("the holder lives");
    named("watcher", watches_a_pipe);
    wants_the_lock(&lock);
}

fn named(name: &str, work: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread");
}

#[inline(never)]
fn reads_a_pipe() -> u64 {
    let (mut reader, _writer) = std::io::pipe().expect("a pipe");
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes).expect("it never comes");
    u64::from_ne_bytes(bytes)
}

/// Ends the program if its call is interrupted.
#[inline(never)]
fn watches_a_pipe() {
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    let data = epoll::EventData::new_u64(reader.as_raw_fd().unsigned_abs().into());
    epoll::add(&epoll, &reader, data, epoll::EventFlags::IN).expect("add the pipe");
    let mut events = Vec::with_capacity(1);
    let outcome = epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None);
    eprintln!("epoll_wait returned {outcome:?}");
    process::exit(1);
}

/// Many threads wait at one place.
fn crowd() {
    let gate = Arc::new(std::sync::Barrier::new(usize::MAX));
    for _ in 0..500 {
        let gate = Arc::clone(&gate);
        named("crowd", move || waits_at_the_gate(&gate));
    }
    waits_at_the_gate(&gate);
}

#[inline(never)]
fn waits_at_the_gate(gate: &std::sync::Barrier) {
    gate.wait();
    black_box(());
}

/// Does what a JIT does: code that is in no file, with a frame pointer, and a map of it for perf(1).
fn jit() {
    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
    // push %rbp; mov %rsp, %rbp; mov $SYS_pause, %eax; syscall; pop %rbp; ret
    const CODE: [u8; 13] = [0x55, 0x48, 0x89, 0xe5, 0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0x5d, 0xc3];
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: the kernel chooses the place.
    let at = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, access, flags) }.expect("mmap");
    // SAFETY: a page of this program's own, which nothing else knows of, and which is large enough.
    unsafe { at.cast::<[u8; CODE.len()]>().write(CODE) };
    let access = MprotectFlags::READ | MprotectFlags::EXEC;
    // SAFETY: the same page, to which no reference exists.
    unsafe { mprotect(at, 4096, access) }.expect("mprotect");
    let map = format!("{:x} {:x} LazyCompile:~compiled /app.js:1\n", at.addr(), CODE.len());
    fs::write(format!("/tmp/perf-{}.map", process::id()), map).expect("write the map");
    // SAFETY: the code above is a function that takes and returns nothing, as C calls it.
    let compiled = unsafe { std::mem::transmute::<*mut _, extern "C" fn()>(at) };
    calls_what_was_compiled(compiled);
}

#[inline(never)]
fn calls_what_was_compiled(compiled: extern "C" fn()) {
    compiled();
    black_box(());
}
