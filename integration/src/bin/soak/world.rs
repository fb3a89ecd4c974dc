//! What all clients share: the lives, what was asked how often, and what was wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::history::Life;

/// What happened so far.
#[derive(Debug)]
pub struct World {
    seed: u64,
    lives: Mutex<Vec<Arc<Life>>>,
    /// By name, how often it was done.
    counts: Mutex<BTreeMap<String, u64>>,
    /// Answers that were wrong, each with the history of its container.
    wrong: Mutex<Vec<String>>,
    /// How often something that all lives need (a containerd, room for state) went away or came
    /// back: what was asked meanwhile may be done or not.
    outages: AtomicU64,
    /// How many such things are away now.
    running_outages: AtomicU64,
    /// Lives that have ended, and may have left something.
    ended: Mutex<Vec<Arc<Life>>>,
}

/// The most wrong answers that are told with their histories.
const TOLD: usize = 20;

impl World {
    /// Nothing has happened.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            lives: Mutex::default(),
            counts: Mutex::default(),
            wrong: Mutex::default(),
            outages: AtomicU64::new(0),
            running_outages: AtomicU64::new(0),
            ended: Mutex::default(),
        }
    }

    /// Begins a life.
    pub fn begin(&self, id: &str) -> Arc<Life> {
        let life = Arc::new(Life::new(id, self.outages()));
        if self.running_outages.load(Ordering::SeqCst) > 0 {
            life.strike("something that all need is away", true);
        }
        lock(&self.lives).push(Arc::clone(&life));
        life
    }

    /// Ends a life.
    pub fn end(&self, life: &Arc<Life>) {
        lock(&self.lives).retain(|other| !Arc::ptr_eq(other, life));
        if life.may_answer_anything(self) {
            lock(&self.ended).push(Arc::clone(life));
        }
    }

    /// Returns all lives now.
    pub fn lives(&self) -> Vec<Arc<Life>> {
        lock(&self.lives).clone()
    }

    /// Counts something that was done.
    pub fn count(&self, what: &str) {
        *lock(&self.counts).entry(what.to_owned()).or_default() += 1;
    }

    /// Takes note of an answer that is wrong.
    pub fn wrong(&self, life: &Life, what: &str) {
        eprintln!("soak: {}: {what}", life.id);
        lock(&self.wrong).push(format!("{}: {what}\n{}", life.id, life.history()));
    }

    /// Takes note of a line of a log that should not be there.
    pub fn wrong_in_a_log(&self, line: &str) {
        lock(&self.wrong).push(format!("a log has: {line}"));
    }

    /// Takes note that something that all lives need is about to be away.
    pub fn begin_outage(&self) {
        self.running_outages.fetch_add(1, Ordering::SeqCst);
        self.outages.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes note that it is back.
    pub fn end_outage(&self) {
        self.outages.fetch_add(1, Ordering::SeqCst);
        self.running_outages.fetch_sub(1, Ordering::SeqCst);
    }

    /// Returns a number that is another whenever an outage has begun or ended.
    pub fn outages(&self) -> u64 {
        self.outages.load(Ordering::SeqCst)
    }

    /// Prints all, and returns whether nothing was wrong and nothing is left.
    pub fn report(&self, left: &[String]) -> bool {
        let wrong = lock(&self.wrong);
        println!("| what | times |\n|---|---|");
        for (what, times) in lock(&self.counts).iter() {
            println!("| {what} | {times} |");
        }
        println!("| wrong answers | {} |\n| left | {} |", wrong.len(), left.len());
        for told in wrong.iter().take(TOLD) {
            println!("\nwrong (seed {}): {told}", self.seed);
        }
        if wrong.len() > TOLD {
            println!("\n... and {} more", wrong.len() - TOLD);
        }
        for what in left {
            println!("left (seed {}): {what}", self.seed);
        }
        for life in lock(&self.ended).iter().filter(|life| life.is_named_in(left)) {
            println!("\nleft by (seed {}): {}\n{}", self.seed, life.id, life.history());
        }
        wrong.is_empty() && left.is_empty()
    }
}

/// Locks; a thread that panicked is told by its own message.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
