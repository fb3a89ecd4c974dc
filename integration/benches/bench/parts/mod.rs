//! The parts of the benchmark, each to be asked for by its name.

pub mod one;
