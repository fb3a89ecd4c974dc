//! Checkpoints: how clients ask for them, and criu, which makes them.

use std::path::PathBuf;

use prost::Message;
use prost_types::Any;

use crate::built::repository;

/// runc's `CheckpointOptions`, as containerd's clients send them.
#[derive(Clone, PartialEq, Message)]
pub struct Options {
    /// Whether the container ends.
    #[prost(bool, tag = "1")]
    pub exit: bool,
    /// Whether established TCP connections are saved.
    #[prost(bool, tag = "2")]
    pub open_tcp: bool,
    /// Whether unix sockets may be connected to the outside.
    #[prost(bool, tag = "3")]
    pub external_unix_sockets: bool,
    /// Whether terminals are saved.
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    /// Whether file locks are saved.
    #[prost(bool, tag = "5")]
    pub file_locks: bool,
    /// Namespaces that are to be empty.
    #[prost(string, repeated, tag = "6")]
    pub empty_namespaces: Vec<String>,
    /// What is done with cgroups.
    #[prost(string, tag = "7")]
    pub cgroups_mode: String,
    /// The folder of the images.
    #[prost(string, tag = "8")]
    pub image_path: String,
    /// The folder of the log.
    #[prost(string, tag = "9")]
    pub work_path: String,
}

impl Options {
    /// Returns them as containerd carries them.
    pub fn any(&self) -> Any {
        let type_url = "containerd.runc.v1.CheckpointOptions".to_owned();
        Any { type_url, value: self.encode_to_vec() }
    }
}

/// Returns the path of criu, which `ci/criu` has fetched.
pub fn criu() -> PathBuf {
    let criu = repository().join(".cache/criu/criu");
    assert!(criu.exists(), "{} is missing; run: ci/criu", criu.display());
    criu
}

/// Returns the options of a node that lets containers be saved, with more of them.
pub fn allowed(more: &str) -> String {
    format!("checkpoint = true\ncriu = {:?}\n{more}", criu())
}
