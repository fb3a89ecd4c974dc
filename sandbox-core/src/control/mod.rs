//! The channel between shim and boot.

pub mod message;
