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
    /// How often a containerd was killed: what it was asked meanwhile may be done or not.
    outages: AtomicU64,
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
        }
    }

    /// Begins a life.
    pub fn begin(&self, id: &str) -> Arc<Life> {
        let life = Arc::new(Life::new(id, self.outages()));
        lock(&self.lives).push(Arc::clone(&life));
        life
    }

    /// Ends a life.
    pub fn end(&self, life: &Arc<Life>) {
        lock(&self.lives).retain(|other| !Arc::ptr_eq(other, life));
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

    /// Takes note that a containerd is about to be killed, or is back.
    pub fn outage(&self) {
        self.outages.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns how often that was.
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
        wrong.is_empty() && left.is_empty()
    }
}

/// Locks; a thread that panicked is told by its own message.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
