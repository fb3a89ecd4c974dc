//! Spawns, isolates and manages Palisade's sandbox process.
//!
//! The shim calls [`sandbox`]; the executable `palisade` (this crate's
//! `main.rs`) runs [`gofer`] and [`boot`]. `ARCHITECTURE.md` follows one Create
//! through these modules.

#![deny(unsafe_code)]

pub mod boot;
pub mod cgroup;
mod container;
pub mod control;
pub mod error;
pub mod gofer;
pub mod network;
mod newborn;
pub mod sandbox;
pub mod spec;
pub mod sys;
pub mod types;

pub use error::{Context, Error, Result};
