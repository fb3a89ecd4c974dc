//! The messages between the processes of a sandbox, and their encoding: the packets of all
//! channels, boot's flags and birth certificate, the messages between the shim and boot, between
//! boot and a newborn, those of the gofer, and the records of the user log. The half on the host and the half in the pod
//! share only this module and `spec/plan.rs`.

pub mod donation;
pub mod encoding;
pub mod gofer;
pub mod message;
pub(crate) mod newborn;
pub mod packet;
pub mod refusal;
