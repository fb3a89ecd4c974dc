//! The short-lived privileged helper that opens what a container may see.

pub mod request;
