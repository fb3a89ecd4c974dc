//! Spends its time where it says. Tests bind this program into a container, and profile it.

use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, thread};

fn main() {
    match env::args().nth(1).as_deref() {
        Some("spin") => loop {
            hot_function();
        },
        Some("lock") => contend(),
        Some("sleep") => loop {
            sleepy_function();
        },
        _ => panic!("spin, lock or sleep"),
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
