//! The life of one container or pod.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Instant;

use crate::world::{World, lock};

/// The most lines of a history that are told.
const TOLD: usize = 60;

/// One container or pod: what it was asked, and what befell it.
#[derive(Debug)]
pub struct Life {
    /// Its ID.
    pub id: String,
    begun: Instant,
    history: Mutex<Vec<(Instant, String)>>,
    /// The host's PID of its init, and of its latest exec; zero for none.
    pub init: AtomicI32,
    pub exec: AtomicI32,
    /// Whether a fault has struck it, so that it may answer anything.
    struck: AtomicBool,
    /// Whether its events may be lost: its shim was killed, or its containerd.
    silenced: AtomicBool,
    outages: u64,
}

impl Life {
    pub(crate) fn new(id: &str, outages: u64) -> Self {
        Self {
            id: id.to_owned(),
            begun: Instant::now(),
            history: Mutex::default(),
            init: AtomicI32::new(0),
            exec: AtomicI32::new(0),
            struck: AtomicBool::new(false),
            silenced: AtomicBool::new(false),
            outages,
        }
    }

    /// Takes note of what is asked, is answered or happens.
    pub fn note(&self, what: impl Into<String>) {
        lock(&self.history).push((Instant::now(), what.into()));
    }

    /// Takes note of a fault. `silences` tells whether events may be lost by it.
    pub fn strike(&self, what: &str, silences: bool) {
        self.note(format!("FAULT: {what}"));
        self.struck.store(true, Ordering::SeqCst);
        if silences {
            self.silenced.store(true, Ordering::SeqCst);
        }
    }

    /// Whether its answers may be of any kind.
    pub fn may_answer_anything(&self, world: &World) -> bool {
        self.struck.load(Ordering::SeqCst) || world.outages() != self.outages
    }

    /// Whether its events may be lost.
    pub fn may_be_silent(&self, world: &World) -> bool {
        self.silenced.load(Ordering::SeqCst) || world.outages() != self.outages
    }

    /// Whether its ID is in one of the sentences.
    pub fn is_named_in(&self, sentences: &[String]) -> bool {
        let is_end = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_digit());
        let names = |text: &String| {
            text.match_indices(&self.id).any(|(at, id)| is_end(&text[at + id.len()..]))
        };
        sentences.iter().any(names)
    }

    /// Returns what was noted last, one line each, with milliseconds since its begin.
    pub fn history(&self) -> String {
        let history = lock(&self.history);
        let left_out = history.len().saturating_sub(TOLD);
        let mut text = String::new();
        if left_out > 0 {
            let _ = writeln!(text, "  ({left_out} lines before)");
        }
        for (at, what) in history.iter().skip(left_out) {
            let since = at.duration_since(self.begun).as_millis();
            let _ = writeln!(text, "  {since:>6} ms  {what}");
        }
        text
    }
}
