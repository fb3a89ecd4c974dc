//! What the processes of a sandbox say to each other, and the encoding of it:
//! the packets that all channels carry, what boot is given at its birth, the
//! messages between shim and boot, and those of the gofer. The two halves of the
//! house, on the host and in the pod, meet only here and in `spec/plan.rs`.

pub mod donation;
pub mod gofer;
pub mod message;
pub(crate) mod newborn;
pub mod packet;
