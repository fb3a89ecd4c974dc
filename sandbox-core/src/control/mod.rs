//! The channel between shim and boot, packets as all channels carry them, and
//! what boot is given at its birth.

pub mod donation;
pub mod message;
pub mod packet;
