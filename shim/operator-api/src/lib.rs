//! What the command `palisade` asks a shim for, beside containerd's Task service: over the shim's
//! own socket, by ttrpc, so that it works without containerd. `operator.proto` says what each call
//! does. Only root of the host can connect.
//!
//! The promises of docs/upgrading.md do not hold for it: a shim that does not know a call answers
//! `Unimplemented`, and `palisade` says that the pod's shim is of another version.

pub mod time;

include!(concat!(env!("OUT_DIR"), "/mod.rs"));
