//! The gofer's request and reply, and their encoding.
//!
//! The request and the reply travel over a seqpacket socket of the shim. The mounts travel
//! directly into the sandbox's mounts channel, so they never pass through the shim.

use std::path::PathBuf;

use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

use super::encoding::Message;
use crate::error::{Error, FailureKind};
use crate::spec::plan::{
    CheckpointSource, DeliveredSource, DeviceNode, HookPlan, Mappings, MountAttributes, Powerless,
};
use crate::sys::mount::PropagationKind;
use crate::types::Confined;

/// The request for one container. These descriptors travel with it, in this order: the
/// mounts channel; the pod's user namespace, if it has one (`user_namespace`) and the container
/// is in it (`own_user_namespace`); the sandbox's network namespace, if a sysfs is among the mounts; boot's PID
/// namespace, if `sandbox_proc`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GoferRequest {
    /// The container's ID, which the packets in the mounts channel repeat.
    pub container: String,
    /// The mappings of the containers' user namespace, by which mounts are idmapped. `None` if
    /// the sandbox has no user namespace.
    pub user_namespace: Option<Mappings>,
    /// Whether these are the container's own rather than the pod's. The gofer then makes a
    /// user namespace with them to idmap by.
    pub own_user_namespace: bool,
    /// Whether to make a proc of boot's PID namespace (first container only).
    pub sandbox_proc: bool,
    /// Whether to make the default device nodes (first container only).
    pub default_devices: bool,
    /// Whether the gofer is not root of the host, but of a user namespace. Device nodes are then
    /// the host's, bound, and it enters no namespace that it could not leave.
    pub rootless: bool,
    /// The root file system.
    pub rootfs: RootfsSource,
    /// A directory of the host at which the root file system is attached as it is, for containerd
    /// to write to. Nothing is delivered then.
    pub attach_at: Option<PathBuf>,
    /// Such a directory, from which it is taken away first.
    pub attached_at: Option<PathBuf>,
    /// The mounts, in ascending order of index.
    pub mounts: Vec<RequestedMount>,
    /// Device nodes beyond the default ones.
    pub devices: Vec<DeviceNode>,
    /// A seccomp profile to compile, unless that was done before.
    pub seccomp: Option<SeccompJob>,
    /// The createContainer hooks to run, if there are any.
    pub hooks: Option<HookJob>,
    /// What a restore needs, if the container is made from a checkpoint.
    pub checkpoint: Option<CheckpointSource>,
}

impl Message for GoferRequest {
    const NAME: &str = "the gofer's request";
}

impl GoferRequest {
    /// Whether the sandbox's network namespace must travel with the request.
    pub fn wants_network(&self) -> bool {
        self.mounts.iter().any(|m| m.source == DeliveredSource::Sysfs)
    }
}

/// One mount that the gofer opens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestedMount {
    /// Index into [`crate::spec::plan::ContainerPlan::mounts`].
    pub index: usize,
    /// The source of its content.
    pub source: DeliveredSource,
    /// The propagation in the plan. A mount leaves the host as a slave only for `Slave` and
    /// `Shared`, as a peer only for `Shared` without a user namespace, and private otherwise.
    pub propagation: Option<PropagationKind>,
}

/// The `createContainer` hooks of a container, and what they find at its root.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HookJob {
    /// The hooks, in order.
    pub hooks: Vec<HookPlan>,
    /// The container's state, which each reads from its standard input.
    pub state: String,
    /// The path at which they find the root file system: `root.path` of the bundle.
    pub root: PathBuf,
    /// The container's mounts that they see, in the order of the spec.
    pub mounts: Vec<HookMount>,
    /// The paths of the container's device nodes, whose directories they see.
    pub devices: Vec<PathBuf>,
    /// The soft limit of open files that they get: containerd's, which the shim has raised.
    pub open_files: u64,
}

/// A mount that hooks see.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HookMount {
    /// Index into [`crate::spec::plan::ContainerPlan::mounts`]. The source is that of the
    /// [`RequestedMount`] with this index; without one, it is a proc.
    pub index: usize,
    /// Absolute path inside the container.
    pub destination: PathBuf,
    /// Changes of its flags.
    pub attributes: MountAttributes,
}

/// A profile to compile, and the file for the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SeccompJob {
    /// The profile. It travels as JSON, the form for which its type is made.
    #[serde(with = "json")]
    pub profile: LinuxSeccomp,
    /// The baseline that is joined with it.
    pub baseline: Option<Confined>,
    /// The file, which is made by rename, so that it is whole or absent.
    pub output: PathBuf,
}

/// The source of the root file system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RootfsSource {
    /// No root file system, since the pause container runs nothing.
    None,
    /// The mounts of the Create request, applied in order.
    Mounts(Vec<RootfsMount>),
    /// An existing directory (`root.path`).
    Directory(PathBuf),
}

/// One mount of a Create request, as containerd's snapshotters give it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RootfsMount {
    /// The type: `overlay`, `bind`, `ext4`, ...
    pub fs_type: String,
    /// The device or directory.
    pub source: String,
    /// The path below the root file system; empty for the root itself.
    pub target: String,
    /// The options, as mount(8) writes them.
    pub options: Vec<String>,
}

/// A packet of the mounts channel, with as many descriptors as `slots`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// The container of the mounts.
    pub container: String,
    /// The meaning of each descriptor.
    pub slots: Vec<Slot>,
    /// Whether this is the container's last packet.
    pub last: bool,
}

impl Message for Delivery {
    const NAME: &str = "a delivery of mounts";
}

/// The meaning of a delivered descriptor. All are detached mounts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Slot {
    /// A proc of boot's PID namespace.
    SandboxProc,
    /// A tmpfs with `null zero full random urandom tty`, for the whole sandbox.
    DefaultDevices,
    /// The root file system.
    Rootfs,
    /// A mount of the plan.
    Mount {
        /// Index into [`crate::spec::plan::ContainerPlan::mounts`].
        index: usize,
        /// Whether the mount's root is not a directory.
        is_file: bool,
    },
    /// A mount that a hook made below the root.
    OfHook {
        /// Absolute path inside the container.
        path: PathBuf,
        /// Whether the mount's root is not a directory.
        is_file: bool,
    },
    /// A tmpfs with the container's own nodes, named `0`, `1`, ... in the order
    /// of [`crate::spec::plan::ContainerPlan::devices`].
    Devices,
    /// The directory with the images of a checkpoint.
    Images,
    /// A tmpfs with the files of criu ([`CheckpointSource::programs`]).
    Programs,
}

/// The gofer's reply to the shim: what it found to be without effect. The gofer stops at
/// the first error.
pub type GoferAnswer = Result<Vec<Powerless>, GoferError>;

impl Message for GoferAnswer {
    const NAME: &str = "the gofer's answer";
}

/// The error of a gofer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoferError {
    /// The kind of failure.
    pub kind: FailureKind,
    /// A sentence for the user.
    pub message: String,
}

impl From<Error> for GoferError {
    fn from(error: Error) -> Self {
        Self { kind: error.kind, message: error.to_string() }
    }
}

/// Encodes a type as a JSON string inside the binary encoding, for types that only a
/// self-describing format can carry.
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
