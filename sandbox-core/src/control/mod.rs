//! The channel between shim and boot, and packets as all channels carry them.

pub mod message;
pub mod packet;
