//! What the gofer is asked for and what it answers, and the encoding of both.
//!
//! The gofer has three channels: its request and its answer travel over a
//! seqpacket socket to the shim, the mounts it made travel straight into the
//! sandbox's mounts channel, so that they never pass through the shim.

use std::path::PathBuf;

use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, FailureKind};
use crate::spec::plan::{DeliveredSource, DeviceNode, Mappings};
use crate::sys::mount::PropagationKind;

/// One container's request. Descriptors travel beside it, in this order: the
/// mounts channel; the sandbox's user namespace when it has one
/// (`user_namespace`); the sandbox's network namespace when a sysfs is among
/// the mounts; boot's pidfd when `sandbox_proc`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GoferRequest {
    /// Tags the packets that go into the mounts channel.
    pub container: String,
    /// The mappings of the sandbox's user namespace, which mounts are
    /// idmapped into. `None` when the sandbox has no namespace of its own.
    pub user_namespace: Option<Mappings>,
    /// Also make a proc of boot's PID namespace (first container only).
    pub sandbox_proc: bool,
    /// Also make the default device nodes (first container only).
    pub default_devices: bool,
    /// The root file system.
    pub rootfs: RootfsSource,
    /// The mounts, ascending by index.
    pub mounts: Vec<RequestedMount>,
    /// Device nodes beyond the default ones.
    pub devices: Vec<DeviceNode>,
    /// Compile this seccomp profile into this file, unless it exists.
    /// JSON of [`LinuxSeccomp`], since its form on the wire is the spec's.
    pub seccomp: Option<SeccompJob>,
}

impl GoferRequest {
    /// Whether the sandbox's network namespace has to travel along.
    pub fn wants_network(&self) -> bool {
        self.mounts.iter().any(|m| m.source == DeliveredSource::Sysfs)
    }
}

/// One mount that the gofer opens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestedMount {
    /// Index into [`crate::spec::plan::ContainerPlan::mounts`].
    pub index: usize,
    /// Where it comes from.
    pub source: DeliveredSource,
    /// What the plan asks for. A mount leaves the host as a slave only for
    /// `Slave` and `Shared`, as a peer only for `Shared` without a user
    /// namespace, and private otherwise.
    pub propagation: Option<PropagationKind>,
}

/// A profile to compile, and where the program belongs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SeccompJob {
    /// The profile.
    #[serde(with = "json")]
    pub profile: LinuxSeccomp,
    /// The file to make (by rename, so that it is whole or absent).
    pub output: PathBuf,
}

/// Where the root file system comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RootfsSource {
    /// No root file system is wanted: the pause container runs nothing.
    None,
    /// The mounts of the Create request, applied in order.
    Mounts(Vec<RootfsMount>),
    /// A directory that is there already (`root.path`).
    Directory(PathBuf),
}

/// One mount of a Create request, as containerd's snapshotters give it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RootfsMount {
    /// `overlay`, `bind`, `ext4`, ...
    pub fs_type: String,
    /// Device or directory.
    pub source: String,
    /// Below the root file system; empty for the root itself.
    pub target: String,
    /// Options as mount(8) writes them.
    pub options: Vec<String>,
}

/// A packet of the mounts channel. As many descriptors as `slots`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// The container the mounts are for.
    pub container: String,
    /// What each descriptor is.
    pub slots: Vec<Slot>,
    /// No more packets follow for this container.
    pub last: bool,
}

/// What a delivered descriptor is. All but none are detached mounts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Slot {
    /// A proc of boot's PID namespace.
    SandboxProc,
    /// A tmpfs with `null zero full random urandom tty`, for the whole sandbox.
    DefaultDevices,
    /// The root file system.
    Rootfs,
    /// The mount of that index in the plan.
    Mount {
        /// Index into [`crate::spec::plan::ContainerPlan::mounts`].
        index: usize,
        /// The root of the mount is no directory.
        is_file: bool,
    },
    /// A tmpfs with the container's own nodes, named `0`, `1`, ... in the order
    /// of [`crate::spec::plan::ContainerPlan::devices`].
    Devices,
}

/// The gofer's answer to the shim: the first error ends it.
pub type GoferAnswer = Result<(), GoferError>;

/// Why the gofer could not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoferError {
    /// The spec or the request is at fault rather than the kernel.
    pub invalid: bool,
    /// A sentence for the user.
    pub message: String,
}

impl From<Error> for GoferError {
    fn from(error: Error) -> Self {
        Self { invalid: error.kind == FailureKind::Invalid, message: error.to_string() }
    }
}

/// A JSON string inside the binary encoding, for types that are only
/// self-describing on the wire.
mod json {
    use serde::{
        Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _,
    };

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        serde_json::to_string(value).map_err(S::Error::custom)?.serialize(to)
    }

    pub(super) fn deserialize<'a, T: for<'b> Deserialize<'b>, D: Deserializer<'a>>(
        from: D,
    ) -> Result<T, D::Error> {
        serde_json::from_str(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}
