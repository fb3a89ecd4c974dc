//! The forms in which profiles are written: those that people's tools open.

mod flame;
mod folded;
mod pprof;

pub use flame::flame;
pub use folded::folded;
pub use pprof::pprof;

/// What a weight is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Time.
    Nanoseconds,
    /// Memory.
    Bytes,
}

/// What a profile measures, as it is written.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// What is counted, as in `samples`.
    pub counted: &'static str,
    /// What the time or the memory is, as in `cpu`.
    pub time: &'static str,
    /// What it is measured in.
    pub unit: Unit,
    /// What a picture is called.
    pub title: &'static str,
}
