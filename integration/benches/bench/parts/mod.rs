//! The parts of the benchmark, each of which can be run by its name.

pub mod beside;
pub mod burst;
pub mod checkpoint;
pub mod containerd;
pub mod density;
pub mod idle;
pub mod inside;
pub mod memory;
pub mod one;
pub mod output;
pub mod pods;
pub mod probe;
pub mod waits;
